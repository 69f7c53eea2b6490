"""What folding is worth on a CPU: a teacher's forward pass with and without it, interleaved, beside its student's.

python benchmarks/teacher_forward.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from softclip_cli import model as model_module
from softclip_cli.folding import folded
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.registry import open_model
from softclip_cli.training.encoder import TowerEncoder


def main() -> None:
    """Print one table; the JSON holds the same rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds, pairs = (2, 8) if options.quick else (7, 32)
    rows = []
    for name in ("ViT-S-32-alt",) if options.quick else ("ViT-S-32-alt", "ViT-B-32"):
        model = open_model(name, seed=0).train()
        size = model.preprocess.size
        pixels = torch.randint(0, 256, (pairs, size, size, 3), dtype=torch.uint8)
        tokens = model.tokenize(["a photo of a red square beside two small blue circles"] * pairs)
        for dtype in (torch.bfloat16, torch.float32):
            student = TowerEncoder(model, dtype)
            teacher = student.like(EmaTeacher(model.net).module)

            def of_teacher(
                context: Callable[..., object], teacher: TowerEncoder = teacher, views: tuple = (pixels, tokens)
            ) -> None:
                model_module.folded = context
                with torch.no_grad():
                    teacher(*views)

            contenders: dict[str, Callable[[], object]] = {
                "student": lambda student=student, views=(pixels, tokens): student(*views),
                "plain": lambda run=of_teacher: run(lambda device: nullcontext()),
                "folded": lambda run=of_teacher: run(folded),
            }
            seconds: dict[str, list[float]] = {key: [] for key in contenders}
            for turn in range(rounds + 1):
                for key, run in contenders.items():
                    began = time.process_time()
                    run()
                    if turn:
                        seconds[key].append(time.process_time() - began)
            found = {key: statistics.median(values) for key, values in seconds.items()}
            kind = str(dtype).removeprefix("torch.")
            rows.append(
                {"model": name, "dtype": kind, "pairs": pairs, **found, "ratio": found["folded"] / found["plain"]}
            )
            print(
                f"{name:13} {kind:9} {pairs} pairs, CPU ms: student {found['student'] * 1e3:6.0f}  teacher plain "
                f"{found['plain'] * 1e3:6.0f}  folded {found['folded'] * 1e3:6.0f}  ratio {rows[-1]['ratio']:.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
