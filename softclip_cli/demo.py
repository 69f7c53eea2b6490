"""The demonstration: one noisy generated corpus, two objectives on the same pairs from the same seed, every evaluation, one page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.data.sampler import generator
from softclip_cli.errors import SoftclipError
from softclip_cli.evaluation.embed import embed_images, embed_texts
from softclip_cli.model import Model
from softclip_cli.registry import open_model
from softclip_cli.reports.compare_page import write_demo_page
from softclip_cli.reports.examples import RetrievalExample, RetrievalResult, TrainingPair
from softclip_cli.reports.model_card import renew_model_card
from softclip_cli.runs import Run, is_run
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
    objectives: tuple[str, ...] = ("clip", "softclip")
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
    """Run the demonstration: the objectives side by side, each as the commands that a user would type, on its share of the cores.

    Args:
        options: sizes and places.
        report: told of progress ("note", "progress").
        say: told each further stage.
        command: the command line, for the record.

    Raises:
        SoftclipError: as the parts do.
    """
    corpus = demo_corpus(options, report)
    paths = {objective: options.out / "runs" / objective for objective in options.objectives}
    for path in paths.values():
        if is_run(path) and not same_training(Run(path), options, corpus):
            shutil.rmtree(path)
    say(f"training {' and '.join(paths)} side by side: {options.steps} steps of {options.batch_size} pairs each")
    commands = {name: [_train(options, name, path, corpus), _evaluate(path, corpus)] for name, path in paths.items()}
    run_side_by_side(commands, paths, options.steps, report)
    runs = {name: Run(path) for name, path in paths.items()}
    documents = {name: run.evals for name, run in runs.items()}
    examples: list[RetrievalExample] = []
    for name, path in paths.items():
        examples += retrieval_examples(open_model(f"{path}"), corpus, name)
        renew_model_card(runs[name])
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


def same_training(run: Run, options: DemoOptions, corpus: Corpus) -> bool:
    """Whether an earlier demonstration's run is what these options would train, so that it may go on or be shown again."""
    wanted = {
        "schedule.seed": options.seed,
        "schedule.steps": options.steps,
        "data.batch_size": options.batch_size,
        "optimizer.lr": options.lr,
    }
    return run.data.get("fingerprint") == corpus.fingerprint and all(
        run.setting(name) == value for name, value in wanted.items()
    )


def _train(options: DemoOptions, objective: str, path: Path, corpus: Corpus) -> list[str]:
    """The training of one objective; the same for every objective but for its name."""
    flags = {
        "--data": corpus.path,
        "--objective": objective,
        "--out": path,
        "--steps": options.steps,
        "--batch-size": options.batch_size,
        "--lr": options.lr,
        "--seed": options.seed,
        "--workers": 0,
    }
    return ["train", *(str(part) for pair in flags.items() for part in pair), "--set", "log.every=10"]


def _evaluate(path: Path, corpus: Corpus) -> list[str]:
    """All that the corpus offers, of the finished run."""
    # A probe of 80 classes takes a minute; that of the ten kinds says as much about the features.
    tasks = ("zeroshot", "probe:kind", "retrieval", "shift", "composition")
    chosen = [word for task in tasks for word in ("--task", task)]
    return ["eval", "corpus", str(corpus.path), "--model", str(path), "--workers", "0", "--no-cache", *chosen]


def run_side_by_side(commands: dict[str, list[list[str]]], paths: dict[str, Path], steps: int, report: Report) -> None:
    """Run a queue of softclip commands for each name, all queues at once, on equal shares of the cores.

    Processes rather than threads, since a small model uses one core well and two cores badly.

    Raises:
        SoftclipError: a command failed; its own message and exit code are passed on.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // len(commands)))}
    waiting = {name: list(queue) for name, queue in commands.items()}
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        while waiting or running:
            for name in [name for name in waiting if name not in running]:
                queue = waiting[name]
                if not queue:
                    del waiting[name]
                    continue
                arguments = [sys.executable, "-m", "softclip_cli", *queue.pop(0)]
                running[name] = subprocess.Popen(
                    arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            time.sleep(0.3)
            for name, process in list(running.items()):
                done = min(steps, int(Run(paths[name]).status.get("step", 0)))
                report(
                    "progress",
                    {
                        "what": f"{name}: training" if waiting.get(name) else f"{name}: evaluating",
                        "done": done,
                        "total": steps,
                    },
                )
                if process.poll() is not None:
                    del running[name]
                    if process.returncode:
                        assert process.stderr is not None
                        raise _failed(name, process.returncode, process.stderr.read())
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def _failed(name: str, code: int, text: str) -> SoftclipError:
    """The error of a command that ran in another process."""
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith(("error:", "bug:"))), max(0, len(lines) - 3))
    error = SoftclipError(f"{name}: {lines[start] if lines else 'ended'}", "\n".join(lines[start + 1 : start + 3]))
    error.exit_code = code if code > 0 else 128 - code
    return error


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
