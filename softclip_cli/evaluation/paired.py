"""Is a difference noise? Paired bootstrap, McNemar's exact test, intervals over seeds, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from softclip_cli.evaluation.intervals import LEVEL, difference_bounds, ends, t_bounds
from softclip_cli.evaluation.item_metrics import Items

DRAWS = 4000
CHUNK = 1 << 22  # resampled items held at once


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval and two-sided p value (None where neither can be had)."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def resampled(columns: np.ndarray, draws: int, seed: int = 0, strata: np.ndarray | None = None) -> np.ndarray:
    """Sums of columns over units drawn with replacement, the same units for all columns.

    Args:
        columns: float64 (N, C).
        draws: how many resamples of N units.
        seed: of NumPy's default generator.
        strata: int (N,): units are drawn within their stratum, which keeps its size; None: from all.

    Returns:
        float64 (draws, C).
    """
    rng = np.random.default_rng(seed)
    count = len(columns)
    if strata is not None:
        order = np.argsort(strata, kind="stable")
        columns = columns[order]
        _, starts, sizes = np.unique(strata[order], return_index=True, return_counts=True)
        start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    parts = []
    rows = max(1, CHUNK // count)
    for done in range(0, draws, rows):
        some = min(rows, draws - done)
        if strata is None:
            picks = rng.integers(0, count, size=(some, count))
        else:
            picks = start + (rng.random((some, count)) * size).astype(np.int64)
        picks += np.arange(some)[:, None] * count
        times = np.bincount(picks.ravel(), minlength=some * count).reshape(some, count)
        parts.append(times.astype(np.float64) @ columns)
    return np.concatenate(parts)


def bootstrap(metrics: Sequence[Items], draws: int = DRAWS, seed: int = 0) -> list[np.ndarray]:
    """Bootstrap samples of several metrics on the same units, which are drawn together: pairs stay pairs.

    Args:
        metrics: of the same N units each, and all with the same strata or none.
        draws: number of resamples.
        seed: of the draws.

    Returns:
        For each metric float64 (draws,).
    """
    places: dict[bytes, int] = {}
    columns: list[np.ndarray] = []

    def place(column: np.ndarray) -> int:
        key = column.tobytes()
        if key not in places:
            places[key] = len(columns)
            columns.append(column)
        return places[key]

    terms = [[(place(top), place(below), factor) for top, below, factor in items.terms] for items in metrics]
    sums = resampled(np.stack(columns, axis=1), draws, seed, metrics[0].strata)
    with np.errstate(invalid="ignore"):  # a resample without any item of a rare kind is no number
        return [sum((factor * sums[:, a] / sums[:, b] for a, b, factor in parts), np.zeros(draws)) for parts in terms]


def from_samples(value: float, samples: np.ndarray) -> Difference:
    """A difference from its bootstrap samples: percentile interval, and the p value that belongs to it.

    p is twice the smaller share of samples on either side of zero, the observed one being counted in (Efron and
    Tibshirani 1993; Davison and Hinkley 1997, section 4.4): it falls below 0.05 about where the interval leaves zero.
    """
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return Difference(value)
    below, above = int((samples <= 0).sum()), int((samples >= 0).sum())
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + len(samples)))
    return Difference(value, *ends(samples), p)


def from_few_samples(value: float, samples: np.ndarray) -> Difference:
    """The same from samples too few for a small p: percentile interval, p by the normal law with the samples' deviation."""
    samples = samples[np.isfinite(samples)]
    if len(samples) < 2:
        return Difference(value)
    deviation = float(samples.std(ddof=1))
    p = (1.0 if value == 0 else 0.0) if deviation == 0 else _two_sided(value / deviation)
    return Difference(value, *ends(samples), p)


def unpaired(first: tuple[float, float, float], second: tuple[float, float, float]) -> Difference:
    """Second minus first from (value, low, high) each, as if from independent samples (`intervals.difference_bounds`).

    For models on the same items, whose errors go together, the interval is too wide: careful, not wrong.
    """
    (a, low_a, high_a), (b, low_b, high_b) = first, second
    value = b - a
    low, high = difference_bounds(b, (low_b, high_b), a, (low_a, high_a))
    towards_zero = value - low if value > 0 else high - value
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    p = 1.0 if value == 0 else 0.0 if towards_zero == 0 else _two_sided(z * value / towards_zero)
    return Difference(value, low, high, p)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test (McNemar 1947, with the binomial distribution).

    Args:
        first, second: bool (N,), hits of two models on the same items.

    Returns:
        How many items only the first and only the second hits, and the two-sided p value.
    """
    from scipy import stats

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    both = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, both).pvalue) if both else 1.0


def over_seeds(values: Sequence[float]) -> Difference:
    """The mean over seeds with Student's t interval; no interval for a single one, and no p value."""
    return Difference(float(np.mean(values)), *(t_bounds(values) or ()))


def seeds_apart(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[Difference, str] | None:
    """Second minus first over seeds, and by which test; None with fewer than two seeds on either side.

    The same seeds on both sides make pairs (paired t test); else Welch's t test.
    """
    from scipy import stats

    if len(first) < 2 or len(second) < 2:
        return None
    value = float(np.mean(list(second.values())) - np.mean(list(first.values())))
    if set(first) == set(second):
        pairs = np.array([second[seed] - first[seed] for seed in first])
        found = over_seeds(pairs.tolist())
        assert found.low is not None
        deviation = float(pairs.std(ddof=1))
        p = (1.0 if value == 0 else 0.0) if deviation == 0 else float(stats.ttest_1samp(pairs, 0).pvalue)
        return Difference(value, found.low, found.high, p), "paired t"
    a, b = list(first.values()), list(second.values())
    if np.std(a) == 0 and np.std(b) == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0), "Welch's t"
    test = stats.ttest_ind(b, a, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    return Difference(value, float(interval.low), float(interval.high), float(test.pvalue)), "Welch's t"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): what is below 0.05 afterwards is so for the whole family.

    NaN stays NaN and does not count.
    """
    order = sorted((place for place, p in enumerate(p_values) if not math.isnan(p)), key=lambda place: p_values[place])
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))
