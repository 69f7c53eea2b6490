"""What the evaluations take: images with labels and class names, or with captions. Checked when they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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
        check_class_names(label, self.class_names, self.class_count, self.class_names_source)
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
        check_empty(label, self.empty_classes if not self.allow_empty else (), self.class_count, self.class_label)
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
class MultiLabelSet:
    """Images with any number of true classes each.

    Attributes:
        name, split, images, class_names, class_count, prompts, class_names_source, prompts_source, layout, where,
            expected_size, allow_empty: as for `ClassificationSet`.
        labels: N sorted int64 arrays, the true classes of each image; one may be empty.
        ignored: N sorted int64 arrays, the classes that do not count for an image, neither as true nor as false, such as
            VOC's objects that are marked difficult; None: all count.

    Raises:
        DataError: as `ClassificationSet`; or a class is both true and ignored for an image.
    """

    name: str
    split: str
    images: ImageSource
    labels: tuple[np.ndarray, ...]
    class_names: tuple[str, ...] | None = None
    class_count: int = 0
    prompts: tuple[str, ...] = GENERIC_PROMPTS
    class_names_source: str = ""
    prompts_source: str = GENERIC_SOURCE
    layout: str = ""
    where: str = ""
    expected_size: int | None = None
    ignored: tuple[np.ndarray, ...] | None = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "images", as_images(self.images))
        set_(self, "labels", tuple(np.unique(np.asarray(own, dtype=np.int64)) for own in self.labels))
        if self.ignored is not None:
            set_(self, "ignored", tuple(np.unique(np.asarray(own, dtype=np.int64)) for own in self.ignored))
        if self.class_names is not None:
            set_(self, "class_names", tuple(self.class_names))
            set_(self, "class_count", self.class_count or len(self.class_names))
        highest = max((int(own[-1]) for own in self.labels if len(own)), default=-1)
        set_(self, "class_count", self.class_count or highest + 1)
        set_(self, "prompts", tuple(self.prompts))
        self._check()

    def _check(self) -> None:
        label = f"{self.name} (split {self.split})"
        if len(self.images) == 0:
            raise DataError(f"{label} has no images", self.where and f"nothing was found in {self.where}")
        if len(self.images) != len(self.labels) or len(self.images) != len(self.ignored or self.labels):
            raise DataError(f"{label}: {len(self.images):,} images but labels for {len(self.labels):,}")
        check_class_names(label, self.class_names, self.class_count, self.class_names_source)
        for index, own in enumerate(self.labels):
            for classes in (own, self.ignored[index]) if self.ignored is not None else (own,):
                if len(classes) and (classes[0] < 0 or classes[-1] >= self.class_count):
                    raise DataError(
                        f"{label}: label {classes[0] if classes[0] < 0 else classes[-1]} of image "
                        f"{self.images.key(index)} is outside the {self.class_count:,} classes",
                        f"labels must be 0 to {self.class_count - 1}",
                        "correct the labels or class names",
                    )
            if self.ignored is not None and len(np.intersect1d(own, self.ignored[index])):
                both = self.class_label(int(np.intersect1d(own, self.ignored[index])[0]))
                raise DataError(f"{label}: {both} is both true and ignored for image {self.images.key(index)}")
        check_empty(label, self.empty_classes if not self.allow_empty else (), self.class_count, self.class_label)
        if not any(len(own) for own in self.labels):
            raise DataError(f"{label}: no image has a label", self.where and f"read from {self.where}")
        check_prompts(self.prompts, self.prompts_source)

    @property
    def empty_classes(self) -> np.ndarray:
        """Indices of the classes that are true for no image."""
        return np.flatnonzero(np.bincount(np.concatenate(self.labels), minlength=self.class_count) == 0)

    def class_label(self, index: int) -> str:
        """The class's name, or its number where it has none."""
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def content(self) -> str:
        """SHA-256 over labels, ignored classes and number of classes: with the images' hash it identifies the set."""
        ignored = None if self.ignored is None else [own.tolist() for own in self.ignored]
        return digest(self.class_count, [own.tolist() for own in self.labels], ignored)


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


def check_class_names(label: str, class_names: Sequence[str] | None, class_count: int, source: str) -> None:
    """Check that there is a name for each class.

    Raises:
        DataError: another number of names, or an empty one.
    """
    if class_names is None:
        return
    if len(class_names) != class_count:
        raise DataError(
            f"{label}: {len(class_names):,} class names for {class_count:,} classes",
            f"the names came from {source or 'the caller'}",
            "give one name a class, in label order, with --classnames FILE",
        )
    empty = next((number for number, name in enumerate(class_names) if not name.strip()), None)
    if empty is not None:
        raise DataError(f"{label}: class {empty} has an empty name", f"source: {source}")


def check_empty(label: str, empty: Sequence[int] | np.ndarray, class_count: int, name: Callable[[int], str]) -> None:
    """Check that no class is without images.

    Raises:
        DataError: some are; names the first.
    """
    if len(empty):
        raise DataError(
            f"{label}: {len(empty):,} of {class_count:,} classes have no image: {', '.join(name(c) for c in empty[:5])}",
            "the copy is incomplete, or the class names are those of another dataset",
            "complete the copy, or name only the classes that are there with --classnames FILE",
        )


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
