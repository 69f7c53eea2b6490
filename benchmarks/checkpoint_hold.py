"""How long a checkpoint holds up the training step: written in the step, or beside it.

    python benchmarks/checkpoint_hold.py [--quick] [--json FILE] [--model REF] [--folder DIR]

The trainer's own checkpoint (weights, moving average, optimiser's state) is written to the same disk in both ways, taking turns; the median
of the turns counts. "in the step": files are written, hashed and renamed before the next step. "beside": the step waits for the copy in the
host's memory, whose size is shown (there is never more than one). The last column is what a step takes while a checkpoint is being
written, beside one while none is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from softclip_cli.config import build
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.training import checkpoint
from softclip_cli.training.distributed import World
from softclip_cli.training.run_folder import processor_name
from softclip_cli.training.saving import copied
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare
from softclip_cli.training.trainer import Trainer

TARGET = 5.0  # times shorter than in the step


def make_trainer(options: argparse.Namespace, folder: Path) -> Trainer:
    """A trainer with an EMA teacher that has made a step, so that all its state is there."""
    generate_corpus(folder / "corpus", pairs=64, noise=0.3, seed=0, per_class=1)
    settings = build(
        TrainSettings,
        {
            "model": {"reference": options.model},
            "data": {"corpus": str(folder / "corpus"), "batch_size": 16, "workers": 0},
            "objective": {"name": "psd", "teacher": "ema"},
            "schedule": {"steps": 1000},
            "device": options.device,
        },
    )
    trainer = prepare(Plan(settings, folder / "run"), World())
    trainer.model.train()
    return trainer


def measure(trainer: Trainer, turns: int) -> dict[str, Any]:
    """Medians of both ways, and the memory of one."""
    batch = next(iter(trainer.source(0, 1)))
    facts = {"architecture": trainer.model.config, "model": trainer.model.name}

    def step() -> float:
        began = time.perf_counter()
        trainer.step(batch, diagnostics=False)
        return time.perf_counter() - began

    step()
    copies = {t.data_ptr(): t.nbytes for file in copied(trainer.state.tensors()).values() for t in file.values()}
    within, beside, whole, quiet, busy = [], [], [], [], []
    for turn in range(turns + 1):
        began = time.perf_counter()
        checkpoint.save(trainer.checkpoints, 1, trainer.model, trainer.state.tensors(), facts)
        within.append(time.perf_counter() - began)
        quiet.append(step())
        trainer.done = 2
        began = time.perf_counter()
        trainer._save()
        beside.append(time.perf_counter() - began)
        busy.append(step())
        trainer.writer.finish()
        whole.append(time.perf_counter() - began)
        if not turn:  # the first turn warms up
            for times in (within, beside, whole, quiet, busy):
                times.clear()
    path = trainer.checkpoints / checkpoint.folder_name(2)
    median = {
        name: statistics.median(times)
        for name, times in (("within", within), ("beside", beside), ("whole", whole), ("quiet", quiet), ("busy", busy))
    }
    return {
        "checkpoint_bytes": sum(file.stat().st_size for file in path.iterdir()),
        "seconds_in_the_step": median["within"],
        "seconds_beside": median["beside"],
        "seconds_until_on_the_disk": median["whole"],
        "ratio": median["within"] / median["beside"],
        "memory_bytes": sum(copies.values()),
        "step_while_writing": median["busy"] / median["quiet"],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, few turns: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--model", help="model reference; default ViT-B-32")
    parser.add_argument("--folder", type=Path, help="where to write; default the system's folder for temporary files")
    parser.add_argument("--turns", type=int, help="turns of each; default 5")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    options.model = options.model or ("tiny" if options.quick else "ViT-B-32")
    with tempfile.TemporaryDirectory(prefix="softclip-hold-", dir=options.folder) as name:
        trainer = make_trainer(options, Path(name))
        row = {"model": options.model, **measure(trainer, options.turns or (2 if options.quick else 5))}
    print(
        f"{'model':14} {'MB':>7} {'in the step s':>14} {'beside s':>9} {'ratio':>6} {'on disk s':>10} {'memory MB':>10} {'step':>6}"
    )
    print(
        f"{row['model']:14} {row['checkpoint_bytes'] / 1e6:7,.0f} {row['seconds_in_the_step']:14.3f} {row['seconds_beside']:9.3f} "
        f"{row['ratio']:6.1f} {row['seconds_until_on_the_disk']:10.3f} {row['memory_bytes'] / 1e6:10,.0f} {row['step_while_writing']:5.2f}×"
    )
    if options.json:
        document = {
            "benchmark": "checkpoint_hold",
            "device": torch.cuda.get_device_name() if options.device == "cuda" else processor_name(),
            "torch": torch.__version__,
            "rows": [row],
            "targets": [
                {
                    "name": "shorter hold of the step",
                    "limit": TARGET,
                    "ratio": row["ratio"],
                    "reached": row["ratio"] >= TARGET,
                }
            ],
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
