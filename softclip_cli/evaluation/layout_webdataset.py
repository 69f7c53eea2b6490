"""Folders of tars as clip-benchmark writes and the Hub's `clip-benchmark` sets have them, read in place.

`SPLIT/0.tar`, … with samples `x.jpg|png|webp` and `x.cls` (a number), `x.npy` (multi-label: which classes are true) or
`x.txt` (captions, one a line); beside them `classnames.txt` and `zeroshot_classification_templates.txt`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.data.sources.base import MAX_CAPTION_FILE_BYTES
from softclip_cli.data.sources.tar_stream import TarDamage, read_tar
from softclip_cli.data.sources.walk import IMAGE_SUFFIXES
from softclip_cli.errors import DataError
from softclip_cli.evaluation.layouts import Captioned, Labelled, Layout, MultiLabelled, Wanted
from softclip_cli.evaluation.names import read_class_names, read_templates
from softclip_cli.evaluation.packed_images import PackedImages

NAMES, TEMPLATES, COUNT = "classnames.txt", "zeroshot_classification_templates.txt", "nshards.txt"


def _splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    return sorted(path.parent.name for path in folder.glob("*/0.tar")) or None


def _shards(folder: Path) -> list[Path]:
    shards = sorted((path for path in folder.glob("*.tar") if path.stem.isdecimal()), key=lambda path: int(path.stem))
    stated = folder / COUNT
    expected = int(stated.read_text().strip() or 0) if stated.is_file() else len(shards)
    missing = sorted(
        {str(number) for number in range(max(expected, len(shards)))} - {path.stem for path in shards}, key=int
    )
    if missing:
        raise DataError(
            f"{folder}: {len(missing):,} of {max(expected, len(shards)):,} shards are not there",
            f"missing {', '.join(f'{number}.tar' for number in missing[:5])}",
            "fetch the split again",
        )
    return shards


@dataclass
class _Samples:
    """What the tars of one split hold; `sides` are the contents of the members of one kind."""

    images: PackedImages
    sides: list[bytes]


def _index(folder: Path, split: str, kind: str) -> _Samples:
    """Walk the headers of a split's tars: where each image lies, and what stands beside it under the same key."""
    shards = _shards(folder / split)
    found: list[tuple[int, int, int, str, bytes]] = []
    for number, path in enumerate(shards):
        image: dict[str, tuple[int, int, str]] = {}
        side: dict[str, bytes] = {}

        def limit(name: str) -> int:
            return MAX_CAPTION_FILE_BYTES if name.endswith("." + kind) else -1

        try:
            with path.open("rb") as stream:
                for member in read_tar(stream, limit):
                    key, _, ending = member.name.removeprefix("./").rpartition(".")
                    if member.problem:
                        continue
                    if "." + ending.lower() in IMAGE_SUFFIXES:
                        image[key] = (member.offset, member.size, member.name)
                    elif ending == kind and member.data is not None:
                        side[key] = member.data
        except (OSError, TarDamage) as error:
            raise DataError(f"{path} is damaged", str(error), "fetch the file again") from error
        alone = [key for key in image if key not in side]
        if alone or not image:
            raise DataError(
                f"{path}: {len(alone):,} of {len(image):,} images have no .{kind} beside them",
                f"first {alone[0]}" if alone else "it holds no image",
                "it is a set of another kind: captions (.txt), one class (.cls) or several (.npy) an image",
            )
        found += [(number, *image[key], side[key]) for key in image]
    numbers, offsets, sizes, names, sides = zip(*found, strict=True) if found else ((), (), (), (), ())
    images = PackedImages(shards, np.array(numbers), np.array(offsets), np.array(sizes), names)
    return _Samples(images, list(sides))


def _each(samples: _Samples, read: Callable[[bytes], Any], what: str) -> list[Any]:
    values = []
    for index, data in enumerate(samples.sides):
        try:
            values.append(read(data))
        except (ValueError, UnicodeDecodeError) as error:
            raise DataError(f"{samples.images.key(index)}: {what} cannot be read", str(error)) from error
    return values


def _texts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if (folder / NAMES).is_file():
        names = read_class_names(folder / NAMES)
        facts |= {"names": names, "names_source": NAMES, "names_given": True, "class_count": len(names)}
    if (folder / TEMPLATES).is_file():
        facts |= {"prompts": read_templates(folder / TEMPLATES), "prompts_source": TEMPLATES}
    return facts


def _labelled(folder: Path, split: str, wanted: Wanted) -> Labelled:
    samples = _index(folder, split, "cls")
    labels = _each(samples, lambda data: int(data.decode().strip()), "its label")
    return Labelled(samples.images, np.array(labels, dtype=np.int64), **_texts(folder))


def _multi_labelled(folder: Path, split: str, wanted: Wanted) -> MultiLabelled:
    samples = _index(folder, split, "npy")
    rows = _each(samples, lambda data: np.load(io.BytesIO(data), allow_pickle=False).reshape(-1), "its labels")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise DataError(f"{folder / split}: labels of {min(lengths):,} and of {max(lengths):,} classes")
    return MultiLabelled(
        samples.images,
        [np.flatnonzero(row > 0).tolist() for row in rows],
        **{"class_count": lengths.pop() if lengths else None, **_texts(folder)},
    )


def _captioned(folder: Path, split: str, wanted: Wanted) -> Captioned:
    samples = _index(folder, split, "txt")
    # A line break within a caption is written as the two characters \n.
    captions = _each(samples, lambda data: data.decode().splitlines(), "its captions")
    texts = [[line.replace("\\n", "\n").strip() for line in lines] for lines in captions]
    return Captioned(samples.images, texts, {"caption_file": "the tars' .txt members"})


WEBDATASET = Layout(
    "webdataset",
    "tars as clip-benchmark has them: SPLIT/0.tar, …, with classnames.txt and zeroshot_classification_templates.txt",
    _splits,
    labelled=_labelled,
    captioned=_captioned,
    multi_labelled=_multi_labelled,
)
