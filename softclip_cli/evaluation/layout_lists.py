"""Releases that list their images: text, JSON or MATLAB lists of paths and classes beside the folder of the images.

Which files, and how a line is read, is said by the entry of the catalogue (`shapes.Lists`): nothing here knows a dataset.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import FileImages
from softclip_cli.evaluation.layouts import Labelled, Layout, Wanted
from softclip_cli.evaluation.shapes import Lists


def place(folder: Path, where: str) -> tuple[Path, str]:
    """The file of a place `PATH` or `PATH:NAME`, and the name."""
    path, _, name = where.partition(":")
    return folder / path, name


def _splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    if wanted.lists is None or shallow:
        return None
    there = [split for split, where in wanted.lists.lists.items() if _is_there(folder, where)]
    return there or None


def _is_there(folder: Path, where: str) -> bool:
    return next(folder.glob(where), None) is not None if "*" in where else place(folder, where)[0].is_file()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read", f"{type(error).__name__}: {error}", "fetch the file again") from None


def read_mat(path: Path, name: str) -> np.ndarray:
    """A variable of a MATLAB file, without axes of length 1.

    Raises:
        DataError: missing, damaged, or without the variable.
    """
    import scipy.io

    try:
        return np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True, variable_names=[name])[name])
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise DataError(f"{path} cannot be read", f"{type(error).__name__}: {error}", "fetch the file again") from None


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: missing, or not UTF-8 text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read", str(error), "fetch the file again") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _rows(folder: Path, shape: Lists, split: str) -> list[dict[str, Any]]:
    """What each line of a split's list says: path, label and perhaps name."""
    where = shape.lists[split]
    path, name = place(folder, where)
    if name:
        values = read_mat(path, name)
        if values.dtype.names:
            return [{group: value[field] for group, field in shape.fields.items()} for value in values]
        labels = read_mat(*place(folder, shape.labels))
        return [{"path": int(value), "label": labels[int(value) - 1]} for value in values]
    if "*" in where:
        lines = sorted(found.relative_to(folder).as_posix() for found in folder.glob(where))
    else:
        lines = list(_strings(read_json(path))) if path.suffix == ".json" else lines_of(path)
    pattern, rows = re.compile(of_split(shape.line, split)), []
    for number, line in enumerate(lines, start=1):
        match = pattern.fullmatch(line.strip())
        if match:
            rows.append(match.groupdict())
        elif not shape.skip:
            raise DataError(
                f"{path.name}, line {number}: not of the form of this list",
                f"found {line[:80]!r}",
                "take the list of the original release",
            )
    return rows


def of_split(value: str | dict[str, str], split: str) -> str:
    """A setting that may differ between splits."""
    return value if isinstance(value, str) else value[split]


def _classes(folder: Path, shape: Lists, splits: list[str]) -> list[str] | None:
    """The words of the labels in label order, or None where labels are numbers."""
    if shape.classes:
        path, name = place(folder, shape.classes)
        words = [str(word) for word in read_mat(path, name)] if name else [line.strip() for line in lines_of(path)]
        if shape.class_line:
            found = [re.fullmatch(shape.class_line, word) for word in words]
            words = [match["label"] for match in found if match]
        return words
    if shape.first is not None:
        return None
    # The classes are those of all splits together, so that a label means the same in each.
    return sorted({row["label"] for split in splits for row in _rows(folder, shape, split)})


def _labelled(folder: Path, split: str, wanted: Wanted) -> Labelled:
    shape = wanted.lists
    assert shape is not None
    rows = _rows(folder, shape, split)
    classes, names, only = _classes(folder, shape, _splits(folder, wanted, False) or []), None, None
    mapping = read_json(place(folder, shape.names)[0]) if shape.names else {}
    if shape.only and classes is not None:
        only = set(read_json(place(folder, shape.only)[0]))
        classes = [word for word in classes if mapping.get(word, word) in only]
        rows = [row for row in rows if mapping.get(row["label"], row["label"]) in only]
    if shape.first is not None:
        labels = [int(row["label"]) - shape.first for row in rows]
        by_label = {label: row["name"] for label, row in zip(labels, rows, strict=True) if row.get("name")}
        count = wanted.classes or len(by_label)
        names = [by_label[label] for label in range(count)] if set(by_label) == set(range(count)) else classes
    else:
        assert classes is not None
        number = {word: index for index, word in enumerate(classes)}
        unknown = next((row["label"] for row in rows if row["label"] not in number), None)
        if unknown is not None:
            raise DataError(
                f"{folder}: class {unknown!r} of split {split} is not in {shape.classes}",
                f"it names {len(classes):,} classes, first {', '.join(classes[:3])}",
                "take both files from the same release",
            )
        labels = [number[row["label"]] for row in rows]
        names = [mapping.get(word, word.replace("/", " ")) for word in classes]
    paths = [of_split(shape.image, split).format(**row, split=split) for row in rows]
    images = located(folder, paths, shape.lists[split])
    # Where the sorted labels are no words (WordNet ids), the names come from elsewhere.
    own = None if names is None or wanted.folder_names == "wnid" else tuple(names)
    ids = tuple(classes) if classes is not None else ()
    return Labelled(images, np.array(labels, dtype=np.int64), own, f"the release's {shape.classes or 'lists'}", ids)


def located(folder: Path, paths: list[str], listed: str) -> FileImages:
    """Images at these paths below the folder.

    Raises:
        DataError: some are not there; says how many and which first.
    """
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise DataError(
            f"{listed} does not match the images in {folder}",
            f"{len(missing):,} of {len(paths):,} images are not there, first {missing[0]}",
            "complete the images, or take the list that belongs to them",
        )
    return FileImages(folder, paths)


def _details(wanted: Wanted) -> str:
    shape = wanted.lists
    if shape is None:
        return ""
    images = [shape.image] if isinstance(shape.image, str) else list(shape.image.values())
    return f"lists {', '.join(shape.lists.values())}; images {', '.join(images)}"


LIST_FILES = Layout(
    "list-files",
    "the release as its authors have it, with lists of images",
    _splits,
    labelled=_labelled,
    details=_details,
)
