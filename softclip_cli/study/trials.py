"""Which settings a trial of an objective has: its own, then combinations of a grid or random draws from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from softclip_cli.data.sampler import generator
from softclip_cli.errors import UsageError

Choice = dict[str, Any]
STREAM = 5


def trials(grid: Mapping[str, Any], count: int, draw: int, own: Mapping[str, Any]) -> list[Choice]:
    """At most `count` choices: first none (the row's own settings), then combinations of the grid, drawn without repetition
    where there are more of them. With a range there are always enough.

    Args:
        grid: dotted setting → list of values, or {low, high, log = false}.
        count: of choices.
        draw: seed of the drawing.
        own: what the row itself has of these settings: that combination is no further trial.

    Raises:
        UsageError: a value that is neither a list nor a range.
    """
    for name, values in grid.items():
        if isinstance(values, Mapping):
            _range(name, values)
        elif not isinstance(values, list | tuple) or not values:
            raise UsageError(f"{name} is tried as {values!r}: give a list, or {{low, high, log}}")
    if not grid or count < 2:
        return [{}]
    rng = generator(draw, STREAM)
    if any(isinstance(values, Mapping) for values in grid.values()):
        return [{}, *({name: _draw(values, rng) for name, values in grid.items()} for _ in range(count - 1))]
    whole = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    others = [choice for choice in whole if any(choice[name] != own.get(name) for name in choice)]
    picks = rng.permutation(len(others))[: count - 1]
    return [{}, *(others[place] for place in sorted(picks.tolist()))]


def nested(choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice as a layer of settings."""
    from softclip_cli.config import merge_into

    layer: dict[str, Any] = {}
    for name, value in choice.items():
        part: Any = value
        for key in reversed(name.split(".")):
            part = {key: part}
        merge_into(layer, part)
    return layer


def _range(name: str, values: Mapping[str, Any]) -> tuple[float, float, bool]:
    try:
        low, high, log = float(values["low"]), float(values["high"]), bool(values.get("log", False))
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{name} is tried as {dict(values)!r}: a range has low and high") from None
    if not low < high or (log and low <= 0) or set(values) - {"low", "high", "log"}:
        raise UsageError(f"{name} is tried as {dict(values)!r}: a range has low < high, above 0 where log = true")
    return low, high, log


def _draw(values: Any, rng: Any) -> Any:
    if not isinstance(values, Mapping):
        return values[int(rng.integers(len(values)))]
    low, high, log = _range("", values)
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if log else rng.uniform(low, high)
    return float(f"{value:.4g}")
