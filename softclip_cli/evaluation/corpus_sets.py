"""The evaluations that a prepared corpus offers: what `corpus.json` lists under `tasks`, as ready sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import DataError, nearest
from softclip_cli.evaluation.images import ArrowImages
from softclip_cli.evaluation.layout_tables import corpus_table
from softclip_cli.evaluation.layouts import Wanted, require_split
from softclip_cli.evaluation.sets import (
    GENERIC_PROMPTS,
    GENERIC_SOURCE,
    ClassificationSet,
    CompositionSet,
    RetrievalSet,
)

KINDS = ("zeroshot", "probe", "retrieval", "shift", "composition")
LAYOUT = "corpus"


@dataclass(frozen=True)
class Task:
    """One evaluation that a corpus offers.

    Attributes:
        kind: zeroshot, probe, retrieval, shift or composition.
        name: within its kind, such as "kind-colour" or "outline".
        split: the split that it is made on.
        spec: the corpus's own description: label column, class list, ...
    """

    kind: str
    name: str
    split: str
    spec: dict[str, Any]


def corpus_tasks(corpus: Corpus, kinds: tuple[str, ...] = KINDS) -> list[Task]:
    """What the corpus offers, by kind and in the order that `corpus.json` has.

    Raises:
        DataError: a task names a split or a list of classes that is not there.
    """
    offered = corpus.info.get("tasks") or {}
    tasks = []
    for kind in kinds:
        entry = offered.get(kind) or {}
        # A kind that is one task stands by itself: {"split": ...}.
        named: Mapping[str, Any] = {entry["split"]: entry} if isinstance(entry.get("split"), str) else entry
        for name, spec in named.items():
            split = require_split(spec.get("split") or spec.get("test") or "test", corpus.splits, str(corpus.path))
            tasks.append(Task(kind, name, split, dict(spec)))
    return tasks


def find_task(corpus: Corpus, kind: str, name: str = "") -> Task | None:
    """The task of this kind and name, or the first of its kind; None where the corpus offers none of the kind.

    Raises:
        DataError: the kind is there, the name is not.
    """
    tasks = corpus_tasks(corpus, (kind,))
    if not tasks or not name:
        return tasks[0] if tasks else None
    for task in tasks:
        if task.name == name:
            return task
    names = [task.name for task in tasks]
    raise DataError(f"{corpus.path} has no {kind} task {name!r}", "it has " + ", ".join(names), nearest(name, names))


def classification_task(corpus: Corpus, task: Task, split: str | None = None) -> ClassificationSet:
    """The set of a zero-shot or shift task, on its own split or another with the same label column.

    Raises:
        DataError: no such split, label column or list of classes.
    """
    split = require_split(split, corpus.splits, str(corpus.path)) if split else task.split
    name, column = task.spec.get("classes") or task.name, task.spec.get("label", "label")
    lists = corpus.info.get("classes") or {}
    if name not in lists:
        raise DataError(
            f"{corpus.path}: task {task.name!r} names no list of classes", f"lists: {', '.join(lists) or 'none'}"
        )
    table = corpus_table(corpus, split)
    if column not in table.features:
        raise DataError(
            f"{corpus.path}: split {split!r} has no labels for the task {task.name!r}",
            f"no column {column!r}; columns: {', '.join(table.features)}",
        )
    values = table.column(column)
    kept = np.array([index for index, value in enumerate(values) if value is not None and value >= 0], dtype=np.int64)
    prompts = task.spec.get("prompts") or corpus.info.get("prompts")
    whole = ClassificationSet(
        name=f"{corpus.path.name}:{task.name}",
        split=split,
        images=table.images("image"),
        labels=np.array([0 if value is None else max(value, 0) for value in values], dtype=np.int64),
        class_names=tuple(lists[name]),
        prompts=tuple(prompts or GENERIC_PROMPTS),
        class_names_source=f"{corpus.path.name}/corpus.json",
        prompts_source=f"{corpus.path.name}/corpus.json" if prompts else GENERIC_SOURCE,
        layout=LAYOUT,
        allow_empty=True,
        where=str(corpus.path),
    )
    if len(kept) == len(values):
        return whole
    if not len(kept):
        raise DataError(f"{corpus.path}: no image of split {split!r} has a label for the task {task.name!r}")
    return whole.subset(kept)


def training_split(corpus: Corpus, task: Task) -> str | None:
    """The split that a probe is fitted on: the one that the task names, else `train` if its images carry the label."""
    column = task.spec.get("label", "label")
    name = task.spec.get("train") or ("train" if "train" in corpus.splits else None)
    return name if name in corpus.splits and column in corpus.split(name).column_names else None


def retrieval_task(corpus: Corpus, split: str | None = None) -> RetrievalSet:
    """The retrieval set of one split, by default the corpus's own retrieval task, else its `test` split."""
    if not split:
        task = find_task(corpus, "retrieval")
        split = task.split if task else "test"
    split = require_split(split, corpus.splits, str(corpus.path))
    found = corpus_table(corpus, split).captioned(Wanted(image_column="image"))
    return RetrievalSet(corpus.path.name, split, found.images, found.captions, LAYOUT, str(corpus.path), found.notes)


def composition_task(corpus: Corpus, task: Task) -> CompositionSet:
    """The compositional hard negatives: columns `captions` (one true), `hard_negatives` and `edit`."""
    data = corpus.split(task.split)
    missing = {"captions", "hard_negatives", "edit"} - set(data.column_names)
    if missing:
        raise DataError(
            f"{corpus.path}: split {task.split!r} holds no hard negatives", f"no column {', '.join(sorted(missing))}"
        )
    images = ArrowImages(data, f"{corpus.fingerprint}/{task.split}", "image", "key")
    captions = [texts[0] for texts in data["captions"][:]]
    return CompositionSet(
        corpus.path.name, task.split, images, captions, list(data["hard_negatives"][:]), list(data["edit"][:])
    )
