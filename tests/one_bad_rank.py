"""One of two processes of a run: the second alone sees bad gradients, and that its time is up. Started by test_skipping.py.

RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=PORT python one_bad_rank.py CORPUS RUN
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from softclip_cli.config import build
from softclip_cli.training import stepper
from softclip_cli.training.distributed import joined
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare

SETTINGS = {
    "model": {"reference": "tiny"},
    "data": {"batch_size": 16, "workers": 0},
    "schedule": {"steps": 8},
    "optimizer": {"max_skipped": 2},
    "log": {"every": 1},
    "eval": {"every": 100},
    "checkpoint": {"every": 2, "keep": 9},
    "device": "cpu",
    "precision": "fp32",
}


def main(corpus: str, run: Path) -> None:
    """Train; the second process spoils its gradient at the data's positions 2, 5 and 6, and stops after step 7."""
    torch.set_num_threads(1)
    original = stepper.forward_backward
    with joined("cpu") as world:
        made = prepare(Plan(build(TrainSettings, SETTINGS, {"data": {"corpus": corpus}}), run), world)

        def step(encoder: Any, objective: Any, batch: Any, *rest: Any) -> Any:
            output = original(encoder, objective, batch, *rest)
            if not world.first and batch.step in (2, 5, 6):
                next(p for p in encoder.module.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")
            return output

        stepper.forward_backward = step
        made.time_limit.over = lambda: not world.first and made.done == 7  # type: ignore[method-assign]
        made.run()
        digest = sum(float(p.double().abs().sum()) for p in made.stepper.trainable)
        print(made.done, made.stepper.guard.skipped, made.rollbacks.count, made.data_offset, repr(digest))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
