"""How much of the target is soft at a point of the training, and which rows of a batch are."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from softclip_cli.objectives.settings import ResolvedObjective


def alpha_at(choice: ResolvedObjective, progress: float) -> float:
    """The share α of the soft targets at `progress` in [0, 1] of the training.

    It moves from `alpha_start` to `alpha_end` over the first `alpha_warmup` of the training and then stays;
    `constant` is `alpha_end` all the time.
    """
    if not choice.has_soft_targets:
        return 0.0
    if choice.alpha_schedule == "constant":
        return choice.alpha_end
    way = 1.0 if choice.alpha_warmup == 0 else min(1.0, max(0.0, progress) / choice.alpha_warmup)
    if choice.alpha_schedule == "cosine":
        way = (1 - math.cos(math.pi * way)) / 2
    return choice.alpha_start + (choice.alpha_end - choice.alpha_start) * way


def soft_rows(count: int, alpha: float, *, seed: int, step: int) -> Tensor:
    """Which pairs of a batch are "unaligned" and take the soft target: a random αN of them, rounded.

    It follows from (seed, step) and the *global* batch alone: every process draws the same rows, whatever their number.

    Returns:
        (count,) bool, on the CPU.
    """
    generator = torch.Generator().manual_seed(random.Random(f"softclip partition {seed} {step}").getrandbits(63))
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=generator)[: math.floor(alpha * count + 0.5)]] = True
    return chosen
