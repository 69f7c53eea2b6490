"""The demonstration: one noisy generated corpus, two objectives on the same pairs from the same seed, every evaluation, one page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.config import build
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.data.sampler import generator
from softclip_cli.evaluation import result
from softclip_cli.evaluation.corpus_evaluation import evaluate_corpus
from softclip_cli.evaluation.embed import EmbedOptions, embed_images, embed_texts
from softclip_cli.model import Model
from softclip_cli.registry import open_model
from softclip_cli.reports.compare_page import write_demo_page
from softclip_cli.reports.examples import RetrievalExample, RetrievalResult, TrainingPair
from softclip_cli.reports.model_card import write_model_card
from softclip_cli.runs import Run
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train
from softclip_cli.training.trainer import Report

QUERIES = 4  # example queries in each direction
SHOWN = 5  # results shown for each
SAMPLE_PAIRS = 12


@dataclass(frozen=True)
class DemoOptions:
    """What the demonstration does.

    Attributes:
        out: folder for the corpus, the runs and the page.
        objectives: trained one after the other; the first is the baseline.
        pairs, noise: of the generated corpus.
        steps, batch_size, lr: of each training.
        seed: of corpus and trainings.
    """

    out: Path
    objectives: tuple[str, ...] = ("clip", "psd")
    pairs: int = 10_000
    noise: float = 0.3
    steps: int = 700
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class DemoResult:
    """What came out.

    Attributes:
        page: the HTML page.
        runs: objective → its run.
        documents: objective → its evaluation documents.
    """

    page: Path
    runs: dict[str, Run]
    documents: dict[str, list[dict[str, Any]]]


def demo(options: DemoOptions, report: Report, say: Callable[[str], None], command: tuple[str, ...] = ()) -> DemoResult:
    """Run the demonstration.

    Args:
        options: sizes and places.
        report: told what the trainer reports.
        say: told each further stage.
        command: the command line, for the record.

    Raises:
        SoftclipError: as the parts do.
    """
    corpus = demo_corpus(options, report)
    runs: dict[str, Run] = {}
    documents: dict[str, list[dict[str, Any]]] = {}
    examples: list[RetrievalExample] = []
    for objective in options.objectives:
        say(f"training {objective}")
        path = train(
            Plan(demo_settings(options, objective, corpus), options.out / "runs" / objective, command=command), report
        )
        model = open_model(f"{path}")
        say(f"evaluating {objective}")
        documents[objective] = evaluate_corpus(model, corpus, options=EmbedOptions())
        for document in documents[objective]:
            result.save(document, path / "evals" / result.file_name(document))
        examples += retrieval_examples(model, corpus, objective)
        runs[objective] = Run(path)
        write_model_card(runs[objective])
    page = write_demo_page(
        options.out / "index.html",
        list(runs.values()),
        {runs[name].name: made for name, made in documents.items()},
        examples,
        sample_pairs(corpus),
        names=list(runs),
        title="softclip demo",
        command=" ".join(command),
        retrieval_note="the queries are drawn at random; every model is asked the same",
    )
    return DemoResult(page, runs, documents)


def demo_corpus(options: DemoOptions, report: Report) -> Corpus:
    """The generated corpus, made unless one with the same parameters is there."""
    path = options.out / "corpus"
    wanted: dict[str, Any] = {"pairs": options.pairs, "noise": options.noise, "seed": options.seed}
    if (path / "corpus.json").is_file():
        corpus = Corpus.open(path)
        made = corpus.info.get("generator", {})
        if {key: made.get(key) for key in wanted} == wanted:
            report("note", {"text": f"corpus: {path} (made earlier)"})
            return corpus
    report("note", {"text": f"corpus: drawing {options.pairs:,} pairs, {options.noise:.0%} of them noisy, into {path}"})
    return generate_corpus(
        path,
        **wanted,
        overwrite=True,
        progress=lambda done, total: report("progress", {"what": "scenes", "done": done, "total": total}),
    )


def demo_settings(options: DemoOptions, objective: str, corpus: Corpus) -> TrainSettings:
    """The settings of one training: the same for every objective but for its name."""
    return build(
        TrainSettings,
        {
            "data": {"corpus": str(corpus.path), "batch_size": options.batch_size},
            "objective": {"name": objective},
            "optimizer": {"lr": options.lr},
            "schedule": {"steps": options.steps, "seed": options.seed},
        },
    )


def retrieval_examples(model: Model, corpus: Corpus, name: str) -> list[RetrievalExample]:
    """A few random queries in both directions over the test split, with what the model retrieves."""
    data = corpus.split("test")
    images = data["image"][:]
    captions = data["captions"][:]
    first = [several[0] for several in captions]
    embedded = embed_images(model, data).projected
    assert embedded is not None
    scores = (embedded @ embed_texts(model, first).T).numpy()
    picks = generator(0, len(data)).choice(len(data), 2 * QUERIES, replace=False)
    examples = []
    for row in picks[:QUERIES]:
        order = np.argsort(-scores[:, row], kind="stable")
        found = tuple(
            RetrievalResult(first[i], float(scores[i, row]), bool(i == row), images[i]["bytes"]) for i in order[:SHOWN]
        )
        rank = int(np.flatnonzero(order == row)[0]) + 1
        examples.append(RetrievalExample(found, name, query_text=first[row], rank=rank, gallery=len(data)))
    for row in picks[QUERIES:]:
        order = np.argsort(-scores[row], kind="stable")
        found = tuple(RetrievalResult(first[i], float(scores[row, i]), bool(i == row)) for i in order[:SHOWN])
        rank = int(np.flatnonzero(order == row)[0]) + 1
        examples.append(RetrievalExample(found, name, query_image=images[row]["bytes"], rank=rank, gallery=len(data)))
    return examples


def sample_pairs(corpus: Corpus) -> list[TrainingPair]:
    """The first training pairs, with the noise that the corpus stores."""
    rows = corpus.split("train")[:SAMPLE_PAIRS]
    return [
        TrainingPair(image["bytes"], captions[0], noise)
        for image, captions, noise in zip(rows["image"], rows["captions"], rows["noise"], strict=True)
    ]
