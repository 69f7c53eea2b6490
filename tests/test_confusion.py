"""The confusion picture: counts, the order of classes, and a file for few and for many classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_fixtures import lively_model, pictures
from PIL import Image
from sklearn.metrics import confusion_matrix

from softclip_cli.errors import UsageError
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.zeroshot import confusion, zero_shot
from softclip_cli.reports.confusion import confusion_order, confusion_shares, most_confused, write_confusion


def document_of(true: np.ndarray, predicted: np.ndarray, count: int) -> dict[str, Any]:
    return {
        "task": "zeroshot",
        "model": {"name": "some model"},
        "dataset": {"name": "set", "split": "test", "size": len(true)},
        "metrics": {"top1": {"value": float((true == predicted).mean())}},
        "details": {
            "per_class": [{"class": f"class ${number}"} for number in range(count)],
            "confusion": confusion(predicted[:, None], true, count),
        },
    }


def test_shares_equal_scikit_learns_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 7, 200), rng.integers(0, 8, 200)  # class 7 has no image
    shares, names, sizes = confusion_shares(document_of(true, predicted, 8))
    expected = confusion_matrix(true, predicted, labels=np.arange(8), normalize="true")
    assert shares == pytest.approx(expected)
    assert sizes.tolist() == np.bincount(true, minlength=8).tolist()
    assert names[3] == "class $3"


def test_confused_classes_are_neighbours() -> None:
    """Three groups, scattered by number: in the order found, each is one stretch."""
    group = np.array([0, 1, 2] * 4)
    shares = np.where(group[:, None] == group[None], 0.1, 0.0) + 0.001
    np.fill_diagonal(shares, 0.6)
    order = confusion_order(shares)
    assert sorted(order) == list(range(12))
    assert (np.diff(group[order]) != 0).sum() == 2
    assert confusion_order(np.eye(2)).tolist() == [0, 1]


def test_the_most_confused_pairs_come_first() -> None:
    shares = np.array([[0.5, 0.4, 0.1], [0.0, 0.8, 0.2], [0.0, 0.0, 1.0]])
    pairs = most_confused(shares, ["a", "b", "c"])
    assert pairs == [("a", "b", 0.4), ("b", "c", 0.2), ("a", "c", 0.1)]


@pytest.mark.parametrize("count", [2, 10, 70])
def test_a_picture_is_drawn(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(count), 3)
    document = document_of(true, np.where(rng.random(len(true)) < 0.6, true, rng.integers(0, count, len(true))), count)
    with Image.open(write_confusion(document, tmp_path / "new" / "picture.png")) as image:
        assert min(image.size) > 500
        assert len(set(image.convert("RGB").resize((60, 60)).getdata())) > 10


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    model = lively_model()
    data = ClassificationSet("two", "test", BytesImages(pictures(4)), np.array([0, 1, 0, 1]), ("ant", "bee"))
    with pytest.raises(UsageError, match="no confusion counts"):
        write_confusion(zero_shot(model, data), tmp_path / "picture.png")
    document = zero_shot(model, data, with_confusion=True)
    assert sum(document["details"]["confusion"]["n"]) == 4
    with pytest.raises(UsageError, match="no picture can be drawn"):
        write_confusion(document, tmp_path / "picture.txt")
    assert write_confusion(document, tmp_path / "picture.svg").read_text().startswith("<?xml")
