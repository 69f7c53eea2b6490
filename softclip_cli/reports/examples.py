"""What a page shows as pictures: retrieval examples and training pairs, as plain data without any drawing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What is said of a training pair, by the noise that the generated corpus stores.
NOISES = {
    "clean": "matches",
    "none": "matches",
    "": "matches",
    "mismatched": "mismatched",
    "vague": "vague",
    "partial": "partial",
}


@dataclass(frozen=True)
class RetrievalResult:
    """One retrieved item.

    Attributes:
        caption: the retrieved caption, or a caption of the retrieved image.
        score: cosine similarity to the query.
        correct: whether it belongs to the query.
        image: the retrieved image, encoded; None for a retrieved caption.
    """

    caption: str
    score: float
    correct: bool
    image: bytes | None = None


@dataclass(frozen=True)
class RetrievalExample:
    """One query with what a model retrieved for it, best first. Exactly one of the two queries is given.

    Attributes:
        results: the retrieved items, best first.
        model: name of the model, as the page's tables name it.
        query_text: a caption that asks for images.
        query_image: an encoded image that asks for captions.
        rank: 1-based rank of the best correct item in the whole gallery, where known.
        gallery: number of items that were searched, where known.
    """

    results: tuple[RetrievalResult, ...]
    model: str = ""
    query_text: str | None = None
    query_image: bytes | None = None
    rank: int | None = None
    gallery: int | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RetrievalExample:
        """Make one from a plain mapping: the attributes by name, the results as mappings too."""
        results = tuple(
            RetrievalResult(
                caption=str(item.get("caption", "")),
                score=float(item["score"]),
                correct=bool(item["correct"]),
                image=item.get("image"),
            )
            for item in plain["results"]
        )
        known = ("model", "query_text", "query_image", "rank", "gallery")
        return cls(results=results, **{name: plain[name] for name in known if plain.get(name) is not None})

    @property
    def query(self) -> str:
        """Identifies the query, so that several models' answers to it can be shown together."""
        if self.query_image is not None:
            return "image:" + hashlib.sha256(self.query_image).hexdigest()
        return f"text:{self.query_text}"


@dataclass(frozen=True)
class TrainingPair:
    """One pair as the model saw it in training.

    Attributes:
        image: encoded.
        caption: the caption it was trained with.
        noise: what is wrong with the pair: `mismatched`, `vague`, `partial`, or `clean`.
    """

    image: bytes
    caption: str
    noise: str = "clean"

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TrainingPair:
        """Make one from a plain mapping: the attributes by name."""
        return cls(image=plain["image"], caption=str(plain["caption"]), noise=str(plain.get("noise") or "clean"))

    @property
    def verdict(self) -> str:
        """`fine` where the caption describes the image, `wrong` where it belongs to another, `weak` between the two."""
        return {"matches": "fine", "mismatched": "wrong"}.get(self.noise_label, "weak")

    @property
    def noise_label(self) -> str:
        """The noise in a word for people."""
        return NOISES.get(self.noise, self.noise)


def as_examples(items: Iterable[RetrievalExample | Mapping[str, Any]]) -> list[RetrievalExample]:
    """Examples given as dataclasses or plain mappings → dataclasses."""
    return [item if isinstance(item, RetrievalExample) else RetrievalExample.from_dict(item) for item in items]


def as_pairs(items: Iterable[TrainingPair | Mapping[str, Any]]) -> list[TrainingPair]:
    """Training pairs given as dataclasses or plain mappings → dataclasses."""
    return [item if isinstance(item, TrainingPair) else TrainingPair.from_dict(item) for item in items]


def by_query(examples: Sequence[RetrievalExample]) -> list[list[RetrievalExample]]:
    """Group the examples of one query (one a model) in order of first appearance."""
    groups: dict[str, list[RetrievalExample]] = {}
    for example in examples:
        groups.setdefault(example.query, []).append(example)
    return list(groups.values())
