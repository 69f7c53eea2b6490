"""From what a user names (`imagenet`, a folder, a corpus) to a set that can be evaluated. Where it lies: `find.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation import names
from softclip_cli.evaluation.catalogue import Entry, find_entry
from softclip_cli.evaluation.corpus_sets import (
    classification_task,
    composition_task,
    find_task,
    retrieval_task,
    training_split,
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
    WHOLE,
    Captioned,
    Contrasted,
    Labelled,
    Layout,
    MultiLabelled,
    Wanted,
    match_split,
    require_split,
)
from softclip_cli.evaluation.ratings import RatedSet, read_table
from softclip_cli.evaluation.sets import ClassificationSet, CompositionSet, MultiLabelSet, PairedSet, RetrievalSet

HELD_OUT = 0.2  # share of the images that a probe is tested on where the data has one split only [ours]


class NoTrainingSplit(DataError):
    """A dataset has nothing that a probe could be fitted on."""


@dataclass(frozen=True)
class Texts:
    """Class names and templates that the user gives instead of the dataset's own."""

    class_names: Path | None = None
    templates: Path | None = None


@dataclass(frozen=True)
class ProbeSets:
    """What a linear probe needs; `validation` is None where the data has none. `notes` says how the sets came about."""

    train: ClassificationSet
    validation: ClassificationSet | None
    test: ClassificationSet
    notes: dict[str, object]


# Classification


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
    if folder is None:
        name, entry = find_entry(base)
        require_task(name, entry, "classification")
        place, layout, found_split = find_set(name, entry, data_root(root), split or part)
        return _classification(name, place, layout, found_split, entry, texts)
    corpus = corpus_at(folder)
    if corpus is not None:
        task = find_task(corpus, "zeroshot", part)
        if task is not None:
            return _with_texts(classification_task(corpus, task, split), texts)
    layout, splits = layout_of(folder, "classification")
    chosen = require_split(split or part, splits, str(folder)) if split or part else _test_split(splits, folder)
    return _classification(folder.resolve().name, folder, layout, chosen, None, texts)


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


def _classification(
    name: str, folder: Path, layout: Layout, split: str, entry: Entry | None, texts: Texts
) -> ClassificationSet:
    found: Labelled = layout.read("classification", folder, split, wanted(entry) if entry else Wanted())
    _check_split(name, split, len(found.images), entry, folder)
    return ClassificationSet(
        name=name,
        split=split or "all",
        images=found.images,
        labels=found.labels,
        **_facts(name, folder, layout, split, entry, texts, found),
    )


def _facts(
    name: str,
    folder: Path,
    layout: Layout,
    split: str,
    entry: Entry | None,
    texts: Texts,
    found: Labelled | MultiLabelled,
) -> dict[str, Any]:
    """What a set of either kind says of its classes, prompts and place."""
    if entry and entry.classes and found.class_count not in (None, entry.classes):
        raise DataError(
            f"{name}: {found.class_count:,} classes in {folder} where {entry.classes:,} are expected",
            "it is another dataset, or another version of it",
            f"to evaluate it as it is, give the folder itself: --dataset {folder}",
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
        "layout": layout.name,
        "where": str(folder),
        "expected_size": _size(entry, split) if entry else None,
        "allow_empty": bool(entry and entry.empty_classes),
    }


def _check_split(name: str, split: str, count: int, entry: Entry | None, folder: Path) -> None:
    """Refuse images that are as many as another split has, where this one has another number."""
    if entry is None or _size(entry, split) in (None, count):
        return
    other = next((there for there, size in entry.sizes.items() if size == count), None)
    if other is not None:
        raise DataError(
            f"{name}: split {split} in {folder} has {count:,} images, which is the size of split {other}",
            f"{split} has {_size(entry, split):,}: the splits are mixed up, and a score on images that a model was trained "
            "on is worth nothing",
            f"put the right images there, or say --split {other}",
        )


def _size(entry: Entry, split: str) -> int | None:
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
    texts = texts or Texts()
    folder, entry = own_folder(base), None
    if folder is None:
        name, entry = find_entry(base)
        require_task(name, entry, "multi-label")
        folder, layout, chosen = find_set(name, entry, data_root(root), split or part)
    else:
        name = folder.resolve().name
        layout, splits = layout_of(folder, "multi-label")
        chosen = require_split(split or part, splits, str(folder)) if split or part else _test_split(splits, folder)
    found: MultiLabelled = layout.read("multi-label", folder, chosen, wanted(entry) if entry else Wanted())
    _check_split(name, chosen, len(found.images), entry, folder)
    ignored = None if found.ignored is None else tuple(np.array(own, dtype=np.int64) for own in found.ignored)
    return MultiLabelSet(
        name=name,
        split=chosen or "all",
        images=found.images,
        labels=tuple(np.array(own, dtype=np.int64) for own in found.labels),
        ignored=ignored,
        **_facts(name, folder, layout, chosen, entry, texts, found),
    )


def _with_texts(data: ClassificationSet, texts: Texts) -> ClassificationSet:
    from dataclasses import replace

    if texts.class_names is not None:
        given = names.read_class_names(texts.class_names)
        data = replace(data, class_names=given, class_names_source=texts.class_names.name)
    if texts.templates is not None:
        data = replace(data, prompts=names.read_templates(texts.templates), prompts_source=texts.templates.name)
    return data


# The three sets of a linear probe


def probe_sets(
    dataset: str,
    *,
    split: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    root: Path | None = None,
    seed: int = 0,
) -> ProbeSets:
    """Open the sets of a linear probe: train, the official validation split where there is one, and test.

    A folder without splits is divided: a stratified fifth, drawn with `seed`, is the test set, and the notes say so.

    Raises:
        DataError: as `classification_set`; or there is nothing to fit on.
    """
    base, part = parse_dataset(dataset)
    folder = own_folder(base)
    corpus = corpus_at(folder) if folder is not None else None
    task = None
    if corpus is not None:
        task = find_task(corpus, "probe", part) or find_task(corpus, "zeroshot", part)
    if corpus is not None and task is not None:
        train_name = train_split or training_split(corpus, task)
        if train_name is None:
            raise _nothing_to_fit(dataset, [name for name in corpus.splits if name != task.split])
        return ProbeSets(
            classification_task(corpus, task, train_name),
            classification_task(corpus, task, validation_split) if validation_split else None,
            classification_task(corpus, task, split),
            {},
        )
    if folder is None:
        name, entry = find_entry(base)
        require_task(name, entry, "classification")
        test = classification_set(base, split=split or part, root=root)
        train_name, validation_split = train_split or entry.train, validation_split or entry.validation
        if train_name is None:
            raise _nothing_to_fit(name, sorted(entry.sizes))
        train = classification_set(base, split=train_name, root=root)
        validation = classification_set(base, split=validation_split, root=root) if validation_split else None
        return ProbeSets(train, validation, test, {})
    _, splits = layout_of(folder, "classification")
    if splits == [WHOLE] or (len(splits) == 1 and not train_split):
        whole = classification_set(base, split=splits[0] or None, root=root)
        fit, held = stratified_split(whole.labels, HELD_OUT, seed)
        notes: dict[str, object] = {"held_out": f"a stratified {HELD_OUT:.0%} of the only split, seed {seed}"}
        return ProbeSets(whole.subset(fit, "train (held out)"), None, whole.subset(held, "test (held out)"), notes)
    test = classification_set(base, split=split or part or None, root=root)
    train_name = train_split or match_split("train", splits)
    if train_name is None:
        raise _nothing_to_fit(base, splits)
    if validation_split is None:
        validation_split = match_split("val", [name for name in splits if name not in (test.split, train_name)])
    train = classification_set(base, split=train_name, root=root)
    validation = classification_set(base, split=validation_split, root=root) if validation_split else None
    return ProbeSets(train, validation, test, {})


def _nothing_to_fit(name: str, splits: list[str]) -> NoTrainingSplit:
    return NoTrainingSplit(
        f"{name} has no training split for a linear probe",
        "its splits: " + (", ".join(splits) or "only the test split"),
        f"name the one to fit on: --train-split {splits[0]}"
        if splits
        else "a probe needs labelled images beside the test set",
    )


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide indices into (rest, drawn), drawing `share` of each class, but never a class's last image.

    Args:
        labels: int64 (N,).
        share: of each class, rounded; at least one image of a class that has two.
        seed: of NumPy's default generator.
    """
    rng = np.random.default_rng(seed)
    drawn: list[np.ndarray] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        drawn.append(members[:count])
    chosen = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


# Retrieval


def retrieval_set(reference: str, *, root: Path | None = None) -> RetrievalSet:
    """Open a retrieval set: a catalogue name, a corpus (`CORPUS` or `CORPUS:SPLIT`) or a folder with captions.

    Raises:
        DataError: not there, not in an accepted layout, or its gallery has another size than the catalogue states.
    """
    base, part = parse_dataset(reference)
    folder = own_folder(base)
    if folder is None:
        name, entry = find_entry(base)
        require_task(name, entry, "retrieval")
        place, layout, split = find_set(name, entry, data_root(root), part)
        return _retrieval(name, place, layout, split, entry)
    corpus = corpus_at(folder)
    if corpus is not None:
        return retrieval_task(corpus, part or None)
    layout, splits = layout_of(folder, "retrieval")
    split = require_split(part, splits, str(folder)) if part else _test_split(splits, folder)
    return _retrieval(folder.resolve().name, folder, layout, split, None)


def _retrieval(name: str, folder: Path, layout: Layout, split: str, entry: Entry | None) -> RetrievalSet:
    found: Captioned = layout.read("retrieval", folder, split, wanted(entry) if entry else Wanted())
    captions, notes = found.captions, dict(found.notes)
    expected = _size(entry, split) if entry else None
    if expected is not None and len(captions) != expected:
        raise DataError(
            f"{name}: {len(captions):,} images where this test set has {expected:,}",
            "recall depends on the size of the gallery, so the numbers would not be those of this test set: "
            "it is another split, or the copy is incomplete",
            f"to evaluate what is there under its own name, give the folder itself: --split {folder}",
        )
    if entry and entry.captions_per_image:
        count = entry.captions_per_image
        short = next((index for index, texts in enumerate(captions) if len(texts) < count), None)
        if short is not None:
            raise DataError(
                f"{name}: image {found.images.key(short)} has {len(captions[short])} captions, {count} are expected",
                hint="take the caption file of the original release",
            )
        left_out = sum(len(texts) - count for texts in captions)
        if left_out:
            notes["captions_left_out"] = f"{left_out:,} beyond the first {count} of their images"
        captions = [texts[:count] for texts in captions]
    return RetrievalSet(name, split or "all", found.images, captions, layout.name, str(folder), notes)


# Ratings


def rated_set(
    dataset: str, *, root: Path | None = None, images: Path | None = None, describes: float | None = None
) -> RatedSet:
    """Open rated pairs: a catalogue name, or the user's own table.

    Args:
        dataset: as the user wrote it.
        root: where catalogue datasets are; see `data_root`.
        images: the folder of a table's images; default: the table's own.
        describes: from which median rating on a text describes the image; default: the catalogue's, or the highest rating.

    Raises:
        DataError: not there, or it cannot be read.
        UsageError: `images` for a dataset of the catalogue.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        return read_table(path, images, describes)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"):
        raise DataError(f"no table of ratings at {dataset}", "the file does not exist")
    name, entry = find_entry(dataset)
    require_task(name, entry, "ratings")
    if images is not None:
        raise UsageError(
            f"--images does not go with {name}",
            "a dataset of the catalogue has its images beside it",
            "use --data-root DIR",
        )
    folder, layout, split = find_set(name, entry, data_root(root), None)
    found = layout.read("ratings", folder, split, wanted(entry))
    limit = entry.describes if describes is None else describes
    return RatedSet(name=name, split=split, **vars(found), describes=limit, kendall=entry.kendall, layout=layout.name)


# Composition


def composition_set(dataset: str, *, split: str | None = None, root: Path | None = None) -> CompositionSet | PairedSet:
    """Open a set of captions that an edit made false (a catalogue name, a corpus, or a folder), or of pairs (Winoground).

    Args:
        dataset: as the user wrote it.
        split: by default the catalogue's, or the first one of a folder; SugarCrepe's are its kinds of edit.
        root: where catalogue datasets are; see `data_root`.

    Raises:
        DataError: not there, not in an accepted layout, or its files do not match its images.
    """
    base, part = parse_dataset(dataset)
    folder, entry = own_folder(base), None
    if folder is None:
        name, entry = find_entry(base)
        require_task(name, entry, "composition")
        folder, layout, chosen = find_set(name, entry, data_root(root), split or part)
    else:
        name = folder.resolve().name
        corpus = corpus_at(folder)
        if corpus is not None:
            task = find_task(corpus, "composition", split or part)
            if task is None:
                raise DataError(
                    f"{folder} offers no composition",
                    "its corpus.json lists none",
                    "the generated corpus has hard negatives: softclip data generate OUT",
                )
            return composition_task(corpus, task)
        layout, splits = layout_of(folder, "composition")
        chosen = require_split(split or part, splits, str(folder)) if split or part else splits[0]
    found = layout.read("composition", folder, chosen, wanted(entry) if entry else Wanted())
    if isinstance(found, Contrasted):
        return CompositionSet(name, chosen, **vars(found), layout=layout.name)
    expected = entry.sizes.get(chosen) if entry else None
    return PairedSet(name, chosen, **vars(found), layout=layout.name, expected_size=expected)
