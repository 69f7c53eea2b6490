"""Releases of multi-label sets: VOC's list for each class, and CSV tables of image and label identifiers.

Which files and columns is said by the entry of the catalogue (`shapes.ClassLists`, `shapes.LabelTable`).
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from softclip_cli.errors import DataError
from softclip_cli.evaluation.layout_lists import lines_of, located
from softclip_cli.evaluation.layouts import Layout, MultiLabelled, Wanted
from softclip_cli.evaluation.shapes import ClassLists, LabelTable


def _lists(folder: Path, shape: ClassLists) -> dict[str, dict[str, Path]]:
    """Split → class → its list."""
    pattern = (
        re.escape(Path(shape.lists).name).replace(r"\{name\}", "(?P<name>.+)").replace(r"\{split\}", "(?P<split>[^_]+)")
    )
    found: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / shape.lists).parent.glob("*")):
        match = re.fullmatch(pattern, path.name)
        if match:
            found.setdefault(match["split"], {})[match["name"]] = path
    return found


def _class_list_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    return list(_lists(folder, wanted.class_lists)) or None if wanted.class_lists and not shallow else None


def _class_lists(folder: Path, split: str, wanted: Wanted) -> MultiLabelled:
    shape = wanted.class_lists
    assert shape is not None
    lists = _lists(folder, shape)
    names = sorted({name for classes in lists.values() for name in classes})
    paths: list[str] | None = None
    labels: list[list[int]] = []
    ignored: list[list[int]] = []
    for number, name in enumerate(names):
        path = lists[split].get(name)
        rows = [line.split() for line in lines_of(path)] if path else []
        if any(len(row) != 2 or row[1] not in ("1", "0", "-1") for row in rows):
            raise DataError(f"{path}: expected lines of an image and 1, 0 or -1", hint="fetch the file again")
        if paths is None:
            paths = [row[0] for row in rows]
            labels, ignored = [[] for _ in paths], [[] for _ in paths]
        if [row[0] for row in rows] != paths:
            raise DataError(
                f"{folder}: the list of {name} for split {split} is {'of other images' if path else 'not there'}",
                f"it must list the images that {names[0]} has, in the same order",
                "fetch the lists again",
            )
        for index, row in enumerate(rows):
            if row[1] != "-1":
                (labels if row[1] == "1" else ignored)[index].append(number)
    images = located(folder, [shape.image.format(path=path, split=split) for path in paths or []], f"{split}'s lists")
    return MultiLabelled(images, labels, ignored, tuple(names), "the names of the lists", class_count=len(names))


def _rows(path: Path, columns: list[str]) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(missing)}", f"it has {', '.join(reader.fieldnames or ['nothing'])}"
            )
        return [[row[name] for name in columns] for row in reader]


def _table_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    if wanted.table is None or shallow:
        return None
    return [split for split, name in wanted.table.tables.items() if (folder / name).is_file()] or None


def _class_table(folder: Path, shape: LabelTable, wanted: Wanted) -> tuple[list[str], list[str] | None, str]:
    """Identifiers of the classes in label order, their names, and where these are from."""
    if not shape.classes:
        return list(wanted.ids), None, "WordNet"
    path = folder / shape.classes
    if not path.is_file():
        raise DataError(f"{path} is not there", "it names the classes", "fetch it from the same release as the labels")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if len(row) >= 2]
    if rows and rows[0][0] == shape.label_column:
        rows = rows[1:]
    return [row[0] for row in rows], [row[1] for row in rows], path.name


def _label_table(folder: Path, split: str, wanted: Wanted) -> MultiLabelled:
    shape = wanted.table
    assert shape is not None
    ids, names, source = _class_table(folder, shape, wanted)
    numbers: dict[str, list[int]] = {}
    for index, name in enumerate(ids):
        numbers.setdefault(name, []).append(index)  # a synset that two lists of classes share is true in both
    path = folder / shape.tables[split]
    columns = [shape.image_column, shape.label_column, *([shape.true_column] if shape.true_column else [])]
    labels: dict[str, list[int]] = {}
    for image, label, *truth in _rows(path, columns):
        if truth and float(truth[0]) != 1:
            continue
        if label not in numbers:
            raise DataError(
                f"{path.name}: label {label} of image {image} is none of the {len(ids):,} classes",
                f"the classes are from {source}",
                "take both tables from the same release",
            )
        labels.setdefault(image, []).extend(numbers[label])
    # An image that has only negative labels can be neither hit nor missed.
    paths = [shape.image.format(path=image, split=split) for image in labels]
    images = located(folder, paths, path.name)
    return MultiLabelled(
        images, list(labels.values()), None, tuple(names) if names else None, source, tuple(ids), class_count=len(ids)
    )


CLASS_LISTS = Layout(
    "class-lists",
    "the release as its authors have it, with a list for each class",
    _class_list_splits,
    multi_labelled=_class_lists,
    details=lambda wanted: (
        f"{wanted.class_lists.lists}, images {wanted.class_lists.image}" if wanted.class_lists else ""
    ),
)
LABEL_TABLE = Layout(
    "label-table",
    "a CSV table of images and labels beside the folder of images",
    _table_splits,
    multi_labelled=_label_table,
    details=lambda wanted: (
        f"{', '.join([*wanted.table.tables.values(), wanted.table.classes])}, images {wanted.table.image}"
        if wanted.table
        else ""
    ),
)
