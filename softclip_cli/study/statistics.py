"""Means over seeds with intervals, and paired tests against a baseline, corrected for their number."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.errors import DataError, nearest
from softclip_cli.evaluation.intervals import t_bounds
from softclip_cli.evaluation.paired import holm

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Mean:
    """A mean with the ends of its 95 % t interval (Student), which are NaN for a single value."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline at the same noise and data, over the seeds that both have.

    Attributes:
        difference: of the two, row minus baseline; its mean over seeds.
        t_test: p of the paired t test, two-sided; NaN for fewer than two pairs.
        wilcoxon: p of Wilcoxon's signed-rank test (exact for few pairs, where it cannot be below 2 / 2ⁿ).
        t_test_holm, wilcoxon_holm: the same after Holm's correction over all comparisons made together.
    """

    difference: Mean
    t_test: float
    wilcoxon: float
    t_test_holm: float = math.nan
    wilcoxon_holm: float = math.nan


@dataclass(frozen=True)
class Line:
    """An arm of a study at a level.

    Attributes:
        objective, noise, data: which.
        mean: of the metric over seeds; `values` by seed.
        choice: the tuned settings as JSON; "{}" for the row's own.
        seconds, cpu_seconds: of training, mean; `epoch` at which the reported weights were taken, mean.
        comparison: with the baseline; None for itself, or where there is none.
    """

    objective: str
    noise: float
    data: float
    mean: Mean
    values: dict[int, float]
    choice: str
    seconds: float
    cpu_seconds: float
    epoch: float
    comparison: Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """One flat row, for CSV and JSON."""
        row: dict[str, Any] = {
            "objective": self.objective,
            "noise": self.noise,
            "data": self.data,
            "n": self.mean.n,
            "mean": self.mean.value,
            "low": self.mean.low,
            "high": self.mean.high,
        }
        made = self.comparison
        row |= {
            "difference": made.difference.value if made else math.nan,
            "difference_low": made.difference.low if made else math.nan,
            "difference_high": made.difference.high if made else math.nan,
            "pairs": made.difference.n if made else 0,
            "p_t": made.t_test if made else math.nan,
            "p_t_holm": made.t_test_holm if made else math.nan,
            "p_wilcoxon": made.wilcoxon if made else math.nan,
            "p_wilcoxon_holm": made.wilcoxon_holm if made else math.nan,
        }
        row |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "epoch": self.epoch, "choice": self.choice}
        return row


def mean_interval(values: Sequence[float]) -> Mean:
    """The mean with its t interval."""
    return Mean(float(np.mean(values)), *(t_bounds(values) or (math.nan, math.nan)), len(values))


def compare(row: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Paired tests of equal-length samples, the i-th of each being of the same seed."""
    from scipy import stats

    differences = np.asarray(row, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    found = mean_interval(differences.tolist())
    if len(differences) < 2:
        return Comparison(found, math.nan, math.nan)
    if not differences.any():
        return Comparison(found, 1.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of differences that are all the same
        t_test = float(stats.ttest_1samp(differences, 0.0).pvalue)
        wilcoxon = float(stats.wilcoxon(differences).pvalue)
    return Comparison(found, t_test, wilcoxon)


def summarise(table: pd.DataFrame, metric: str, baseline: str, when: str = "last") -> list[Line]:
    """The lines of a report.

    Args:
        table: results of a study.
        metric: a column of it.
        baseline: the arm that the others are compared with, at each level by itself.
        when: "last" step, or "best" epoch by the split for choosing.

    Raises:
        DataError: the results have no such metric, or no such baseline.
    """
    known = metrics_of(table)
    if metric not in known:
        raise DataError(
            f"the results have no metric {metric!r}", "they have " + ", ".join(known), nearest(metric, known)
        )
    part = table[(table["stage"] == "study") & (table["when"] == when)].dropna(subset=[metric])
    arms = list(dict.fromkeys(part["objective"]))
    if baseline not in arms:
        raise DataError(f"the results have no row {baseline!r}", "they have " + ", ".join(arms), "--baseline NAME")
    lines = []
    for (noise, data), level in part.groupby(["noise", "data"], sort=True):
        there = [arm for arm in arms if arm in set(level["objective"])]
        by_seed = {
            arm: dict(zip(rows["seed"], rows[metric], strict=True))
            for arm in there
            for rows in [level[level["objective"] == arm]]
        }
        for arm in there:
            rows, values = level[level["objective"] == arm], by_seed[arm]
            shared = sorted(set(values) & set(by_seed.get(baseline, {})))
            made = None
            # An oracle without noise is its row itself: the same runs are no comparison.
            same = set(rows["key"]) == set(level[level["objective"] == baseline]["key"])
            if arm != baseline and shared and not same:
                made = compare([values[s] for s in shared], [by_seed[baseline][s] for s in shared])
            line = Line(
                arm,
                float(noise),
                float(data),
                mean_interval(list(values.values())),
                {int(seed): float(value) for seed, value in values.items()},
                str(rows["choice"].iloc[0]),
                float(rows["seconds"].mean()),
                float(rows["cpu_seconds"].mean()),
                float(rows["best_epoch"].mean()) if when == "best" else math.nan,
                made,
            )
            lines.append(line)
    return _corrected(lines)


def _corrected(lines: list[Line]) -> list[Line]:
    made = [place for place, line in enumerate(lines) if line.comparison is not None]
    t_tests = holm([lines[place].comparison.t_test for place in made])  # type: ignore[union-attr]
    ranks = holm([lines[place].comparison.wilcoxon for place in made])  # type: ignore[union-attr]
    for place, t_test, rank in zip(made, t_tests, ranks, strict=True):
        before = lines[place].comparison
        assert before is not None
        lines[place] = replace(lines[place], comparison=replace(before, t_test_holm=t_test, wilcoxon_holm=rank))
    return lines


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The metrics that a table has."""
    return [name for name in table.columns if "/" in name]


def default_metric(table: pd.DataFrame, select: str) -> str:
    """What is reported when nobody says: rsum on test, else of another split than the one for choosing, else what is there."""
    known = metrics_of(table)
    ranked = ["test/rsum", *(name for name in known if name.endswith("/rsum") and name != select), select, *known]
    return next((name for name in ranked if name in known), select)


def curves(table: pd.DataFrame, metric: str) -> dict[tuple[str, float, float], list[tuple[float, Mean]]]:
    """Accuracy against compute: (arm, noise, data) → (CPU seconds, metric) after each epoch, over seeds. Empty without curves."""
    found: dict[tuple[str, float, float], list[tuple[float, Mean]]] = {}
    part = table[(table["stage"] == "study") & (table["when"] == "last") & (table["curve"] != "")]
    for (arm, noise, data), rows in part.groupby(["objective", "noise", "data"], sort=False):
        runs = [json.loads(text) for text in rows["curve"]]
        runs = [run for run in runs if run and all(metric in entry for entry in run)]
        epochs = min((len(run) for run in runs), default=0)
        clock = "cpu_seconds" if all("cpu_seconds" in entry for run in runs for entry in run) else "step"
        points = [
            (float(np.mean([run[i][clock] for run in runs])), mean_interval([run[i][metric] for run in runs]))
            for i in range(epochs)
        ]
        if points:
            found[str(arm), float(noise), float(data)] = points
    return found
