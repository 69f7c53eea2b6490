"""Where the standard models of effective robustness come from: the table that ships, a user's table, or a user's results."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from softclip_cli.errors import DataError, nearest
from softclip_cli.evaluation import result
from softclip_cli.evaluation.effective import Line, Point, fit_line

COLUMNS = ("model", "reference", "shift")
SET_COLUMN = "set"  # of a table for several shifted sets: the name of the set


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """The tables of `standard_models.toml`, by the catalogue's name of the shifted set."""
    text = (resources.files("softclip_cli.evaluation") / "standard_models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def shipped_line(reference: str, shift: str) -> Line | None:
    """The line through the shipped standard models for two sets of the catalogue, or None where there is none."""
    table = shipped().get(shift)
    if table is None or table["reference"] != reference:
        return None
    points = [Point(model, first / 100, second / 100) for model, first, second in table["models"]]
    return fit_line(points, f"{table['source']} at {table['commit'][:7]}: {table['rule']}")


def table_points(path: Path, shift: str) -> list[Point]:
    """The standard models of a CSV file with the columns model, reference and shift: shares, or per cent if any is above 1.

    Args:
        path: the file.
        shift: name of the shifted set: with a further column `set`, only its rows count.

    Raises:
        DataError: it cannot be read, lacks a column, or holds something else than accuracies.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table {path} cannot be read", str(error)) from None
    present = list(rows[0]) if rows else []
    missing = [name for name in COLUMNS if name not in present]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r}",
            "its columns: " + (", ".join(map(str, present)) or "none"),
            nearest(missing[0], [str(name) for name in present]) or "expected: model,reference,shift",
        )
    if SET_COLUMN in present:
        known = sorted({row[SET_COLUMN] for row in rows})
        rows = [row for row in rows if row[SET_COLUMN] == shift]
        if not rows:
            raise DataError(f"{path} has no rows for {shift}", f"its sets: {', '.join(known)}", nearest(shift, known))
    numbers: list[tuple[str, float, float]] = []
    for row in rows:
        try:
            numbers.append((row["model"], float(row["reference"]), float(row["shift"])))
        except (TypeError, ValueError):
            raise DataError(
                f"{path}: the row of {row['model']!r} has no two accuracies",
                f"found {row['reference']!r} and {row['shift']!r}",
                "write shares (0.76) or per cent (76) in the columns reference and shift",
            ) from None
    factor = 100 if any(value > 1 for _, *pair in numbers for value in pair) else 1
    wrong = next((name for name, *pair in numbers if not all(0 <= value <= factor for value in pair)), None)
    if wrong is not None:
        raise DataError(f"{path}: {wrong!r} has an accuracy outside of 0 to {factor}")
    return [Point(name, first / factor, second / factor) for name, first, second in numbers]


def has_sets(path: Path) -> bool:
    """Whether a table tells several shifted sets apart."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return SET_COLUMN in next((line for line in stream if not line.startswith("#")), "").strip().split(",")
    except (OSError, UnicodeDecodeError):
        return False  # `table_points` says what is wrong


def read_results(places: Iterable[str]) -> list[dict[str, Any]]:
    """The result documents that are named: files, folders of them, run folders, or `run:NAME`.

    Raises:
        DataError: nothing is there, or a file is no result.
    """
    documents = []
    for place in places:
        run = result.run_folder(place)
        path = run if run is not None else Path(place).expanduser()
        files = [path] if path.is_file() else sorted([*path.glob("evals/*.json"), *path.glob("*.json")])
        if run is not None or (path / "evals").is_dir():
            files = sorted((path / "evals").glob("*.json"))
        if not files:
            raise DataError(
                f"no results at {place}",
                "it holds no evaluation documents" if path.is_dir() else "there is no such file, folder or run",
                "evaluate that model first, or name a document written with --out FILE",
            )
        found = [result.read(file) for file in files]
        documents += found if path.is_file() else [one for one in found if one["task"] in ("zeroshot", "robustness")]
    return documents


def document_points(documents: Sequence[dict[str, Any]], reference: str, shift: str) -> list[Point]:
    """A point for each model whose accuracy on both sets is known from its documents.

    Args:
        documents: results of zero-shot classification or of robustness.
        reference, shift: fingerprints of the two sets, so that only numbers on the same images are used.
    """
    known: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    for document in documents:
        top1 = document["metrics"].get("top1")
        if top1 is None or document["task"] not in ("zeroshot", "robustness"):
            continue
        model = document["model"]["fingerprint"]
        names[model] = document["model"]["name"]
        accuracies = known.setdefault(model, {})
        accuracies[document["dataset"]["fingerprint"]] = top1["value"]
        if document["task"] == "robustness":
            accuracies[document["protocol"]["reference"]["fingerprint"]] = document["metrics"]["reference_top1"][
                "value"
            ]
    return [Point(names[m], a[reference], a[shift]) for m, a in known.items() if reference in a and shift in a]
