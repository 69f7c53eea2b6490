"""What a study measures of a trained model: flat names → numbers, taken from the same result documents that `softclip eval` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.sharded.corpus import ShardedCorpus
from softclip_cli.errors import UsageError
from softclip_cli.evaluation.corpus_evaluation import evaluate_corpus
from softclip_cli.evaluation.corpus_sets import corpus_tasks, retrieval_task
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.locate import classification_set, probe_sets, retrieval_set
from softclip_cli.evaluation.probe import probe
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.zeroshot import zero_shot
from softclip_cli.model import Model

Metrics = dict[str, float]


def split_of(entry: str, corpus: Corpus | ShardedCorpus) -> str | None:
    """The split of the corpus that an entry asks retrieval on; None for any other entry."""
    task, _, name = entry.partition(":")
    return name if task == "retrieval" and name in corpus.splits else None


def measure(model: Model, corpus: Corpus | ShardedCorpus, entry: str, options: EmbedOptions) -> Metrics:
    """The metrics of one entry of a study's `evaluate`, as "NAME/METRIC".

    Args:
        model: to evaluate.
        corpus: of the study.
        entry: "TASK" or "TASK:NAME": a split (for retrieval) or evaluation of the corpus, a dataset of the catalogue, or a folder.
        options: how to embed.

    Raises:
        UsageError: a task on a dataset that it is not made for.
        DataError: no such split, evaluation or dataset.
    """
    task, _, name = entry.partition(":")
    split = split_of(entry, corpus)
    if split is not None:
        assert isinstance(corpus, Corpus)
        return flat(split, retrieval(model, retrieval_task(corpus, split), options=options))
    if isinstance(corpus, Corpus):
        offered = [own for own in corpus_tasks(corpus) if own.kind == task and name in ("", own.name)]
        if offered or not name:
            found: Metrics = {}
            for wanted in [f"{task}:{one.name}" for one in offered] or [task]:
                for document in evaluate_corpus(model, corpus, tasks=[wanted], options=options):
                    found |= flat(wanted, document)
            return found
    if task == "retrieval":
        return flat(entry, retrieval(model, retrieval_set(name), options=options))
    if task == "zeroshot" or task == "shift":
        return flat(entry, zero_shot(model, classification_set(name), options=options))
    if task == "probe":
        sets = probe_sets(name)
        return flat(entry, probe(model, sets.train, sets.test, validation=sets.validation, options=options))
    raise UsageError(
        f"evaluate: {entry!r} is no evaluation of the corpus", f"{task} needs one", "softclip data inspect CORPUS"
    )


def flat(name: str, document: dict[str, Any]) -> Metrics:
    """A result document's numbers as "NAME/METRIC"."""
    return {f"{name}/{metric}": float(entry["value"]) for metric, entry in document["metrics"].items()}


def several(entries: Iterable[str], one: Callable[[str], Metrics]) -> Metrics:
    """The metrics of several entries together."""
    found: Metrics = {}
    for entry in entries:
        found |= one(entry)
    return found
