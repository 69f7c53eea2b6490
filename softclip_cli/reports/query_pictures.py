"""The example queries that retrieval results keep, with their pictures from the data, where it is on this machine."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softclip_cli.errors import SoftclipError
from softclip_cli.evaluation.images import ImageSource
from softclip_cli.reports.examples import RetrievalExample, RetrievalResult
from softclip_cli.reports.tables import Document

Kept = Mapping[str, Any]


def query_examples(
    names: Sequence[str], documents: Mapping[str, Sequence[Document]], count: int
) -> tuple[list[RetrievalExample], str]:
    """Example queries of the models' retrieval on one set: that of the first model that keeps any.

    Of the queries that were drawn at random at evaluation, as many that the first model answers at once as others are
    shown, as far as there are; all models answer the same ones.

    Args:
        names: of the models.
        documents: name → its documents.
        count: how many queries in each direction.

    Returns:
        The examples, and in a sentence how they were chosen or why there are none.
    """
    found = _same_set(names, documents)
    if count < 1 or not found:
        return [], ""
    first = next(iter(found.values()))
    kept: Kept = first["details"]["examples"]
    about = {
        number: one for document in found.values() for number, one in document["details"]["examples"]["images"].items()
    }
    pictures = _Pictures(first, about)
    if pictures.problem:
        return [], pictures.problem
    examples: list[RetrievalExample] = []
    for direction in ("text_to_image", "image_to_text"):
        for place in _chosen(kept[direction], count):
            for name, document in found.items():
                of_model: Kept = document["details"]["examples"]
                query = of_model[direction][place]
                made = _example(name, query, of_model, pictures)
                if made is not None:
                    examples.append(made)
    drawn = str(kept.get("chosen") or "drawn at random")
    whose = f" of {next(iter(found))}" if len(found) > 1 else ""
    balance = f"shown are as many hits{whose} as misses, as far as there are hits"
    gone = f"; {pictures.changed} pictures have changed since and are left out" if pictures.changed else ""
    return examples, f"{first['dataset']['name']}: {drawn}; {balance}{gone}."


def _same_set(names: Sequence[str], documents: Mapping[str, Sequence[Document]]) -> dict[str, Document]:
    """Name → its retrieval result with examples, all on the same data."""
    found: dict[str, Document] = {}
    data = None
    for name in names:
        for document in documents[name]:
            if document["task"] != "retrieval" or not (document.get("details") or {}).get("examples"):
                continue
            fingerprint = document["dataset"].get("fingerprint")
            if data in (None, fingerprint):
                data = fingerprint
                found[name] = document  # of several the newest
    return found


def _chosen(queries: Sequence[Kept], count: int) -> list[int]:
    """Places of the queries to show: hits and misses in turn."""
    hits = [place for place, query in enumerate(queries) if query["results"][0]["correct"]]
    misses = [place for place in range(len(queries)) if place not in hits]
    few = min(len(hits), max(count // 2, count - len(misses)))
    return sorted([*hits[:few], *misses[: count - few]])


def _example(name: str, query: Kept, kept: Kept, pictures: _Pictures) -> RetrievalExample | None:
    gallery = kept.get("gallery") or {}
    rank = round(query["rank"])
    if "text" in query:
        results = []
        for one in query["results"]:
            image = pictures(one["image"])
            if image is None:
                return None
            caption = kept["images"][str(one["image"])]["caption"]
            results.append(RetrievalResult(caption, one["score"], one["correct"], image))
        return RetrievalExample(
            tuple(results), name, query_text=query["text"], rank=rank, gallery=gallery.get("images")
        )
    image = pictures(query["image"])
    if image is None:
        return None
    answers = tuple(RetrievalResult(one["text"], one["score"], one["correct"]) for one in query["results"])
    return RetrievalExample(answers, name, query_image=image, rank=rank, gallery=gallery.get("texts"))


class _Pictures:
    """Pictures by their number in the set, only those whose content is what was evaluated."""

    def __init__(self, document: Document, about: Mapping[str, Kept]) -> None:
        self.about = about
        self.known: dict[int, bytes | None] = {}
        self.changed = 0
        self.problem = ""
        self.images: ImageSource | None = None
        where = str(document["details"]["examples"].get("where") or "")
        name = document["dataset"]["name"]
        try:
            self.images = _open(where, str(name), str(document["dataset"]["split"]))
        except (SoftclipError, OSError) as error:
            self.problem = f"The pictures of {name} are not on this machine ({error})."
            self.problem = " ".join(self.problem.split())

    def __call__(self, number: int) -> bytes | None:
        if number not in self.known:
            self.known[number] = self._read(number)
        return self.known[number]

    def _read(self, number: int) -> bytes | None:
        assert self.images is not None
        try:
            content = self.images[number]
        except (SoftclipError, OSError, IndexError):
            content = b""
        # The same 64 bits as embedding.ImageFeatures.hashes.
        found = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        if not content or format(found, "016x") != self.about[str(number)]["hash"]:
            self.changed += 1
            return None
        return content


def _open(where: str, name: str, split: str) -> ImageSource:
    """The images of an evaluated set: by its folder as it was, or as a set of the catalogue with that folder as its root."""
    from softclip_cli.evaluation.catalogue import catalogue
    from softclip_cli.evaluation.locate_captions import retrieval_set

    if name in catalogue():
        with contextlib.suppress(SoftclipError):
            return retrieval_set(name, root=Path(where) if where else None).images
    folder = str(Path(where).resolve())
    return retrieval_set(folder if split == "all" else f"{folder}:{split}").images
