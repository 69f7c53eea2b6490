"""Confidence intervals: Wilson's or the exact one for a share of independent trials, the bootstrap for means of other things."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000
CHUNK = 16_777_216  # numbers held at once while resampling


def metric(
    value: float,
    n: int,
    bounds: tuple[float, float] | None = None,
    *,
    interval: str = "",
    unit: str = "share",
) -> dict[str, Any]:
    """One entry of a result's `metrics`.

    Args:
        value: the number.
        n: how many independent things it is taken over.
        bounds: the ends of its 95 % interval, where one is made.
        interval: which kind of interval it is.
        unit: "share" (0 to 1), "points" or "rank".
    """
    entry: dict[str, Any] = {"value": float(value)}
    if bounds is not None:
        entry |= {"low": float(bounds[0]), "high": float(bounds[1])}
    entry |= {"n": int(n), "unit": unit}
    return entry | ({"interval": interval} if bounds is not None else {})


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval for a share of `n` independent trials (Wilson, JASA 1927)."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, square = hits / n, z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval for a share of `n` independent trials (Clopper and Pearson, Biometrika 1934)."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def t_bounds(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's t interval of the mean of a few independent values (seeds, draws); None for fewer than two."""
    from scipy import stats

    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        return None
    mean = float(sample.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(sample) - 1) * sample.std(ddof=1)) / math.sqrt(len(sample))
    return mean - half, mean + half


def difference_bounds(
    first: float, first_bounds: tuple[float, float], second: float, second_bounds: tuple[float, float]
) -> tuple[float, float]:
    """The interval of `first` − `second`, two independent estimates, from the interval of each.

    The distances to the ends are added in quadrature (Zou and Donner 2008, "MOVER"; with two Wilson intervals it is
    Newcombe 1998, method 10). Nothing is assumed of the estimates but that each interval is right.
    """
    below = math.hypot(first - first_bounds[0], second_bounds[1] - second)
    above = math.hypot(first_bounds[1] - first, second - second_bounds[0])
    return first - second - below, first - second + above


def share_metric(hits: np.ndarray) -> dict[str, Any]:
    """A metric from 0/1 outcomes of independent trials, with Wilson's interval."""
    total = float(np.sum(hits))
    return metric(total / len(hits), len(hits), wilson(total, len(hits)), interval="Wilson 95 %")


def bootstrap_class_mean(hits: np.ndarray, totals: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean of class-wise shares, images being resampled within their class.

    Resampling 0/1 outcomes with replacement is drawing from a binomial distribution, which is what is done.

    Args:
        hits, totals: (C,) numbers of correct and of all images of each class; classes without images are left out.
    """
    present = totals > 0
    rng = np.random.default_rng(seed)
    drawn = rng.binomial(totals[present], hits[present] / totals[present], size=(RESAMPLES, int(present.sum())))
    return ends((drawn / totals[present]).mean(axis=1))


def bootstrap_mean(values: np.ndarray, weights: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Bootstrap samples of a (weighted) mean over units that are resampled whole.

    Args:
        values: (N,) or (N, K), one row a unit: for a weighted mean, the unit's sum.
        weights: (N,) how many things a unit's sum is over; None for 1 each.

    Returns:
        (RESAMPLES,) or (RESAMPLES, K).
    """
    rng = np.random.default_rng(seed)
    values = values.astype(np.float64)
    weights = np.ones(len(values)) if weights is None else weights.astype(np.float64)
    samples = []
    rows = max(1, CHUNK // len(values))
    for start in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - start)
        picks = rng.integers(0, len(values), size=(count, len(values)))
        counts = np.empty((count, len(values)))
        for sample, row in zip(counts, picks, strict=True):
            sample[:] = np.bincount(row, minlength=len(values))
        total = counts @ weights
        samples.append((counts @ values) / (total if values.ndim == 1 else total[:, None]))
    return np.concatenate(samples)


def ends(samples: np.ndarray) -> tuple[float, float]:
    """The percentile interval of bootstrap samples."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
