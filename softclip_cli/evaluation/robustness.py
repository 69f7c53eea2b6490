"""Robustness to shifts: zero-shot accuracy on shifted sets of the same classes, and the drop against the test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from softclip_cli.evaluation.intervals import difference_bounds, metric


def add_drop(document: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Turn a zero-shot result on a shifted set into a `shift` result: add what is lost against the reference set.

    `drop` is the reference's top-1 minus the shifted set's, as a share; `relative_drop` is that over the reference's.
    The interval takes the two sets as independent samples (Newcombe 1998, method 10: from the two Wilson intervals).

    Args:
        document: the zero-shot result on the shifted set; is not changed.
        reference: the zero-shot result of the same model on the set without the shift.
    """
    here, there = document["metrics"]["top1"], reference["metrics"]["top1"]
    drop = there["value"] - here["value"]
    bounds = difference_bounds(
        there["value"], (there["low"], there["high"]), here["value"], (here["low"], here["high"])
    )
    added: dict[str, Any] = {"drop": metric(drop, here["n"], bounds, interval="Newcombe 95 %")}
    if there["value"] > 0:
        added["relative_drop"] = metric(drop / there["value"], here["n"])
    against = {"name": reference["dataset"]["name"], "split": reference["dataset"]["split"], "top1": there["value"]}
    return {
        **document,
        "task": "shift",
        "metrics": {**document["metrics"], **added},
        "protocol": {**document["protocol"], "reference": against},
    }


def mean_over_shifts(documents: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean top-1 and mean drop over several shift results, each shift weighing the same."""
    return {
        name: float(np.mean([document["metrics"][name]["value"] for document in documents]))
        for name in ("top1", "drop")
    }
