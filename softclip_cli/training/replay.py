"""How long a step takes here: the operators of a traced step, run one by one on this device for a second or two.

Data-sheet rates are for nobody's shapes. Instead the operators that must take most of the time are run with tensors of the very shapes that
the step has, and counted as often as they occur; what is left takes its share by FLOPs and bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from softclip_cli.training.step_trace import Like, Operator

ASSUMED_FLOPS, ASSUMED_BYTES = 1e11, 1e10  # a second; only their ratio matters, for what is not measured
LARGEST = 1 << 30  # bytes: larger operators are left to their share
COPIED = 64 << 20


@dataclass(frozen=True)
class Measured:
    """What running operators found.

    Attributes:
        seconds: of all operators of the trace, the scaled ones scaled.
        covered: share of them that was run, by what they were assumed to cost.
        flops_per_second: of all that was run; what this device gives to this model.
        bytes_per_second: of a copy, read and written.
    """

    seconds: float
    covered: float
    flops_per_second: float
    bytes_per_second: float


def replay(operators: list[Operator], times: list[float], device: torch.device, budget: float = 2.0) -> Measured:
    """Estimate the seconds of a step.

    Args:
        operators: of the trace.
        times: how often each one counts (its count, scaled to the batch of the run).
        device: to run on.
        budget: seconds to spend, about.
    """
    bandwidth = copy_rate(device)
    order = sorted(range(len(operators)), key=lambda i: -times[i] * assumed(operators[i]))
    began = time.perf_counter()
    seconds = expected = flops = 0.0
    rest = 0.0
    for i in order:
        operator, cost = operators[i], times[i] * assumed(operators[i])
        spent = None
        if time.perf_counter() - began < budget and operator.traffic <= LARGEST:
            spent = run_one(operator, device)
        if spent is None:
            rest += cost
            continue
        seconds += times[i] * spent
        expected += cost
        flops += times[i] * operator.flops
    if not expected:
        return Measured(rest, 0.0, ASSUMED_FLOPS, bandwidth)
    whole = seconds * (1 + rest / expected)
    return Measured(whole, expected / (expected + rest), flops / seconds, bandwidth)


def assumed(operator: Operator) -> float:
    """Seconds of one call, before anything is measured."""
    return operator.flops / ASSUMED_FLOPS + operator.traffic / ASSUMED_BYTES


def run_one(operator: Operator, device: torch.device) -> float | None:
    """Seconds of one call, the lowest of three; None where it cannot be called with invented values."""
    try:
        args, kwargs = (tree_map(lambda leaf: _real(leaf, device), part) for part in (operator.args, operator.kwargs))
        best = None
        with torch.no_grad():
            for turn in range(3):
                _wait(device)
                began = time.perf_counter()
                operator.call(*args, **kwargs)
                _wait(device)
                spent = time.perf_counter() - began
                if turn and (best is None or spent < best):
                    best = spent
                if turn and spent > 0.1:
                    break
        return best
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = Operator(torch.ops.aten.copy_.default, (target, source), {})
    return 2 * COPIED / (run_one(copied, device) or 1.0)


def _real(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, Like):
        return leaf.make(device)
    return device if isinstance(leaf, torch.device) else leaf


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
