"""Karpathy's splits: `dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from softclip_cli.data.sources.annotations import ends, image_root, json_files, load
from softclip_cli.data.sources.base import Candidate, Dropped, Part, Source, SourceOptions, printable, split_name
from softclip_cli.data.sources.walk import clean_name
from softclip_cli.errors import DataError

# The 30,504 images of COCO's validation set that are in neither val nor test: everybody trains on them.
RESTVAL = "restval"


class _Image(NamedTuple):
    names: tuple[str, ...]
    split: str | None
    captions: list[str]


def detect(source: str) -> str | None:
    """Recognise the file, or a folder with exactly one such file."""
    path = Path(source)
    files = _files(path)
    return f"a Karpathy split: {files[0].name} has images with sentences and splits" if files else None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _is_karpathy(path) else []
    if not path.is_dir():
        return []
    found = [file for file in json_files(path) if file.name.lower().startswith("dataset") and _is_karpathy(file)]
    return found if len(found) == 1 else []


def _is_karpathy(file: Path) -> bool:
    found = ends(file)
    return b'"images"' in found and b'"sentences"' in found and b'"filename"' in found


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open a Karpathy file. Its split `restval` goes to train.

    Raises:
        DataError: no such file, or one without images.
    """
    path = Path(source)
    files = _files(path) or ([path] if path.is_file() else [])
    if not files:
        raise DataError(f"{path} holds no Karpathy file", "looked for one dataset*.json", "name the file itself")
    file = files[0]
    images, bad = _collect(file)
    if not images:
        raise DataError(
            f"{file} has no images with sentences", "expected images with filename, split and sentences[].raw"
        )
    found = Source("karpathy", source, reason, [])
    # For COCO the images lie in train2014/ and val2014/, or all in one folder: the paths that are there decide.
    tries = [(number, *image_root(file, [image.names[number] for image in images], options)) for number in (0, -1)]
    number, root, why = max(tries, key=lambda item: int(item[2].split()[0]))
    counts = Counter(image.split for image in images)
    found.notes.append("splits: " + ", ".join(f"{count:,} {name or 'without'}" for name, count in counts.items()))
    if RESTVAL in counts:
        found.notes.append(f"the {counts[RESTVAL]:,} images of {RESTVAL} go to train, as is usual")
    found.notes.append(f"image folder: {root} ({why})")
    found.choices |= {"image_root": str(root), "splits": "of the file"}
    found.choices |= {"restval": "train"} if RESTVAL in counts else {}
    records = partial(_records, images, bad, root, number, file.name)
    found.parts.append(Part(file.name, records, total=len(images) + len(bad)))
    return found


def _collect(file: Path) -> tuple[list[_Image], list[int]]:
    """The images with their sentences, and the numbers of the entries that are none."""
    images: list[_Image] = []
    bad: list[int] = []
    for number, entry in enumerate(load(file)["images"], 1):
        name = entry.get("filename") if isinstance(entry, dict) else None
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not clean_name(name) or "\0" in name or not isinstance(sentences, list):
            bad.append(number)
            continue
        name = clean_name(name)
        folder = clean_name(entry["filepath"]) if isinstance(entry.get("filepath"), str) else ""
        split = entry.get("split") if isinstance(entry.get("split"), str) and entry["split"].strip() else None
        captions = [text for text in map(_text, sentences) if text is not None]
        images.append(_Image((f"{folder}/{name}", name) if folder else (name,), split, captions))
    return images, bad


def _text(sentence: Any) -> str | None:
    """The sentence as it was written; where that is not there, its words."""
    if isinstance(sentence, str) or not isinstance(sentence, dict):
        return sentence if isinstance(sentence, str) else None
    if isinstance(sentence.get("raw"), str):
        return sentence["raw"]
    tokens = sentence.get("tokens")
    return " ".join(map(str, tokens)) if isinstance(tokens, list) else None


def _records(images: list[_Image], bad: list[int], root: Path, number: int, name: str) -> Iterator[Candidate | Dropped]:
    for place in bad:
        yield Dropped(f"{name}:{place}", "", "bad-row", f"image {place} of {name} has no filename or no sentences")
    for image in images:
        key = printable(image.names[0])
        split = "train" if image.split == RESTVAL else split_name(image.split) if image.split else None
        yield Candidate(key, root / image.names[number], list(image.captions), split=split, where=f"{name}: {key}")
