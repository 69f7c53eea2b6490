"""The folder layouts in which datasets may lie, each with its readers. Facts of datasets are in the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.data.sources.base import SPLIT_NAMES
from softclip_cli.errors import DataError, nearest
from softclip_cli.evaluation.images import ImageSource
from softclip_cli.evaluation.shapes import Arrays, ClassLists, LabelTable, Lists

READERS = {
    "classification": "labelled",
    "multi-label": "multi_labelled",
    "retrieval": "captioned",
    "ratings": "rated",
}  # task → the field of `Layout`
WHOLE = ""  # the split of a layout that has none


@dataclass(frozen=True)
class Wanted:
    """What the catalogue says of a dataset, as far as a reader needs it.

    Attributes:
        image_column, label_column, split_column: columns of a table; None finds them.
        folder_names: "words", or "wnid" for class folders named by WordNet ids.
        classes: number of classes; None takes what is there.
        rating_columns: which columns of a file of ratings are ratings, counted from 0.
        leave_out_own: leave out ratings of captions that were written for the very image.
        ids: the class folders' names in label order, where they are known; one may stand for several classes.
        whole: the name of the split that a copy without split folders is.
        lists, arrays, class_lists, table: how the authors' release lies on the disk; None where there is no such release.
    """

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    folder_names: str = "words"
    classes: int | None = None
    rating_columns: tuple[int, ...] = ()
    leave_out_own: bool = False
    ids: tuple[str, ...] = ()
    whole: str = ""
    lists: Lists | None = None
    arrays: Arrays | None = None
    class_lists: ClassLists | None = None
    table: LabelTable | None = None


@dataclass(frozen=True)
class Labelled:
    """What a reader found: images with labels.

    Attributes:
        images, labels: N of each; labels are int64.
        names: of the classes in label order, None where the data has none.
        names_source: where the names are from.
        ids: the class folders' names, for files that map them to class names.
        class_count: number of classes, where the data says so.
        names_given: the names stand in a file that was made for this (classnames.txt), so that they win over all others.
        prompts: templates that lie with the data, which win likewise; None where there are none.
    """

    images: ImageSource
    labels: np.ndarray
    names: tuple[str, ...] | None = None
    names_source: str = ""
    ids: tuple[str, ...] = ()
    class_count: int | None = None
    names_given: bool = False
    prompts: tuple[str, ...] | None = None
    prompts_source: str = ""


@dataclass(frozen=True)
class MultiLabelled:
    """What a reader found: images with any number of classes each.

    Attributes:
        labels: N lists of the classes that are true.
        ignored: N lists of the classes that do not count; None: all do.
        images, names, names_source, ids, class_count, names_given, prompts, prompts_source: as for `Labelled`.
    """

    images: ImageSource
    labels: list[list[int]]
    ignored: list[list[int]] | None = None
    names: tuple[str, ...] | None = None
    names_source: str = ""
    ids: tuple[str, ...] = ()
    class_count: int | None = None
    names_given: bool = False
    prompts: tuple[str, ...] | None = None
    prompts_source: str = ""


@dataclass(frozen=True)
class Captioned:
    """What a reader found: images with captions."""

    images: ImageSource
    captions: list[list[str]]
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Rated:
    """What a reader found: pairs of images and texts that people rated; see `ratings.RatedSet` for what each is."""

    images: ImageSource
    texts: list[str]
    author: np.ndarray
    image: np.ndarray
    text: np.ndarray
    ratings: np.ndarray
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset may lie in a folder.

    Attributes:
        name: as the catalogue calls it.
        shape: what the folder looks like, for messages and docs.
        splits: folder → names of its splits (`[""]`: it has none), or None when the folder is not of this layout.
            With `shallow`, files below unrelated subfolders do not count.
        labelled, captioned, rated, multi_labelled: (folder, one of the splits, Wanted) → what is there; None where the
            layout cannot hold it.
        details: Wanted → which files a certain dataset has in this layout, for messages and docs.
    """

    name: str
    shape: str
    splits: Callable[[Path, Wanted, bool], list[str] | None]
    labelled: Callable[[Path, str, Wanted], Labelled] | None = None
    captioned: Callable[[Path, str, Wanted], Captioned] | None = None
    rated: Callable[[Path, str, Wanted], Rated] | None = None
    multi_labelled: Callable[[Path, str, Wanted], MultiLabelled] | None = None
    details: Callable[[Wanted], str] = lambda wanted: ""

    def read(self, task: str, folder: Path, split: str, wanted: Wanted) -> Any:
        """What is there, for a task of `reads`; `split` may be the name that the catalogue gives to an undivided copy."""
        if wanted.whole and split == wanted.whole and self.splits(folder, wanted, False) == [WHOLE]:
            split = WHOLE
        return getattr(self, READERS[task])(folder, split, wanted)

    def shape_of(self, wanted: Wanted) -> str:
        """What the folder of a certain dataset looks like in this layout."""
        details = self.details(wanted)
        return f"{self.shape} ({details})" if details else self.shape

    def reads(self, task: str) -> bool:
        """Whether it can hold a set of this kind: "classification", "multi-label", "retrieval" or "ratings"."""
        return getattr(self, READERS[task]) is not None


def all_layouts() -> dict[str, Layout]:
    """Every layout by name, in the order in which a folder is tried."""
    from softclip_cli.evaluation.layout_arrays import ARRAYS
    from softclip_cli.evaluation.layout_captions import FLICKR_CAPTIONS, KARPATHY
    from softclip_cli.evaluation.layout_folders import CLASS_FOLDERS
    from softclip_cli.evaluation.layout_lists import LIST_FILES
    from softclip_cli.evaluation.layout_multi import CLASS_LISTS, LABEL_TABLE
    from softclip_cli.evaluation.layout_tables import CORPUS, DATASETS, HUB_PARQUET
    from softclip_cli.evaluation.layout_webdataset import WEBDATASET
    from softclip_cli.evaluation.ratings import FLICKR_RATINGS

    known = (
        CORPUS,
        DATASETS,
        WEBDATASET,
        HUB_PARQUET,
        KARPATHY,
        FLICKR_CAPTIONS,
        FLICKR_RATINGS,
        LIST_FILES,
        ARRAYS,
        CLASS_LISTS,
        LABEL_TABLE,
        CLASS_FOLDERS,
    )
    return {layout.name: layout for layout in known}


def match_split(wanted: str, available: Sequence[str]) -> str | None:
    """The available split that `wanted` means: the same name, or another usual name of it (val, validation, dev)."""
    if wanted in available:
        return wanted
    usual = SPLIT_NAMES.get(wanted.lower())
    return next((name for name in available if usual and SPLIT_NAMES.get(name.lower()) == usual), None)


def require_split(wanted: str, available: Sequence[str], where: str) -> str:
    """As `match_split`.

    Raises:
        DataError: there is no such split; names those that are there.
    """
    found = match_split(wanted, available)
    if found is None:
        named = [name for name in available if name]
        raise DataError(
            f"{where} has no split {wanted!r}",
            "it has " + ", ".join(named) if named else "it has no splits at all, only one set of images",
            nearest(wanted, named)
            or (f"choose one with --split, for example --split {named[0]}" if named else "leave --split out"),
        )
    return found
