"""From what a user names (`imagenet`, a folder, a corpus) to labelled images that can be evaluated. Where they lie: `find.py`.

Other sets: `locate_probe.py`, `locate_captions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation import names
from softclip_cli.evaluation.catalogue import Entry, find_entry
from softclip_cli.evaluation.corpus_sets import (
    classification_task,
    find_task,
)
from softclip_cli.evaluation.find import (
    corpus_at,
    data_root,
    find_set,
    layout_of,
    own_folder,
    parse_dataset,
    require_task,
    wanted,
)
from softclip_cli.evaluation.layouts import (
    Labelled,
    Layout,
    MultiLabelled,
    Wanted,
    match_split,
    require_split,
)
from softclip_cli.evaluation.sets import ClassificationSet, MultiLabelSet


@dataclass(frozen=True)
class Texts:
    """Class names and templates that the user gives instead of the dataset's own."""

    class_names: Path | None = None
    templates: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where a set lies that is no corpus: `entry` is its line of the catalogue, None for a folder of one's own."""

    name: str
    folder: Path
    layout: Layout
    split: str
    entry: Entry | None

    def read(self, task: str) -> Any:
        """What the layout's reader for this task finds there."""
        return self.layout.read(task, self.folder, self.split, wanted(self.entry) if self.entry else Wanted())

    @property
    def size(self) -> int | None:
        """How many images the catalogue says that the split has."""
        return split_size(self.entry, self.split) if self.entry else None


def located(
    base: str,
    task: str,
    split: str | None,
    root: Path | None,
    usual: Callable[[list[str], Path], str] | None = None,
) -> Place:
    """Find a set by a name of the catalogue, or a folder.

    Args:
        base: as the user wrote it, without what stands behind a colon.
        task: what the entry, and the layout of a folder, must be for.
        split: asked for; None or empty: the catalogue's, or what `usual` picks of a folder's.
        root: where catalogue datasets are; see `data_root`.
        usual: picks one of a folder's splits; default: test, else val, else the only one.

    Raises:
        DataError: not there, or not in an accepted layout.
    """
    folder = own_folder(base)
    if folder is None:
        name, entry = find_entry(base)
        require_task(name, entry, task)
        return Place(name, *find_set(name, entry, data_root(root), split), entry)
    layout, splits = layout_of(folder, task)
    chosen = require_split(split, splits, str(folder)) if split else (usual or _test_split)(splits, folder)
    return Place(folder.resolve().name, folder, layout, chosen, None)


def classification_set(
    dataset: str, *, split: str | None = None, root: Path | None = None, texts: Texts | None = None
) -> ClassificationSet:
    """Open a classification set: a catalogue name, a corpus (`CORPUS` or `CORPUS:TASK`) or a folder.

    Args:
        dataset: as the user wrote it.
        split: by default the catalogue's, or test, else val, of a folder.
        root: where catalogue datasets are; see `data_root`.
        texts: class names and templates that replace the dataset's.

    Raises:
        DataError: not there, not in an accepted layout, or with labels or classes that do not fit.
    """
    base, part = parse_dataset(dataset)
    texts = texts or Texts()
    folder = own_folder(base)
    corpus = corpus_at(folder) if folder is not None else None
    task = find_task(corpus, "zeroshot", part) if corpus is not None else None
    if corpus is not None and task is not None:
        return _with_texts(classification_task(corpus, task, split), texts)
    place = located(base, "classification", split or part, root)
    found: Labelled = place.read("classification")
    _check_split(place, len(found.images))
    return ClassificationSet(
        name=place.name,
        split=place.split or "all",
        images=found.images,
        labels=found.labels,
        **_facts(place, texts, found),
    )


def _test_split(splits: list[str], folder: Path) -> str:
    for usual in ("test", "val"):
        found = match_split(usual, splits)
        if found is not None:
            return found
    if len(splits) == 1:
        return splits[0]
    raise DataError(
        f"{folder} has several splits and none is called test or val",
        "they are " + ", ".join(splits),
        f"choose one: --split {splits[0]}",
    )


def _facts(place: Place, texts: Texts, found: Labelled | MultiLabelled) -> dict[str, Any]:
    """What a set of either kind says of its classes, prompts and place."""
    entry = place.entry
    if entry and entry.classes and found.class_count not in (None, entry.classes):
        raise DataError(
            f"{place.name}: {found.class_count:,} classes in {place.folder} where {entry.classes:,} are expected",
            "it is another dataset, or another version of it",
            f"to evaluate it as it is, give the folder itself: --dataset {place.folder}",
        )
    ids, own = found.ids, found.names
    if own is not None and all(names.WNID.fullmatch(name) for name in own):
        ids, own = own, None  # WordNet ids name nothing by themselves
    class_names, source = names.class_names(
        entry.class_names if entry and not found.names_given else ["dataset"],
        own=own,
        own_source=found.names_source,
        file=texts.class_names,
        ids=ids,
        subset=names.subset_of_reference(entry) if entry else None,
    )
    if found.prompts is not None and texts.templates is None:
        prompts, prompts_source = found.prompts, found.prompts_source
    else:
        prompts, prompts_source = names.prompts(entry.prompts if entry else [], texts.templates)
    return {
        "class_names": class_names,
        "class_count": found.class_count or (entry.classes if entry and entry.classes else 0),
        "prompts": prompts,
        "class_names_source": source,
        "prompts_source": prompts_source,
        "layout": place.layout.name,
        "where": str(place.folder),
        "expected_size": place.size,
        "allow_empty": bool(entry and entry.empty_classes),
    }


def _check_split(place: Place, count: int) -> None:
    """Refuse images that are as many as another split has, where this one has another number."""
    if place.entry is None or place.size in (None, count):
        return
    other = next((there for there, size in place.entry.sizes.items() if size == count), None)
    if other is not None:
        raise DataError(
            f"{place.name}: split {place.split} in {place.folder} has {count:,} images, which is the size of split {other}",
            f"{place.split} has {place.size:,}: the splits are mixed up, and a score on images that a model was trained "
            "on is worth nothing",
            f"put the right images there, or say --split {other}",
        )


def split_size(entry: Entry, split: str) -> int | None:
    """How many images a split of a catalogue dataset has, by any of its names; None where that is not known."""
    split = entry.aliases.get(split, split)
    return entry.sizes.get(match_split(split, list(entry.sizes)) or split)


def multi_label_set(
    dataset: str, *, split: str | None = None, root: Path | None = None, texts: Texts | None = None
) -> MultiLabelSet:
    """Open a multi-label set: a catalogue name or a folder; the arguments are those of `classification_set`.

    Raises:
        DataError: not there, not in an accepted layout, or with labels or classes that do not fit.
    """
    base, part = parse_dataset(dataset)
    place = located(base, "multi-label", split or part, root)
    found: MultiLabelled = place.read("multi-label")
    _check_split(place, len(found.images))
    ignored = None if found.ignored is None else tuple(np.array(own, dtype=np.int64) for own in found.ignored)
    return MultiLabelSet(
        name=place.name,
        split=place.split or "all",
        images=found.images,
        labels=tuple(np.array(own, dtype=np.int64) for own in found.labels),
        ignored=ignored,
        **_facts(place, texts or Texts(), found),
    )


def _with_texts(data: ClassificationSet, texts: Texts) -> ClassificationSet:
    if texts.class_names is not None:
        given = names.read_class_names(texts.class_names)
        data = replace(data, class_names=given, class_names_source=texts.class_names.name)
    if texts.templates is not None:
        data = replace(data, prompts=names.read_templates(texts.templates), prompts_source=texts.templates.name)
    return data
