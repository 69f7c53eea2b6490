"""What a study's report says of its numbers, against brute force and SciPy's own summaries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from softclip_cli.errors import DataError
from softclip_cli.reports.study_plots import spread
from softclip_cli.study.statistics import compare, curves, default_metric, holm, mean_interval, summarise

SAMPLE = np.array([3.1, -0.4, 2.2, 1.9, 0.7])


def table(values: dict[str, list[float]], noise: float = 0.4) -> pd.DataFrame:
    """Results of rows by seed, with trials and best epochs that do not belong into a report of the last step."""
    rows = []
    for name, several in values.items():
        for seed, value in enumerate(several):
            facts = {"objective": name, "noise": noise, "data": 1.0, "seed": seed, "choice": "{}", "curve": ""}
            facts |= {"seconds": 1.0, "cpu_seconds": 2.0, "best_epoch": 3.0, "key": f"{name}{seed}", "trial": 0}
            for stage, when, shift in (("study", "last", 0), ("study", "best", 7), ("trial", "last", 99)):
                rows.append({**facts, "stage": stage, "when": when, "test/rsum": value + shift, "val/rsum": value})
    return pd.DataFrame(rows)


def test_the_interval_is_students():
    found = mean_interval(SAMPLE.tolist())
    reference = stats.ttest_1samp(SAMPLE, 0).confidence_interval(0.95)
    assert (found.value, found.n) == (pytest.approx(SAMPLE.mean()), 5)
    assert (found.low, found.high) == (pytest.approx(reference.low), pytest.approx(reference.high))
    assert math.isnan(mean_interval([1.0]).low)


def test_paired_tests_against_enumeration():
    baseline = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    made = compare((baseline + SAMPLE).tolist(), baseline.tolist())
    assert made.t_test == pytest.approx(stats.ttest_rel(baseline + SAMPLE, baseline).pvalue)
    # Wilcoxon, exact: every assignment of signs is as likely.
    ranks = stats.rankdata(np.abs(SAMPLE))
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=5)]
    seen, middle = float(ranks[SAMPLE > 0].sum()), ranks.sum() / 2
    assert made.wilcoxon == pytest.approx(np.mean([abs(s - middle) >= abs(seen - middle) for s in sums]))


def test_equal_and_single_pairs():
    same = compare([1.0, 2.0], [1.0, 2.0])
    assert (same.t_test, same.wilcoxon, same.difference.value) == (1.0, 1.0, 0.0)
    assert math.isnan(compare([2.0], [1.0]).t_test)


def test_holms_example_and_bounds():
    # Four hypotheses: 4·0.005, 3·0.01, 2·0.03, 0.04 lifted to the one before it.
    assert holm([0.01, 0.04, math.nan, 0.03, 0.005])[:2] == [pytest.approx(0.03), pytest.approx(0.06)]
    found = holm([0.01, 0.04, math.nan, 0.03, 0.005])
    assert math.isnan(found[2]) and found[3:] == [pytest.approx(0.06), pytest.approx(0.02)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.5):
        rejected = set()
        for step, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[place] * (len(p_values) - step) > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(corrected) if p <= level} == rejected


def test_a_report_takes_the_right_rows_and_pairs_them_by_seed():
    results = pd.concat(
        [table({"clip": [10, 20, 30], "psd": [12, 21, 36]}), table({"clip": [1, 2], "psd": [3, 5, 9]}, 0.0)]
    )
    lines = {(line.objective, line.noise): line for line in summarise(results, "test/rsum", "clip")}
    assert lines["clip", 0.4].mean.value == 20 and lines["clip", 0.4].comparison is None
    made = lines["psd", 0.4].comparison
    assert made.difference.value == 3 and made.t_test == pytest.approx(
        stats.ttest_rel([12, 21, 36], [10, 20, 30]).pvalue
    )
    unpaired = lines["psd", 0.0]
    assert (
        unpaired.mean.n == 3 and unpaired.comparison.difference.n == 2 and unpaired.comparison.difference.value == 2.5
    )
    both = [made.t_test, unpaired.comparison.t_test]
    assert [made.t_test_holm, unpaired.comparison.t_test_holm] == holm(both)
    best = summarise(results, "test/rsum", "clip", "best")
    assert next(line for line in best if line.objective == "clip" and line.noise == 0.4).mean.value == 27


def test_the_same_runs_are_no_comparison():
    results = table({"clip": [1, 2]}, 0.0)
    oracle = results.assign(objective="clip (oracle)")
    assert all(line.comparison is None for line in summarise(pd.concat([results, oracle]), "test/rsum", "clip"))


def test_what_is_not_there_is_named():
    with pytest.raises(DataError, match="no metric 'test/rsun'") as caught:
        summarise(table({"clip": [1]}), "test/rsun", "clip")
    assert "test/rsum" in str(caught.value)
    with pytest.raises(DataError, match="no row 'psd'"):
        summarise(table({"clip": [1]}), "test/rsum", "psd")
    assert default_metric(table({"clip": [1]}), "val/rsum") == "test/rsum"


def test_curves_are_means_over_seeds():
    results = table({"clip": [1, 2]})
    results["curve"] = [
        f'[{{"cpu_seconds": {1 + s}, "val/rsum": {5 + s}}}, {{"cpu_seconds": {3 + s}, "val/rsum": {9 + s}}}]'
        for s in results["seed"]
    ]
    (points,) = curves(results, "val/rsum").values()
    assert [(x, mean.value) for x, mean in points] == [(1.5, 5.5), (3.5, 9.5)]


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted), st.floats(0.01, 0.2))
def test_names_are_moved_apart_as_little_as_needed(places, gap):
    moved = spread(places, gap)
    assert len(moved) == len(places)
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(moved))
    if all(b - a >= gap for a, b in itertools.pairwise(places)):
        assert moved == pytest.approx(places)
    assert sum(moved) == pytest.approx(sum(places), abs=1e-6)  # least squares moves no group's middle
