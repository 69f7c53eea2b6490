"""Class folders: `SPLIT/CLASS/*.jpg` or `CLASS/*.jpg`, named by the folders or by classnames.txt."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from softclip_cli.data.sources.base import SPLIT_NAMES
from softclip_cli.data.sources.walk import is_image_name, walk
from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import FileImages
from softclip_cli.evaluation.layouts import WHOLE, Labelled, Layout, MultiLabelled, Wanted
from softclip_cli.evaluation.names import WNID, read_class_names

NAMES_FILE = "classnames.txt"


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; numbers as numbers. Hidden ones are left out."""
    names = [e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".") and e.name != "__MACOSX"]
    return sorted(names, key=int) if names and all(name.isdecimal() for name in names) else sorted(names)


def _holds_images(folder: Path) -> bool:
    return any(
        is_image_name(entry.name) and not entry.name.startswith(".") for entry in os.scandir(folder) if entry.is_file()
    )


def _splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    if _holds_images(folder) or (shallow and wanted.ids == () and wanted.folder_names != "wnid" and wanted.whole):
        return None
    tops = subfolders(folder)
    usual = [name for name in tops if name.lower() in SPLIT_NAMES and _is_class_parent(folder / name)]
    if usual:
        return usual
    if any(_holds_images(folder / name) for name in tops):
        return [WHOLE]
    # Domains repeat the classes (photo/dog, sketch/dog); a hierarchy of classes (animal/dog, vehicle/car) does not.
    parents = [name for name in tops if _is_class_parent(folder / name)]
    classes = [set(subfolders(folder / name)) for name in parents]
    if not parents:
        return None
    shared = len(set.intersection(*classes)) >= len(set.union(*classes)) / 2
    return parents if shared else [WHOLE]


def _is_class_parent(folder: Path) -> bool:
    return not _holds_images(folder) and any(
        any(is_image_name(name) for name in files) for inner in subfolders(folder) for _, files in walk(folder / inner)
    )


def _labelled(folder: Path, split: str, wanted: Wanted) -> Labelled:
    splits = _splits(folder, wanted, False) or []
    # The classes are those of all splits together, so that a label means the same in each.
    union = {name for other in splits for name in subfolders(folder / other)}
    ids = sorted(union, key=int) if all(name.isdecimal() for name in union) else sorted(union)
    if wanted.ids:
        ids = list(wanted.ids)
        _check_ids(folder / split, ids, complete=True)
    elif wanted.folder_names == "wnid":
        foreign = [name for name in ids if not WNID.fullmatch(name)]
        if foreign:
            raise DataError(
                f"{folder / split}: {len(foreign)} class folders are not named by WordNet ids",
                f"first {foreign[0]!r}; the order of the ids is the order of the classes, other names do not tell it",
                "use the folders of the original archive, such as n01440764",
            )
    if wanted.classes is not None and len(ids) != wanted.classes:
        raise DataError(
            f"{folder}: {len(ids):,} class folders where {wanted.classes:,} are expected",
            "the copy is incomplete, or it is another dataset",
            "complete the copy; to evaluate it as it is, give the folder itself: --dataset " + str(folder),
        )
    names, labels = _images(folder / split, ids)
    prefix = f"{split}/" if split else ""
    images = FileImages(folder, [prefix + name for name in names])
    own, source = _own_names(folder, split, ids)
    return Labelled(
        images, np.array(labels, dtype=np.int64), own, source, tuple(ids), len(ids), names_given=source == NAMES_FILE
    )


def _check_ids(folder: Path, ids: list[str], complete: bool) -> None:
    there, known = set(subfolders(folder)), set(ids)
    foreign, missing = sorted(there - known), [name for name in ids if name not in there]
    if foreign:
        raise DataError(
            f"{folder}: {len(foreign):,} class folders are none of the {len(ids):,} classes of this dataset",
            f"first {foreign[0]!r}, where names such as {ids[0]} are expected",
            "use the folders of the original archive",
        )
    if complete and missing:
        raise DataError(
            f"{folder}: {len(there):,} class folders where {len(ids):,} are expected",
            f"{len(missing):,} are missing, first {missing[0]}: the copy is incomplete, or it is another dataset",
            "complete the copy; to evaluate it as it is, give the folder itself: --dataset " + str(folder),
        )


def _multi_labelled(folder: Path, split: str, wanted: Wanted) -> MultiLabelled:
    """Each image has the classes that its folder's id stands for; one id may be in several lists of classes."""
    ids = list(wanted.ids) or subfolders(folder / split)
    _check_ids(folder / split, ids, complete=False)
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(ids):
        numbers.setdefault(name, []).append(number)
    folders = list(numbers)
    names, labels = _images(folder / split, folders)
    prefix = f"{split}/" if split else ""
    images = FileImages(folder, [prefix + name for name in names])
    own, source = _own_names(folder, split, ids)
    return MultiLabelled(
        images,
        [numbers[folders[label]] for label in labels],
        names=own,
        names_source=source,
        ids=tuple(ids),
        class_count=len(ids),
        names_given=source == NAMES_FILE,
    )


def _images(folder: Path, ids: list[str]) -> tuple[list[str], list[int]]:
    names, labels = [], []
    for label, name in enumerate(ids):
        if (folder / name).is_dir():
            for inner, files in walk(folder / name):
                found = [(inner / file).relative_to(folder).as_posix() for file in files if is_image_name(file)]
                names += found
                labels += [label] * len(found)
    return names, labels


def _own_names(folder: Path, split: str, ids: list[str]) -> tuple[tuple[str, ...] | None, str]:
    for place in (folder / split, folder):
        if (place / NAMES_FILE).is_file():
            return read_class_names(place / NAMES_FILE, ids), NAMES_FILE
    # Numbers and WordNet ids order the classes but name nothing.
    if all(name.isdecimal() for name in ids) or all(WNID.fullmatch(name) for name in ids):
        return None, ""
    return tuple(ids), "the class folders' names"


CLASS_FOLDERS = Layout(
    "class-folders",
    "a folder of images for each class: SPLIT/CLASS/x.jpg, or CLASS/x.jpg",
    _splits,
    _labelled,
    multi_labelled=_multi_labelled,
)
