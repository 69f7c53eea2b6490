"""Multi-label sets: 11-point average precision and flat hit@k against brute force and scikit-learn."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from catalogue_folders import write
from eval_fixtures import lively_model, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.evaluation.embed import embed_images, embed_texts
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.multilabel import eleven_points, flat_hits, mean_average_precision, multi_label
from softclip_cli.evaluation.sets import MultiLabelSet


def slow_eleven_points(scores: list[float], truth: list[bool], counts: list[int]) -> Fraction | None:
    """By the definition, in fractions: every threshold, every point."""
    total = sum(count for count, right in zip(counts, truth, strict=True) if right)
    if not total:
        return None
    points = []
    for step in range(11):
        best = Fraction(0)
        for threshold in scores:
            above = [i for i in range(len(scores)) if scores[i] >= threshold]
            found = sum(counts[i] for i in above if truth[i])
            seen = sum(counts[i] for i in above)
            if seen and Fraction(found, total) >= Fraction(step, 10):
                best = max(best, Fraction(found, seen))
        points.append(best)
    return sum(points, Fraction(0)) / 11


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)),
        min_size=1,
        max_size=14,
    )
)
@settings(deadline=None, max_examples=80)
def test_average_precision_is_the_definition_with_ties_and_repeated_images(rows: list[tuple[int, bool, int]]) -> None:
    scores, truth, counts = (list(column) for column in zip(*rows, strict=True))
    expected = slow_eleven_points(scores, truth, counts)
    found = eleven_points(np.array(scores, dtype=float), np.array(truth), np.array([counts]))[0]
    assert np.isnan(found) if expected is None else found == pytest.approx(float(expected), abs=1e-12)


def test_average_precision_equals_that_from_scikit_learns_curve() -> None:
    rng = np.random.default_rng(0)
    for size in (5, 40, 300):
        scores, truth = rng.normal(size=size).round(1), rng.random(size) < 0.3
        truth[0] = True
        precision, recall, _ = precision_recall_curve(truth, scores)
        precision, recall = precision[:-1], recall[:-1]  # the last point is added by scikit-learn
        expected = np.mean([precision[recall >= step / 10 - 1e-9].max() for step in range(11)])
        assert eleven_points(scores, truth, np.ones((1, size), dtype=int))[0] == pytest.approx(expected)


def test_three_of_ten_reach_a_recall_of_three_tenths() -> None:
    """numpy.arange(0, 1.1, 0.1)[3] is above 3/10, so that the usual code misses this point."""
    scores, truth = np.arange(20, 0, -1.0), np.zeros(20, dtype=bool)
    truth[[0, 1, 2, *range(13, 20)]] = True
    # Recall 0 to 0.3 at precision 1; beyond, the best precision is 10 of 20.
    assert eleven_points(scores, truth, np.ones((1, 20), dtype=int))[0] == pytest.approx((4 * 1 + 7 * 0.5) / 11)


def test_ignored_labels_are_left_out_of_the_ranking_and_classes_without_images_of_the_mean() -> None:
    rng = np.random.default_rng(1)
    scores, truth = rng.normal(size=(30, 4)), rng.random((30, 4)) < 0.4
    truth[:, 3] = False
    ignored = (rng.random((30, 4)) < 0.2) & ~truth
    mean, of_class = mean_average_precision(scores, truth, ignored)
    expected = [
        float(
            slow_eleven_points(
                scores[~ignored[:, c], c].tolist(), truth[~ignored[:, c], c].tolist(), [1] * int((~ignored[:, c]).sum())
            )
            or 0
        )
        for c in range(3)
    ]
    assert of_class[:3] == pytest.approx(expected)
    assert np.isnan(of_class[3])
    assert mean["value"] == pytest.approx(np.mean(expected))
    whole, _ = mean_average_precision(scores, truth)
    assert whole["value"] != pytest.approx(mean["value"])


def test_the_interval_is_a_bootstrap_over_images() -> None:
    rng = np.random.default_rng(2)
    scores, truth = rng.normal(size=(60, 3)), rng.random((60, 3)) < 0.3
    scores[truth] += 1
    mean, _ = mean_average_precision(scores, truth)
    drawn = []
    for _ in range(300):
        picks = rng.integers(0, 60, 60)
        drawn.append(
            np.mean([eleven_points(scores[picks, c], truth[picks, c], np.ones((1, 60), int)) for c in range(3)])
        )
    assert mean["low"] == pytest.approx(np.quantile(drawn, 0.025), abs=0.03)
    assert mean["high"] == pytest.approx(np.quantile(drawn, 0.975), abs=0.03)


def test_flat_hits_count_images_whose_first_classes_meet_the_true_ones() -> None:
    rng = np.random.default_rng(3)
    labels = [np.sort(rng.choice(12, size, replace=False)) for size in rng.integers(0, 4, 50)]
    best = np.stack([rng.permutation(12)[:10] for _ in labels])
    metrics = flat_hits(best, labels, 12)
    assert list(metrics) == ["hit1", "hit2", "hit5", "hit10"]
    for k in (1, 2, 5, 10):
        hits = [bool(set(row[:k]) & set(true)) for row, true in zip(best, labels, strict=True) if len(true)]
        entry = metrics[f"hit{k}"]
        assert entry["value"] == pytest.approx(np.mean(hits))
        assert entry["n"] == len(hits)
        assert entry["low"] <= entry["value"] <= entry["high"]


def several(ignored: bool) -> MultiLabelSet:
    rng = np.random.default_rng(4)
    labels = tuple(np.sort(rng.choice(6, rng.integers(1, 4), replace=False)) for _ in range(24))
    left_out = tuple(np.setdiff1d(rng.choice(6, 1), true) for true in labels) if ignored else None
    names = ("ant", "bee", "cow", "dog", "elk", "fox")
    prompts = ("a photo of a {}.", "a drawing of a {}.")
    return MultiLabelSet("several", "test", BytesImages(pictures(24)), labels, names, prompts=prompts, ignored=left_out)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_document_equals_plain_arithmetic_on_the_embeddings(ignored: bool) -> None:
    model, data = lively_model(), several(ignored)
    document = multi_label(model, data)
    images = embed_images(model, data.images).projected
    assert images is not None
    for prefix, prompts in (("", data.prompts), ("single_prompt_", data.prompts[:1])):
        rows = []
        for name in data.class_names or ():
            mean = embed_texts(model, [prompt.format(name) for prompt in prompts]).double().mean(dim=0)
            rows.append((mean / mean.norm()).numpy())
        scores = images.double().numpy() @ np.stack(rows).T
        precisions, hits = [], []
        for c in range(6):
            keep = [i for i in range(24) if data.ignored is None or c not in data.ignored[i]]
            truth = [c in data.labels[i] for i in keep]
            precisions.append(slow_eleven_points(scores[keep, c].tolist(), truth, [1] * len(keep)))
        for i in range(24):
            allowed = [c for c in np.argsort(-scores[i]) if data.ignored is None or c not in data.ignored[i]]
            hits.append(bool(set(allowed[:2]) & set(data.labels[i])))
        found = document["metrics"]
        assert found[f"{prefix}map11"]["value"] == pytest.approx(float(sum(filter(None, precisions))) / 6)
        assert found[f"{prefix}hit2"]["value"] == pytest.approx(np.mean(hits))
    assert "hit10" not in document["metrics"]  # six classes
    assert [row["class"] for row in document["details"]["per_class"]] == list(data.class_names or ())
    assert document["task"] == "zeroshot"


def test_the_command_evaluates_voc_by_name(tmp_path: Path) -> None:
    write(tmp_path, "voc2007", "class-lists")
    common = ["eval", "zeroshot", "--dataset", "voc2007", "--data-root", str(tmp_path), "--model", "tiny", "--no-cache"]
    found = CliRunner().invoke(app, [*common, "--workers", "0", "--per-class"])
    assert found.exit_code == 0, found.output
    for words in ("mAP (11 points)", "flat hit@1", "flat hit@10", "average precision", "class0019"):
        assert words in found.stdout
    refused = CliRunner().invoke(app, [*common, "--confusion", "x.png"])
    assert refused.exit_code == 2
    assert "several classes" in refused.stderr
