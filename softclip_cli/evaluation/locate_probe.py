"""From what a user names to the three sets of a linear probe: fitted on, chosen by, tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.catalogue import find_entry
from softclip_cli.evaluation.corpus_sets import classification_task, find_task, training_split
from softclip_cli.evaluation.find import corpus_at, layout_of, own_folder, parse_dataset, require_task
from softclip_cli.evaluation.layouts import WHOLE, match_split
from softclip_cli.evaluation.locate import classification_set
from softclip_cli.evaluation.sets import ClassificationSet

HELD_OUT = 0.2  # share of the images that a probe is tested on where the data has one split only [ours]


class NoTrainingSplit(DataError):
    """A dataset has nothing that a probe could be fitted on."""


@dataclass(frozen=True)
class ProbeSets:
    """What a linear probe needs; `validation` is None where the data has none. `notes` says how the sets came about."""

    train: ClassificationSet
    validation: ClassificationSet | None
    test: ClassificationSet
    notes: dict[str, object]


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
