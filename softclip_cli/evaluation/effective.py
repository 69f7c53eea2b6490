"""Effective robustness: how far a model is above the line through standard models (Taori et al. 2020).

The line is fitted in logits: logit(accuracy on the shifted set) against logit(accuracy on the reference).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.intervals import clopper_pearson, difference_bounds, metric


@dataclass(frozen=True)
class Point:
    """A model's accuracy, as shares, on the reference set and on the shifted set."""

    model: str
    reference: float
    shift: float


@dataclass(frozen=True)
class Line:
    """logit(shift) = slope · logit(reference) + intercept.

    Attributes:
        points: the models that it is fitted to.
        left_out: names of models with an accuracy of 0 or 1, whose logit is infinite.
        spread: the standard deviation of the points' logits around the line (N − 2 in the denominator; 0 for two points).
        source: where the points are from, in words.
    """

    slope: float
    intercept: float
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()
    spread: float = 0.0
    source: str = ""

    def predict(self, reference: float) -> float:
        """The accuracy that a standard model of this reference accuracy has on the shifted set."""
        return expit(self.slope * logit(reference) + self.intercept)

    def reaches(self, reference: float) -> bool:
        """Whether a reference accuracy is within those of the models: outside, the line is extrapolated."""
        known = [point.reference for point in self.points]
        return min(known) <= reference <= max(known)

    def facts(self) -> dict[str, Any]:
        """What a result states of it."""
        return {
            "slope": self.slope,
            "intercept": self.intercept,
            "spread": self.spread,
            "source": self.source,
            "models": len(self.points),
            "left_out": list(self.left_out),
            "points": [[point.model, point.reference, point.shift] for point in self.points],
        }


def logit(share: float) -> float:
    """ln(share / (1 − share)); infinite at 0 and 1."""
    if share <= 0 or share >= 1:
        return -math.inf if share <= 0 else math.inf
    return math.log(share) - math.log1p(-share)


def expit(value: float) -> float:
    """The inverse of `logit`."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    power = math.exp(value)
    return power / (1 + power)


def fit_line(points: Sequence[Point], source: str = "") -> Line:
    """The least-squares line through standard models, in logits.

    Raises:
        DataError: fewer than two models of different reference accuracy, both accuracies above 0 and below 1.
    """
    kept = tuple(point for point in points if 0 < point.reference < 1 and 0 < point.shift < 1)
    left_out = tuple(point.model for point in points if point not in kept)
    if len({point.reference for point in kept}) < 2:
        raise DataError(
            f"no line through {len(kept)} model{'' if len(kept) == 1 else 's'}",
            "effective robustness needs at least two standard models of different reference accuracy"
            + (f"; left out for an accuracy of 0 or 1: {', '.join(left_out)}" if left_out else ""),
            "name more: --baseline RUN (repeatable) or --baseline-table FILE.csv",
        )
    across = np.array([logit(point.reference) for point in kept])
    up = np.array([logit(point.shift) for point in kept])
    centred = across - across.mean()
    slope = float(centred @ up / (centred @ centred))
    intercept = float(up.mean() - slope * across.mean())
    rest = up - slope * across - intercept
    spread = float(np.sqrt(rest @ rest / (len(kept) - 2))) if len(kept) > 2 else 0.0
    return Line(slope, intercept, kept, left_out, spread, source)


def effective_robustness(line: Line, reference: tuple[int, int], shift: tuple[int, int]) -> dict[str, Any]:
    """A metric in percentage points: accuracy on the shifted set minus what the line predicts from the reference.

    Its interval accounts for both accuracies: the exact interval of the shifted one, and the line at the ends of the
    exact interval of the reference, which are added in quadrature (`difference_bounds`: different images are independent).
    The line itself is taken as given.

    Args:
        line: through standard models.
        reference, shift: number of hits and of images.
    """
    first, second = shift[0] / shift[1], line.predict(reference[0] / reference[1])
    low, high = sorted(line.predict(end) for end in clopper_pearson(*reference))
    bounds = difference_bounds(first, clopper_pearson(*shift), second, (low, high))
    return _points(first - second, shift[1], bounds)


def difference_in_points(first: tuple[int, int], second: tuple[int, int]) -> dict[str, Any]:
    """A metric in percentage points: one accuracy minus another, each given as hits and images.

    The interval takes them as independent. For two models on the same images it is too wide, as their hits go together.
    """
    shares = first[0] / first[1], second[0] / second[1]
    bounds = difference_bounds(shares[0], clopper_pearson(*first), shares[1], clopper_pearson(*second))
    return _points(shares[0] - shares[1], first[1], bounds)


def _points(value: float, n: int, bounds: tuple[float, float]) -> dict[str, Any]:
    ends = (100 * bounds[0], 100 * bounds[1])
    return metric(100 * value, n, ends, interval="from two Clopper-Pearson intervals, 95 %", unit="points")


def exact_metric(hits: int, n: int) -> dict[str, Any]:
    """A share with its Clopper–Pearson interval."""
    return metric(hits / n, n, clopper_pearson(hits, n), interval="Clopper-Pearson 95 %")


def hits_of(entry: dict[str, Any]) -> tuple[int, int]:
    """Hits and images of a metric that is a share of images."""
    return round(entry["value"] * entry["n"]), entry["n"]
