"""What the evaluations take: images with labels and class names, or with captions. Checked when they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import ImageSource, Subset, as_images, digest

GENERIC_PROMPTS = ("a photo of a {}.",)
GENERIC_SOURCE = "generic prompt (none are known for this dataset)"


@dataclass(frozen=True, eq=False)  # arrays have no single truth value: a set equals itself only
class ClassificationSet:
    """Images with one label each.

    Attributes:
        name: of the dataset, as results show it.
        split: the split that the images are.
        images: N encoded images.
        labels: int64 (N,), indices into the classes.
        class_names: in label order; None where the data has none (enough for a linear probe).
        class_count: number of classes.
        prompts: templates with `{}` where the class name goes.
        class_names_source, prompts_source: where they came from, for the result.
        layout: which folder layout was read.
        allow_empty: classes without images are left out of the mean per class instead of being an error.
        where: the folder, for messages.
        expected_size: how many images the whole split has, where the catalogue knows; a result states a difference.

    Raises:
        DataError: no images, labels that do not fit the images or the classes, a class without images, a bad prompt.
    """

    name: str
    split: str
    images: ImageSource
    labels: np.ndarray
    class_names: tuple[str, ...] | None = None
    class_count: int = 0
    prompts: tuple[str, ...] = GENERIC_PROMPTS
    class_names_source: str = ""
    prompts_source: str = GENERIC_SOURCE
    layout: str = ""
    allow_empty: bool = False
    where: str = ""
    expected_size: int | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "images", as_images(self.images))
        set_(self, "labels", np.asarray(self.labels, dtype=np.int64))
        if self.class_names is not None:
            set_(self, "class_names", tuple(self.class_names))
            set_(self, "class_count", self.class_count or len(self.class_names))
        set_(self, "class_count", self.class_count or (int(self.labels.max()) + 1 if len(self.labels) else 0))
        set_(self, "prompts", tuple(self.prompts))
        self._check()

    def _check(self) -> None:
        label = f"{self.name} (split {self.split})"
        if len(self.images) == 0:
            raise DataError(f"{label} has no images", self.where and f"nothing was found in {self.where}")
        if len(self.images) != len(self.labels):
            raise DataError(f"{label}: {len(self.images):,} images but {len(self.labels):,} labels")
        if self.class_names is not None and len(self.class_names) != self.class_count:
            raise DataError(
                f"{label}: {len(self.class_names):,} class names for {self.class_count:,} classes",
                f"the names came from {self.class_names_source or 'the caller'}",
                "give one name a class, in label order, with --classnames FILE",
            )
        if self.class_names is not None and not all(name.strip() for name in self.class_names):
            empty = next(i for i, name in enumerate(self.class_names) if not name.strip())
            raise DataError(f"{label}: class {empty} has an empty name", f"source: {self.class_names_source}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.class_count:
            wrong = low if low < 0 else high
            index = int(np.flatnonzero(self.labels == wrong)[0])
            raise DataError(
                f"{label}: label {wrong} of image {self.images.key(index)} is outside the {self.class_count:,} classes",
                "a label of -1 usually means that this split was published without labels"
                if wrong == -1
                else f"labels must be 0 to {self.class_count - 1}",
                "choose another --split, or correct the labels or class names",
            )
        if not self.allow_empty and len(self.empty_classes):
            first = ", ".join(self.class_label(c) for c in self.empty_classes[:5])
            raise DataError(
                f"{label}: {len(self.empty_classes):,} of {self.class_count:,} classes have no image: {first}",
                "the copy is incomplete, or the class names are those of another dataset",
                "complete the copy, or name only the classes that are there with --classnames FILE",
            )
        check_prompts(self.prompts, self.prompts_source)

    @property
    def empty_classes(self) -> np.ndarray:
        """Indices of the classes without images."""
        return np.flatnonzero(np.bincount(self.labels, minlength=self.class_count) == 0)

    def class_label(self, index: int) -> str:
        """The class's name, or its number where it has none."""
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def subset(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> ClassificationSet:
        """The same classes with some of the images."""
        return replace(
            self,
            images=Subset(self.images, [int(i) for i in indices]),
            labels=self.labels[np.asarray(indices, dtype=np.int64)],
            split=split or self.split,
            allow_empty=True,
        )

    def content(self) -> str:
        """SHA-256 over labels and number of classes: with the images' hash it identifies the set."""
        return hashlib.sha256(f"{self.class_count}:".encode() + self.labels.tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Images with one or more captions each.

    Attributes:
        name, split, images, layout: as for `ClassificationSet`.
        captions: N lists of captions.
        notes: what the reader did with the data, for the result.

    Raises:
        DataError: no images, an image without captions, an empty caption, or counts that do not match.
    """

    name: str
    split: str
    images: ImageSource
    captions: list[list[str]]
    layout: str = ""
    where: str = ""
    notes: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", as_images(self.images))
        label = f"{self.name} (split {self.split})"
        if len(self.images) == 0:
            raise DataError(f"{label} has no images", self.where and f"nothing was found in {self.where}")
        if len(self.images) != len(self.captions):
            raise DataError(f"{label}: {len(self.images):,} images but captions for {len(self.captions):,}")
        for index, captions in enumerate(self.captions):
            if not captions or not all(caption.strip() for caption in captions):
                raise DataError(
                    f"{label}: image {self.images.key(index)} has {'an empty caption' if captions else 'no caption'}",
                    hint="remove the image from the set, or give it a caption",
                )

    @cached_property
    def texts(self) -> list[str]:
        """All captions, image by image."""
        return [caption for captions in self.captions for caption in captions]

    @cached_property
    def owner(self) -> np.ndarray:
        """int64 (M,): the image that each text belongs to, ascending."""
        return np.repeat(np.arange(len(self.captions)), [len(captions) for captions in self.captions])

    def gallery(self) -> str:
        """The sizes that recall depends on, for a person: `1,000 images × 5,000 texts`."""
        return f"{len(self.images):,} images × {len(self.texts):,} texts"

    def content(self) -> str:
        """SHA-256 over the captions: with the images' hash it identifies the set."""
        return digest(self.captions)


@dataclass(frozen=True, eq=False)
class CompositionSet:
    """Images with one true caption and captions that were made false by a small edit.

    Attributes:
        name, split, images: as for `ClassificationSet`.
        captions: N true captions.
        negatives: N lists of false captions.
        edits: N names of the kind of edit, such as "swap".

    Raises:
        DataError: counts that do not match, or an image without a negative.
    """

    name: str
    split: str
    images: ImageSource
    captions: list[str]
    negatives: list[list[str]]
    edits: list[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", as_images(self.images))
        label = f"{self.name} (split {self.split})"
        counts = {len(self.images), len(self.captions), len(self.negatives), len(self.edits)}
        if len(counts) != 1 or 0 in counts:
            raise DataError(f"{label}: images, captions, negatives and edits must be equally many, and some")
        for index, negatives in enumerate(self.negatives):
            if not negatives:
                raise DataError(f"{label}: image {self.images.key(index)} has no hard negative")

    def content(self) -> str:
        """SHA-256 over captions and negatives."""
        return digest(self.captions, self.negatives, self.edits)


def check_prompts(prompts: Sequence[str], source: str) -> None:
    """Check that every template has exactly one place for the class name.

    Raises:
        DataError: no template, or one without `{}` or with other braces.
    """
    if not prompts:
        raise DataError(
            "no prompt templates", f"source: {source}", "write one template a line, such as: a photo of a {}."
        )
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise DataError(
                f"prompt {prompt!r} has {prompt.count('{}')} places for the class name",
                f"source: {source}",
                "write {} exactly once in each template, such as: a photo of a {}.",
            )
