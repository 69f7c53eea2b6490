"""A whole training step of every objective beside that of `clip`: towers, loss, backward, optimiser and moving average.

    python benchmarks/step_cost.py [--quick] [--json FILE] [--model REF] [--batch-size N] [--presets psd ema-kd]

The trainer's own step is timed, on the same batches and from the same weights. An objective and `clip` take turns, each going first
every other time; the median of the turns counts. Batches are decoded beforehand, and the step stands at the end of the schedule, where
the soft targets have their full share. An objective that cannot be trained here is left out with the reason.

The default is ViT-S-32-alt, the smallest of open_clip's usual architectures, with 64 pairs: towers take nearly all of the time, as in
any real training, and a step takes seconds on two cores. A larger model makes every ratio better, but that of a teacher with a forward
pass of its own, which tends to 4/3. --quick takes softclip's tiny model and says whether it runs at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from softclip_cli.config import build
from softclip_cli.data.batches import Batch
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.errors import SoftclipError
from softclip_cli.objectives.settings import presets
from softclip_cli.training.distributed import World
from softclip_cli.training.run_folder import processor_name
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare
from softclip_cli.training.trainer import Trainer

BASE = "clip"
EMA_PSD = "psd, ema teacher"
TARGETS = {"psd": 1.03, EMA_PSD: 1.4}
BATCHES, STEPS = 3, 1000


def contenders(names: list[str]) -> dict[str, dict[str, Any]]:
    """What is measured: a name for the table, and the objective's settings."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = {"name": name}
        if name == "psd":
            found[EMA_PSD] = {"name": name, "teacher": "ema"}
    return found


def make_trainer(objective: dict[str, Any], corpus: Path, folder: Path, options: argparse.Namespace) -> Trainer:
    """The trainer of a run with this objective, at its last step.

    Raises:
        SoftclipError: the objective cannot be trained.
    """
    if objective["name"] in ("distill", "cwcl"):
        objective = objective | {"teacher_model": options.model}  # a teacher as large as the student
    settings = build(
        TrainSettings,
        {
            "model": {"reference": options.model},
            "data": {"corpus": str(corpus), "batch_size": options.batch_size, "workers": 0},
            "objective": objective,
            "schedule": {"steps": STEPS},
            "device": options.device,
            "precision": options.precision,
        },
    )
    trainer = prepare(Plan(settings, folder, keep_features=False), World())
    trainer.done = STEPS - 1
    trainer.model.train()
    queue = trainer.objective.queue
    if queue is not None:  # full, as it is nearly all the time
        queue.put(*(functional.normalize(torch.randn_like(side), dim=1) for side in (queue.image, queue.text)))
    return trainer


def seconds_of(trainer: Trainer, batch: Batch, clock: Callable[[], float]) -> float:
    """One step."""
    cuda = trainer.model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    began = clock()
    trainer.step(batch, diagnostics=False)
    if cuda:
        torch.cuda.synchronize()
    return clock() - began


def compare(
    base: Trainer, other: Trainer, batches: list[Batch], repeats: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median seconds of both, after a warm-up step of each."""
    times: dict[int, list[float]] = {id(base): [], id(other): []}
    for turn in range(repeats + 1):
        for trainer in (base, other) if turn % 2 else (other, base):
            seconds = seconds_of(trainer, batches[turn % len(batches)], clock)
            if turn:
                times[id(trainer)].append(seconds)
    return statistics.median(times[id(base)]), statistics.median(times[id(other)])


def run(options: argparse.Namespace, corpus: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each objective."""
    base = make_trainer({"name": BASE}, corpus, folder / BASE, options)
    clock = time.process_time if options.cpu_time else time.perf_counter
    for name, objective in contenders(options.presets).items():
        row: dict[str, Any] = {"objective": name, "seconds": None, "clip_seconds": None, "ratio": None, "left_out": ""}
        try:
            other = make_trainer(objective, corpus, folder / name.replace(", ", "-").replace(" ", "-"), options)
        except SoftclipError as error:
            yield row | {"left_out": error.what}
            continue
        batches = list(other.source(0, BATCHES))  # the same for both, but for what a frozen teacher reads
        clip_seconds, seconds = compare(base, other, batches, options.repeats, clock)
        yield row | {"seconds": seconds, "clip_seconds": clip_seconds, "ratio": seconds / clip_seconds}
        del other


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    if row["ratio"] is None:
        return f"{row['objective']:18} left out: {row['left_out']}"
    numbers = f"{row['seconds'] * 1e3:9,.0f} {row['clip_seconds'] * 1e3:9,.0f} {row['ratio']:9.3f}"
    return f"{row['objective']:18} {numbers}{verdict(row)}"


def verdict(row: dict[str, Any]) -> str:
    """Whether a target is reached, in words."""
    limit = TARGETS.get(row["objective"])
    if limit is None:
        return ""
    return f"   at most {limit}: {'reached' if row['ratio'] <= limit else 'NOT reached'}"


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for corpus and runs."""
    with tempfile.TemporaryDirectory(prefix="softclip-step-cost-") as name:
        yield Path(name)


def main() -> None:
    """The command line."""
    known = [name for name in presets() if name != BASE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, few repeats: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--model", help="model reference; default ViT-S-32-alt")
    parser.add_argument("--batch-size", type=int, help="pairs a step; default 64")
    parser.add_argument("--presets", nargs="+", choices=known, default=known, help="default: all but clip")
    parser.add_argument("--repeats", type=int, help="turns of each; default 7")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of a CPU")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds (with --threads 1), for a busy machine")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.model = options.model or ("tiny" if options.quick else "ViT-S-32-alt")
    options.batch_size = options.batch_size or 64
    options.repeats = options.repeats or (2 if options.quick else 7)
    rows = []
    with work_folder() as folder:
        corpus = folder / "corpus"
        generate_corpus(corpus, pairs=max(10, BATCHES * options.batch_size), noise=0.3, seed=0, per_class=1)
        print(f"{options.model}, {options.batch_size} pairs a step, {options.device}, {options.precision}")
        print(f"{'objective':18} {'ms':>9} {'clip ms':>9} {'ratio':>9}")
        for row in run(options, corpus, folder):
            rows.append(row)
            print(line(row), flush=True)
    if options.json:
        measured = {row["objective"]: row["ratio"] for row in rows}
        document = {
            "benchmark": "step_cost",
            "model": options.model,
            "batch_size": options.batch_size,
            "precision": options.precision,
            "device": torch.cuda.get_device_name() if options.device == "cuda" else processor_name(),
            "threads": options.threads,
            "clock": "CPU seconds" if options.cpu_time else "seconds",
            "torch": torch.__version__,
            "rows": rows,
            "targets": [
                {
                    "name": f"{name} step of clip's",
                    "limit": limit,
                    "ratio": measured.get(name),
                    "reached": measured.get(name) is not None and measured[name] <= limit,
                }
                for name, limit in TARGETS.items()
            ],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
