"""From the outcomes in a result document back to its metrics, item by item: what a paired comparison resamples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.evaluation.outcomes import arrays_of
from softclip_cli.evaluation.ranks import Ranks

DEPTHS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Items:
    """A metric as a sum of terms over the units that are resampled: Σ factor · (Σᵢ numerators) / (Σᵢ weights).

    Attributes:
        terms: of (float64 (N,) numerators, float64 (N,) weights, factor).
        strata: int64 (N,), where units are resampled within the strata only; else None.
    """

    terms: tuple[tuple[np.ndarray, np.ndarray, float], ...]
    strata: np.ndarray | None = None

    @property
    def value(self) -> float:
        """The metric."""
        return float(sum(factor * top.sum() / below.sum() for top, below, factor in self.terms))

    @property
    def hits(self) -> np.ndarray | None:
        """bool (N,) where every unit counts the same and is either a hit or not; else None."""
        if len(self.terms) != 1 or self.strata is not None:
            return None
        top, below, _ = self.terms[0]
        plain = np.all(below == 1) and np.all((top == 0) | (top == 1))
        return top.astype(bool) if plain else None


def item_metrics(document: Mapping[str, Any]) -> dict[str, Items]:
    """The metrics of a document that its outcomes give; empty where it has none.

    Raises:
        DataError: the outcomes are damaged.
    """
    arrays = arrays_of(document)
    if "label" in arrays:
        return _classification(arrays)
    if "texts" in arrays:
        return _retrieval(arrays)
    if "wins" in arrays:
        return _composition(arrays, document["outcomes"].get("edits") or [])
    return {}


def stored_draws(document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Metric → float64 (D,): its values on resampled data, where the document keeps these instead of items.

    Two documents of the same data drew the same samples, so that the differences of their values are paired.
    """
    return {
        name.removeprefix("draws_"): array
        for name, array in arrays_of(document).items()
        if name.startswith("draws_") and array.ndim == 1
    }


def _mean(values: np.ndarray, strata: np.ndarray | None = None) -> Items:
    return Items(((values.astype(np.float64), np.ones(len(values)), 1.0),), strata)


def _classification(arrays: Mapping[str, np.ndarray]) -> dict[str, Items]:
    label = arrays["label"]
    totals = np.bincount(label)
    of_class = 1 / (np.count_nonzero(totals) * totals[label])  # every class weighs the same
    found = {}
    for prefix in ("", "single_prompt_"):
        if f"{prefix}best" not in arrays:
            continue
        hits = arrays[f"{prefix}best"] == label
        found[f"{prefix}top1"] = _mean(hits)
        if f"{prefix}top5" in arrays:
            found[f"{prefix}top5"] = _mean(arrays[f"{prefix}top5"])
        found[f"{prefix}mean_per_class"] = Items(((hits * of_class, np.full(len(label), 1 / len(label)), 1.0),), label)
    return found


def _retrieval(arrays: Mapping[str, np.ndarray]) -> dict[str, Items]:
    texts = arrays["texts"]
    owner = np.repeat(np.arange(len(texts)), texts)
    ones = np.ones(len(texts))
    to_text = Ranks(*(arrays[f"image_to_text_{name}"] for name in ("better", "equal", "own")))
    better, equal = (arrays[f"text_to_image_{name}"] for name in ("better", "equal"))
    to_image = Ranks(better, equal, np.ones(len(better), dtype=np.int64))
    found = {}
    for k in DEPTHS:
        found[f"image_to_text_r{k}"] = Items(((to_text.hits(k), ones, 1.0),))
        sums = np.bincount(owner, to_image.hits(k), minlength=len(texts))
        found[f"text_to_image_r{k}"] = Items(((sums, texts.astype(np.float64), 1.0),))
    found["rsum"] = Items(tuple((top, below, 100.0) for items in found.values() for top, below, _ in items.terms))
    return found


def _composition(arrays: Mapping[str, np.ndarray], edits: list[str]) -> dict[str, Items]:
    wins = arrays["wins"].astype(np.float64)
    found = {"accuracy": _mean(wins)}
    for place, edit in enumerate(edits):
        chosen = (arrays["edit"] == place).astype(np.float64)
        found[f"accuracy_{edit}"] = Items(((wins * chosen, chosen, 1.0),))
    return found


def averaged(several: list[Items]) -> Items:
    """The mean over models (seeds) of one metric on the same units."""
    first = several[0]
    terms = []
    for place, (_, below, factor) in enumerate(first.terms):
        top = np.mean([items.terms[place][0] for items in several], axis=0)
        terms.append((top, below, factor))
    return Items(tuple(terms), first.strata)
