"""What a study measures of a trained model: flat names → numbers, taken from the same result documents that `softclip eval` writes."""

from __future__ import annotations

from typing import Any

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.sharded.corpus import ShardedCorpus
from softclip_cli.errors import UsageError
from softclip_cli.evaluation.corpus_evaluation import evaluate_corpus
from softclip_cli.evaluation.corpus_sets import corpus_tasks, retrieval_task
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.locate import classification_set
from softclip_cli.evaluation.locate_captions import retrieval_set
from softclip_cli.evaluation.locate_probe import probe_sets
from softclip_cli.evaluation.probe import probe
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.zeroshot import zero_shot
from softclip_cli.model import Model

Metrics = dict[str, float]


def split_of(entry: str, corpus: Corpus | ShardedCorpus) -> str | None:
    """The split of the corpus that an entry asks retrieval on; None for any other entry."""
    task, _, name = entry.partition(":")
    return name if task == "retrieval" and name in corpus.splits else None


def check(corpus: Corpus | ShardedCorpus, entry: str) -> None:
    """See that an entry can be measured, before anything is trained.

    Raises:
        UsageError, DataError: as `measure` would.
    """
    task, _, name = entry.partition(":")
    if split_of(entry, corpus) is None and not _offered(corpus, task, name):
        _sets(corpus, entry)


def _offered(corpus: Corpus | ShardedCorpus, task: str, name: str) -> list[str]:
    """The corpus's own evaluations that an entry names, as `evaluate_corpus` wants them."""
    if not isinstance(corpus, Corpus):
        return []
    return [f"{task}:{own.name}" for own in corpus_tasks(corpus) if own.kind == task and name in ("", own.name)]


def _sets(corpus: Corpus | ShardedCorpus, entry: str) -> Any:
    """What an entry names that is none of the corpus's."""
    task, _, name = entry.partition(":")
    if name and task == "retrieval":
        return retrieval_set(name)
    if name and task in ("zeroshot", "shift"):
        return classification_set(name)
    if name and task == "probe":
        return probe_sets(name)
    raise UsageError(
        f"evaluate: {entry!r} is no evaluation of the corpus",
        f"corpus.json of {corpus.path} lists none of this name",
        "softclip data inspect CORPUS shows its splits and evaluations",
    )


def measure(model: Model, corpus: Corpus | ShardedCorpus, entry: str, options: EmbedOptions) -> Metrics:
    """The metrics of one entry of a study's `evaluate`, as "NAME/METRIC".

    Args:
        model: to evaluate.
        corpus: of the study.
        entry: "TASK" or "TASK:NAME": a split (for retrieval) or evaluation of the corpus, a dataset of the catalogue, or a folder.
        options: how to embed.

    Raises:
        UsageError: no evaluation of this name.
        DataError: no such split or dataset.
    """
    task, _, name = entry.partition(":")
    split = split_of(entry, corpus)
    if split is not None:
        assert isinstance(corpus, Corpus)
        return flat(split, retrieval(model, retrieval_task(corpus, split), options=options))
    offered = _offered(corpus, task, name)
    if offered:
        assert isinstance(corpus, Corpus)
        found: Metrics = {}
        for wanted in offered:
            for document in evaluate_corpus(model, corpus, tasks=[wanted], options=options):
                found |= flat(wanted, document)
        return found
    sets = _sets(corpus, entry)
    if task == "retrieval":
        return flat(entry, retrieval(model, sets, options=options))
    if task == "probe":
        return flat(entry, probe(model, sets.train, sets.test, validation=sets.validation, options=options))
    return flat(entry, zero_shot(model, sets, options=options))


def flat(name: str, document: dict[str, Any]) -> Metrics:
    """A result document's numbers as "NAME/METRIC"."""
    return {f"{name}/{metric}": float(entry["value"]) for metric, entry in document["metrics"].items()}
