"""How a step's cost grows: with processes at the same share each (weak scaling), with the batch, the image size and the text length.

    python benchmarks/scaling.py [--quick] [--json FILE] [--model REF] [--batch-size N] [--repeats N]

Weak scaling starts 1 and 2 whole trainings under torchrun over gloo, one thread and the same number of pairs each, taking turns. Two
processes on two cores share caches and memory, so beside it stand two trainings that know nothing of each other: what the machine loses by
itself is not the trainer's. Growth is of the trainer's own step on one thread, each size and the one before it taking turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from softclip_cli.building import build_model
from softclip_cli.config import build
from softclip_cli.data.batches import Batch
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.registry import open_model
from softclip_cli.runs import Run
from softclip_cli.training.distributed import World
from softclip_cli.training.encoder import TowerEncoder
from softclip_cli.training.run_folder import processor_name
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare
from softclip_cli.training.trainer import Trainer

LOG, WARM_UP = 4, 1  # steps a line of the log, and lines that do not count
GROWTH = {"batch": (8, 16, 32, 64), "image size": (96, 160, 224, 288), "text tokens": (8, 16, 32, 77)}


def command(corpus: Path, folder: Path, options: argparse.Namespace, processes: int) -> list[str]:
    """A training of `processes` processes, each with the same share of the batch."""
    steps = LOG * (WARM_UP + options.lines)
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    words = (
        f"train --data {corpus} --model {options.model} --objective psd --batch-size {processes * options.batch_size}"
    )
    more = f"--steps {steps} --workers 0 --device cpu --precision {options.precision} --resume never --out {folder}"
    quiet = f"--set log.every={LOG} --set eval.split=none --set checkpoint.every=0"
    return [*start, "softclip_cli", *words.split(), *more.split(), *quiet.split()]


def rates(runs: list[Path]) -> float:
    """Pairs a second of all runs together, median over the lines of the log."""
    lines = [[line["samples_per_second"] for line in Run(path).training[WARM_UP:]] for path in runs]
    return sum(statistics.median(values) for values in lines)


def weak_scaling(options: argparse.Namespace, corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Pairs a second of one process, of two that share a step, and of two that do not know each other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: dict[str, list[float]] = {"1 process": [], "2 processes": [], "2 trainings of their own": []}
    for turn in range(options.repeats):
        for name in found:
            places = [folder / f"{name[:1]}-{turn}-{name[-3:]}-{i}" for i in range(2 if name.endswith("own") else 1)]
            count = 2 if name == "2 processes" else 1
            started = [
                subprocess.Popen(
                    command(corpus, place, options, count),
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
                for place in places
            ]
            for process in started:
                _, said = process.communicate()
                if process.returncode:
                    raise SystemExit(f"{name} failed:\n{said.decode()[-2000:]}")
            found[name].append(rates(places))
    one, two, own = (statistics.median(values) for values in found.values())
    print(f"{options.model}, {options.batch_size} pairs a process, one thread each, {options.precision}")
    print(f"{'':28} {'pairs/s':>8} {'of 1 process':>13} {'of 2 on their own':>18}")
    print(f"{'1 process':28} {one:8.1f} {1:13.2f}")
    print(f"{'2 trainings of their own':28} {own:8.1f} {own / one:13.2f} {1:18.2f}")
    print(f"{'2 processes of one training':28} {two:8.1f} {two / one:13.2f} {two / own:18.2f}", flush=True)
    return [
        {"processes": 1, "pairs_per_second": one},
        {"processes": 2, "pairs_per_second": two, "of_one": two / one, "of_two_alone": two / own},
    ]


def trainer_for(options: argparse.Namespace, corpus: Path, folder: Path, batch: int) -> Trainer:
    """A trainer whose step is timed."""
    data = {"corpus": str(corpus), "batch_size": batch, "workers": 0}
    layers = {
        "model": {"reference": options.model},
        "data": data,
        "objective": {"name": "psd"},
        "schedule": {"steps": 1000},
    }
    settings = build(TrainSettings, {**layers, "device": "cpu", "precision": options.precision})
    trainer = prepare(Plan(settings, folder, keep_features=False), World())
    trainer.model.train()
    return trainer


def of_image_size(trainer: Trainer, size: int) -> None:
    """Give the trainer's image tower another input size: the same architecture, untrained."""
    config = deepcopy(trainer.model.config)
    config["vision_cfg"]["image_size"] = size
    other = build_model(config, trainer.model.preprocess.to_open_clip())
    trainer.model.net.visual = other.net.visual.to(memory_format=torch.channels_last)
    trainer.model.__post_init__()
    trainer.encoder = TowerEncoder(trainer.model, trainer.encoder.dtype)  # type: ignore[union-attr]
    trainer.__post_init__()


def batch_of(pairs: int, size: int, tokens: int, vocabulary: int) -> Batch:
    """Random pixels and tokens; the last token is the largest, where texts are pooled."""
    text = torch.randint(1, vocabulary - 2, (pairs, tokens))
    text[:, -1] = vocabulary - 1
    rows = torch.arange(pairs)
    return Batch(
        0, torch.randint(0, 256, (pairs, size, size, 3), dtype=torch.uint8), text, rows, rows, torch.zeros_like(rows)
    )


def growth(options: argparse.Namespace, corpus: Path, folder: Path) -> list[dict[str, Any]]:
    """Milliseconds of a step as one size grows and the others stay."""
    torch.set_num_threads(1)
    model = open_model(options.model)
    size, tokens, words = model.preprocess.size, 16, model.config["text_cfg"]["vocab_size"]
    rows = []
    print(f"\n{'':12} {'':>6} {'ms':>9} {'of the smallest':>16}")
    for name, values in GROWTH.items():
        trainers, batches = {}, {}
        for value in values if not options.quick else values[:2]:
            if name == "text tokens" and value > model.text.context_length:
                continue
            pairs = value if name == "batch" else options.batch_size
            trainers[value] = trainer_for(options, corpus, folder / f"{name[:1]}{value}", pairs)
            if name == "image size":
                of_image_size(trainers[value], value)
            sides, length = value if name == "image size" else size, value if name == "text tokens" else tokens
            batches[value] = batch_of(pairs, sides, length, words)
        times: dict[int, list[float]] = {value: [] for value in trainers}
        for turn in range(options.repeats + 1):
            for value, trainer in trainers.items():
                began = time.perf_counter()
                trainer.step(batches[value], diagnostics=False)
                if turn:
                    times[value].append(time.perf_counter() - began)
        first = statistics.median(next(iter(times.values())))
        for value, measured in times.items():
            seconds = statistics.median(measured)
            rows.append({"what": name, "value": value, "seconds": seconds, "of_smallest": seconds / first})
            print(f"{name:12} {value:6} {seconds * 1e3:9,.0f} {seconds / first:16.2f}", flush=True)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, one turn: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--model", help="an open_clip architecture; default ViT-S-32-alt")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs a process")
    parser.add_argument("--repeats", type=int, help="turns; default 3")
    parser.add_argument("--lines", type=int, default=4, help="lines of the log that count, of 4 steps each")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    options.model = options.model or ("tiny" if options.quick else "ViT-S-32-alt")
    options.repeats = options.repeats or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="softclip-scaling-") as name:
        corpus = Path(name) / "corpus"
        generate_corpus(corpus, pairs=max(512, 4 * options.batch_size), noise=0.3, seed=0, per_class=1)
        weak = weak_scaling(options, corpus, Path(name))
        grown = growth(options, corpus, Path(name))
    if options.json:
        facts = {"benchmark": "scaling", "model": options.model, "device": processor_name(), "torch": torch.__version__}
        document = {**facts, "pairs_a_process": options.batch_size, "weak_scaling": weak, "growth": grown}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
