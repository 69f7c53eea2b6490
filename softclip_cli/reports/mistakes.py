"""Which class is taken for which, from the outcomes of single images or the counts that a document keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softclip_cli.evaluation.outcomes import arrays_of
from softclip_cli.reports.metrics import TASKS
from softclip_cli.reports.tables import Document, says_more

MATRIX = 16  # classes up to which the whole matrix is drawn
LISTED = 12  # mistakes shown of each evaluation


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: shares of the images of a row's class that are taken for a column's."""

    name: str
    classes: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Mistakes:
    """The most frequent confusions of one evaluation.

    Attributes:
        title: the evaluation in words.
        rows: (class, taken for, one share of the class's images a model; None where it is not known).
        more: how many further pairs of classes are confused by some model.
        matrices: one a model where there are few classes, else empty.
    """

    title: str
    rows: tuple[tuple[str, str, tuple[float | None, ...]], ...]
    more: int
    matrices: tuple[Matrix, ...] = ()


def mistakes(names: Sequence[str], documents: Mapping[str, Sequence[Document]]) -> list[Mistakes]:
    """The confusions of every zero-shot evaluation, of each model.

    Raises:
        DataError: damaged outcomes.
    """
    found: dict[tuple[str, str, str], dict[str, Document]] = {}
    for name in names:
        for document in documents[name]:
            if document["task"] == "zeroshot" and class_names(document):
                dataset = document.get("dataset") or {}
                key = (str(dataset.get("name", "")), str(dataset.get("split") or ""), str(dataset.get("fingerprint")))
                found.setdefault(key, {})[name] = document
    return [made for key, by_model in found.items() if (made := _mistakes(names, key[0], key[1], by_model)) is not None]


def class_names(document: Document) -> list[str]:
    """The classes in label order, from `details.per_class`; empty where the document does not list them."""
    entries = (document.get("details") or {}).get("per_class")
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) and "class" in one for one in entries):
        return []
    return [str(one["class"]) for one in entries]


def confusion_counts(document: Document) -> Counter[tuple[int, int]] | None:
    """(class, class it was taken for) → images, right ones too; None where the document does not tell."""
    arrays = arrays_of(document)
    if "label" in arrays and "best" in arrays:
        return Counter(zip(arrays["label"].tolist(), arrays["best"].tolist(), strict=True))
    kept: Any = (document.get("details") or {}).get("confusion")
    if isinstance(kept, Mapping) and {"true", "predicted", "n"} <= set(kept):
        return Counter(
            {(int(a), int(b)): int(n) for a, b, n in zip(kept["true"], kept["predicted"], kept["n"], strict=True)}
        )
    return None


def _mistakes(names: Sequence[str], dataset: str, split: str, by_model: Mapping[str, Document]) -> Mistakes | None:
    counts = {name: confusion_counts(document) for name, document in by_model.items()}
    classes = class_names(next(iter(by_model.values())))
    title = f"{TASKS['zeroshot']}: {dataset}" + (f", {split}" if says_more(split, dataset) else "")
    known = {name: one for name, one in counts.items() if one is not None}
    if not known:
        return _mostly(names, title, by_model)
    shares: dict[str, dict[tuple[int, int], float]] = {}
    for name, one in known.items():
        totals = Counter[int]()
        for (true, _), number in one.items():
            totals[true] += number
        shares[name] = {pair: number / totals[pair[0]] for pair, number in one.items()}
    pairs = {pair for of_model in shares.values() for pair in of_model if pair[0] != pair[1]}
    worst = sorted(pairs, key=lambda pair: (-sum(one.get(pair, 0.0) for one in shares.values()), pair))
    rows = tuple(
        (
            classes[true],
            classes[taken],
            tuple(shares[name].get((true, taken), 0.0) if name in shares else None for name in names),
        )
        for true, taken in worst[:LISTED]
    )
    matrices = tuple(
        Matrix(
            name,
            tuple(classes),
            tuple(tuple(of.get((a, b), 0.0) for b in range(len(classes))) for a in range(len(classes))),
        )
        for name, of in shares.items()
        if len(classes) <= MATRIX
    )
    return Mistakes(title, rows, max(len(worst) - LISTED, 0), matrices) if rows or matrices else None


def _mostly(names: Sequence[str], title: str, by_model: Mapping[str, Document]) -> Mistakes | None:
    """From documents that only tell the most frequent mistake of each class, without its share."""
    taken: dict[tuple[str, str], set[str]] = {}
    for name, document in by_model.items():
        for entry in (document.get("details") or {}).get("per_class") or []:
            if entry.get("mostly_taken_for"):
                taken.setdefault((str(entry["class"]), str(entry["mostly_taken_for"])), set()).add(name)
    worst = sorted(taken, key=lambda pair: (-len(taken[pair]), pair))
    rows = tuple((*pair, tuple(None for _ in names)) for pair in worst[:LISTED])
    return Mistakes(title, rows, max(len(worst) - LISTED, 0)) if rows else None
