"""The optimiser and the course of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from softclip_cli.training.settings import OptimizerSettings, ScheduleSettings


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW or SGD over the trainable parameters, weight decay only on those of two or more dimensions.

    Norms, biases and the logit scale have fewer dimensions and are left alone (methods.md, `clip`). A group's `places` number its
    parameters in a checkpoint: first all that decay, then the others, whether sharded or not.
    """
    trainable = [parameter for _, parameter in named if parameter.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    plain = [p for p in trainable if p.ndim < 2]
    groups: list[dict[str, Any]] = []
    first = 0
    for params, decay in ((decayed, settings.weight_decay), (plain, 0.0)):
        numbered = list(enumerate(params, first))
        first += len(params)
        # Sharded parameters (DTensor) and whole ones cannot share a fused step, so they are in groups of their own.
        for sharded in (False, True):
            chosen = [(place, p) for place, p in numbered if hasattr(p, "to_local") == sharded]
            if chosen:
                places, parameters = zip(*chosen, strict=True)
                groups.append({"params": list(parameters), "weight_decay": decay, "places": list(places)})
    fused = all(p.device.type in ("cpu", "cuda", "mps") for p in trainable)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def warmup_steps(settings: ScheduleSettings, steps: int) -> int:
    """Length of the warm-up in steps."""
    return round(settings.warmup * steps) if settings.warmup < 1 else min(int(settings.warmup), steps)


def learning_rate(step: int, steps: int, peak: float, settings: ScheduleSettings) -> float:
    """The learning rate of a step counted from 0: linear warm-up, then cosine to `final_lr` or constant."""
    warmup = warmup_steps(settings, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.decay == "constant":
        return peak
    share = (step - warmup) / max(1, steps - warmup)
    return settings.final_lr + (peak - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * share))
