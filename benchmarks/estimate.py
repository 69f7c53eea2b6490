"""`softclip train --estimate` beside what a run really takes: peak memory and seconds a step.

    python benchmarks/estimate.py [--quick] [--json FILE] [--models tiny RN50] [--threads N]

Each row is a process of its own, on pairs drawn for it. Memory is the high-water mark of the resident set over building the model and
four of the trainer's steps, above what was resident before the model was built (Python and its libraries). A step's time is the median
of those after the first. The time is estimated in the same process right afterwards, so that both see the machine equally busy. --usual
prints the estimates for usual models and batches instead, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from softclip_cli.config import build
from softclip_cli.resources import resident, size
from softclip_cli.training.estimate import LOADED_LATER, estimate
from softclip_cli.training.run_folder import processor_name
from softclip_cli.training.settings import TrainSettings

CASES = {"tiny": (64, 256), "ViT-S-32-alt": (16, 48), "ViT-B-32": (8, 24), "RN50": (4, 12)}
USUAL = {"ViT-B-32": (256, 1024), "ViT-B-16": (256, 1024), "ViT-L-14": (64, 256), "RN50": (256, 1024)}
STEPS = 3


def settings_for(model: str, batch: int, precision: str, corpus: str, micro: int = 0) -> TrainSettings:
    """The settings of a run."""
    data = {"corpus": corpus, "batch_size": batch, "micro_batch": micro, "workers": 0}
    layers = {"model": {"reference": model}, "data": data, "objective": {"name": "psd"}, "schedule": {"steps": STEPS}}
    return build(TrainSettings, {**layers, "device": "cpu", "precision": precision})


def measure(model: str, batch: int, precision: str, corpus: str, folder: Path) -> dict[str, Any]:
    """One row; call it in a fresh process."""
    from softclip_cli.training.distributed import World
    from softclip_cli.training.start import Plan, prepare

    settings = settings_for(model, batch, precision, corpus)
    before = resident() or 0
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    trainer = prepare(Plan(settings, folder / "run", keep_features=False), World())
    trainer.model.train()
    source = trainer.source(0, STEPS)
    times = []
    for _ in range(STEPS):
        found = next(source)
        began = time.perf_counter()
        trainer.step(found, diagnostics=False)
        times.append(time.perf_counter() - began)
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    expected = estimate(settings)
    bytes_expected = expected.total - expected.memory["Python and its libraries"] + LOADED_LATER
    seconds = expected.seconds["towers"] + expected.seconds["update"]
    bytes_measured, seconds_measured = peak * 1024 - before, statistics.median(times[1:])
    return {
        "model": model,
        "batch_size": batch,
        "precision": precision,
        "text_tokens": expected.run["text_tokens"],
        "estimated_bytes": bytes_expected,
        "measured_bytes": bytes_measured,
        "memory_ratio": bytes_expected / bytes_measured,
        "estimated_seconds": seconds,
        "measured_seconds": seconds_measured,
        "time_ratio": seconds / seconds_measured,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    name = f"{row['model']:14} {row['batch_size']:5} {row['precision']}"
    memory = f"{row['estimated_bytes'] / 2**20:8,.0f} {row['measured_bytes'] / 2**20:8,.0f} {row['memory_ratio']:6.2f}"
    seconds = f"{row['estimated_seconds']:8.3f} {row['measured_seconds']:8.3f} {row['time_ratio']:6.2f}"
    return f"{name} {memory}   {seconds}"


def usual(corpus: str) -> list[dict[str, Any]]:
    """Estimates for usual models and batches, bf16, one process; nothing is measured."""
    rows = []
    print(
        f"{'model':10} {'batch':>5} {'micro':>5} {'GFLOPs a pair':>13} {'state':>9} {'working':>9} {'all':>9} {'checkpoint':>10}"
    )
    for model, batches in USUAL.items():
        for batch in batches:
            for micro in (0, 64):
                found = estimate(settings_for(model, batch, "bf16", corpus, micro), timed=False)
                state = sum(found.memory.get(name, 0) for name in ("weights", "gradients", "optimiser"))
                step = found.memory["activations and loss"]
                row = {"model": model, "batch_size": batch, "micro_batch": micro, "flops_a_pair": found.flops / batch}
                row |= {
                    "state_bytes": state,
                    "step_bytes": step,
                    "bytes": state + step,
                    "checkpoint_bytes": found.checkpoint["each"],
                }
                rows.append(row | {"sharded": found.sharded})
                sizes = f"{size(state):>9} {size(step):>9} {size(state + step):>9} {size(found.checkpoint['each']):>10}"
                print(f"{model:10} {batch:5} {micro or '–':>5} {found.flops / batch / 1e9:13.1f} {sizes}", flush=True)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model alone: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--models", nargs="+", choices=CASES, help="default: all")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")
    parser.add_argument("--usual", action="store_true", help="estimates for usual models and batches")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.row:
        print(json.dumps(measure(**json.loads(options.row, object_hook=_with_path))))
        return
    with tempfile.TemporaryDirectory(prefix="softclip-estimate-") as name:
        from softclip_cli.data.generated.generate import generate_corpus

        corpus = str(Path(name) / "corpus")
        pairs = max(max(sizes) for sizes in (USUAL if options.usual else CASES).values())
        generate_corpus(Path(corpus), pairs=pairs, noise=0.3, seed=0, per_class=1)
        rows = usual(corpus) if options.usual else compared(options, corpus, name)
    if options.json:
        facts = {
            "benchmark": "estimate",
            "device": processor_name(),
            "threads": options.threads,
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


def compared(options: argparse.Namespace, corpus: str, folder: str) -> list[dict[str, Any]]:
    """Estimated and measured, a row for each model, batch and precision."""
    rows = []
    print(f"{'':25} {'MiB':>8} {'measured':>8} {'ratio':>6}   {'s':>8} {'measured':>8} {'ratio':>6}")
    for model in ["tiny"] if options.quick else options.models or CASES:
        for batch in CASES[model]:
            for precision in options.precisions:
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    row = {"model": model, "batch": batch, "precision": precision, "corpus": corpus, "folder": place}
                    command = [sys.executable, __file__, "--threads", str(options.threads), "--row", json.dumps(row)]
                    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(ended.stdout))
                print(line(rows[-1]), flush=True)
    return rows


def _with_path(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"folder": Path(row["folder"])}


if __name__ == "__main__":
    main()
