"""Robustness to natural shifts: zero-shot accuracy on a reference set and on shifted sets of the same classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation.catalogue import catalogue, find_entry
from softclip_cli.evaluation.effective import (
    Line,
    difference_in_points,
    effective_robustness,
    exact_metric,
    hits_of,
)
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, ImageFeatures, Progress, embed_images
from softclip_cli.evaluation.find import match_split, own_folder, parse_dataset
from softclip_cli.evaluation.images import Subset
from softclip_cli.evaluation.locate import Texts, classification_set
from softclip_cli.evaluation.names import subset_of_reference
from softclip_cli.evaluation.robustness import add_drop
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.zeroshot import require_class_names, zero_shot

LineOf = Callable[[dict[str, Any], dict[str, Any]], Line | None]


@dataclass(frozen=True)
class Shifted:
    """A shifted set, and the reference's classes that it has: None for all of them, in the same order."""

    data: ClassificationSet
    classes: tuple[int, ...] | None


def shift_names(reference: str) -> list[str]:
    """The shifted sets of a reference that the catalogue knows: other sets, or other splits of the same one.

    Raises:
        UsageError: it knows none.
    """
    base, _ = parse_dataset(reference)
    found: list[str] = []
    if own_folder(base) is None:
        name, entry = find_entry(base)
        found = [other for other, its in catalogue().items() if its.reference == name]
        found += [f"{name}:{split}" for split in entry.shift_splits]
    if not found:
        raise UsageError(
            f"no shifted sets of {reference} are known",
            "the catalogue names none, and a folder of one's own has none",
            "name them: --shift FOLDER (repeatable), or --shift FOLDER:SPLIT for a split of one; a generated corpus has its own:"
            " softclip eval corpus",
        )
    return found


def open_shifts(
    reference: ClassificationSet,
    reference_name: str,
    names: Sequence[str],
    *,
    root: Path | None = None,
    texts: Texts | None = None,
) -> list[Shifted]:
    """Open shifted sets; each gets the reference's prompts and, where the classes are the same, its class names.

    So one classifier is judged on both.

    Raises:
        DataError: one cannot be opened, or has a class that the reference lacks.
    """
    class_names = require_class_names(reference)
    opened = []
    for name in names:
        data = classification_set(name, root=root, texts=texts)
        data = replace(data, prompts=reference.prompts, prompts_source=f"{reference.prompts_source} (the reference's)")
        classes, same = _catalogued(reference_name, name, data) or (_by_name(reference, class_names, data), True)
        if same:
            kept = class_names if classes is None else tuple(class_names[index] for index in classes)
            data = replace(
                data, class_names=kept, class_names_source=f"{reference.class_names_source} (the reference's)"
            )
        opened.append(Shifted(data, classes))
    return opened


def _catalogued(reference: str, name: str, data: ClassificationSet) -> tuple[tuple[int, ...] | None, bool] | None:
    """What the catalogue says of a shifted set of a reference: the reference's classes that it has, and whether they are
    the same classes one by one. None where it says nothing.

    ObjectNet's classes are wider than ImageNet's, so they keep their own names and numbers.
    """
    base, shift_base = parse_dataset(reference)[0], parse_dataset(name)[0]
    if own_folder(base) is not None or own_folder(shift_base) is not None:
        return None
    (base, reference_entry), entry = find_entry(base), find_entry(shift_base)[1]
    if entry.reference != base:
        return None
    listed = subset_of_reference(entry, Path(data.where))
    if listed is None and entry.reference_subset:
        raise DataError(
            f"{data.name}: the list of the classes that it shares with {base} is missing",
            f"there is no {entry.reference_subset.partition(':')[2]} in {data.where}",
            f"take it from the set's own release: {entry.site}",
        )
    same = entry.class_names == reference_entry.class_names
    if same and (len(listed) if listed is not None else reference_entry.classes) != data.class_count:
        return None
    return listed, same


def _by_name(
    reference: ClassificationSet, class_names: tuple[str, ...], data: ClassificationSet
) -> tuple[int, ...] | None:
    """The reference's classes that a shifted set has, by their names, in the order of its labels; None: all, in that order."""
    own = require_class_names(data)
    if own == class_names:
        return None
    place = {word: index for index, word in enumerate(class_names)}
    unknown = [word for word in own if word not in place]
    if unknown or len(place) < len(class_names):
        raise DataError(
            f"{data.name} (split {data.split}) and {reference.name} do not have the same classes",
            f"{len(unknown):,} of {len(own):,} class names are not the reference's, first {unknown[0]!r}"
            if unknown
            else "the reference has two classes of the same name",
            "give both the same names: --classnames FILE, or classnames.txt in each folder",
        )
    return tuple(place[word] for word in own)


def of_classes(data: ClassificationSet, classes: Sequence[int]) -> tuple[ClassificationSet, np.ndarray]:
    """The images of some classes, which become the classes 0, 1, … in the order given, and the rows that they are."""
    number = np.full(data.class_count, -1, dtype=np.int64)
    number[list(classes)] = np.arange(len(classes))
    rows = np.flatnonzero(number[data.labels] >= 0)
    names = data.class_names
    part = replace(
        data,
        images=Subset(data.images, rows.tolist()),
        labels=number[data.labels[rows]],
        class_names=None if names is None else tuple(names[index] for index in classes),
        class_count=len(classes),
        expected_size=None,
    )
    return part, rows


class References:
    """The zero-shot results on the reference's classes that the shifted sets ask for; its images are embedded once."""

    def __init__(
        self,
        model: EmbeddingModel,
        data: ClassificationSet,
        options: EmbedOptions,
        single_only: bool,
        progress: Progress | None,
    ) -> None:
        self.model, self.data, self.options = model, data, options
        self.single_only, self.progress = single_only, progress
        self._features: ImageFeatures | None = None
        self._known: dict[tuple[int, ...] | None, dict[str, Any]] = {}

    def __call__(self, classes: tuple[int, ...] | None) -> dict[str, Any]:
        """The result on these classes."""
        if classes not in self._known:
            if self._features is None:
                self._features = embed_images(
                    self.model,
                    self.data.images,
                    name=self.data.name,
                    split=self.data.split,
                    options=self.options,
                    progress=self.progress,
                )
            data, features = self.data, self._features
            if classes is not None:
                data, rows = of_classes(data, classes)
                features = features.take(rows)
            self._known[classes] = zero_shot(
                self.model,
                data,
                options=self.options,
                features=features,
                single_only=self.single_only,
                progress=self.progress,
            )
        return self._known[classes]


def robustness(
    model: EmbeddingModel,
    reference: ClassificationSet,
    shifts: Sequence[Shifted],
    *,
    line_of: LineOf | None = None,
    relative_to: EmbeddingModel | None = None,
    options: EmbedOptions | None = None,
    single_only: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a model on shifted sets.

    Args:
        model: the model; its training mode is left as it was.
        reference: the set without the shift.
        shifts: see `open_shifts`.
        line_of: (reference's result, shifted set's result) → the line through standard models, or None for no effective robustness.
        relative_to: the model whose accuracy on the same shifted set is subtracted (relative robustness, Taori et al. 2020).
        options: how to embed.
        single_only: use the single prompt, no ensemble.
        progress: called with (done, total) of whatever is running.

    Returns:
        One result document (docs/design.md) a shifted set, in order: `top1` and `reference_top1` with exact intervals, `drop`,
        and, where there is a line or another model, `effective_robustness` and `relative_robustness` in percentage points.

    Raises:
        DataError: a class without a name, or an image that cannot be decoded.
        ModelError: an embedding is not finite.
    """
    options = options or EmbedOptions()
    mine = References(model, reference, options, single_only, progress)
    documents = []
    for shift in shifts:

        def judge(one: EmbeddingModel, data: ClassificationSet = shift.data) -> dict[str, Any]:
            return zero_shot(one, data, options=options, single_only=single_only, progress=progress)

        unshifted, shifted = mine(shift.classes), judge(model)
        other = judge(relative_to) if relative_to is not None else None
        line = line_of(unshifted, shifted) if line_of is not None else None
        documents.append(_document(unshifted, shifted, line, other))
    return documents


def _document(
    unshifted: dict[str, Any], shifted: dict[str, Any], line: Line | None, other: dict[str, Any] | None
) -> dict[str, Any]:
    before, after = hits_of(unshifted["metrics"]["top1"]), hits_of(shifted["metrics"]["top1"])
    document = add_drop(shifted, unshifted)
    metrics = {**document["metrics"], "top1": exact_metric(*after), "reference_top1": exact_metric(*before)}
    protocol, details = dict(document["protocol"]), dict(document["details"])
    protocol["reference"] = {**protocol["reference"], "fingerprint": unshifted["dataset"]["fingerprint"]}
    protocol["reference"]["classes"] = unshifted["dataset"]["classes"]
    if line is not None:
        metrics["effective_robustness"] = effective_robustness(line, before, after)
        protocol["line"] = {
            "through": line.source,
            "fit": "least squares in logits",
            "slope": line.slope,
            "intercept": line.intercept,
        }
        details["line"] = line.facts() | {"extrapolated": not line.reaches(before[0] / before[1])}
        details["predicted_top1"] = line.predict(before[0] / before[1])
    if other is not None:
        metrics["relative_robustness"] = difference_in_points(after, hits_of(other["metrics"]["top1"]))
        protocol["relative_to"] = {**other["model"], "top1": other["metrics"]["top1"]["value"]}
    return {**document, "task": "robustness", "metrics": metrics, "protocol": protocol, "details": details}


def reported_split(name: str, split: str) -> bool:
    """Whether a split is the one that the catalogue reports for this set: the shipped tables are about no other."""
    entry = catalogue().get(name)
    return entry is not None and match_split(entry.split, [split]) is not None
