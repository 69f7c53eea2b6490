"""COCO captions: `captions_val2017.json` with `images` and `annotations`; in `annotations/`, beside the folders of images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from softclip_cli.data.sources.annotations import ends, image_root, json_files, load
from softclip_cli.data.sources.base import SPLIT_NAMES, Candidate, Dropped, Part, Source, SourceOptions, printable
from softclip_cli.data.sources.walk import clean_name
from softclip_cli.errors import DataError

SPLIT_WORD = re.compile(r"(?:^|[_.-])(train|val|test|dev|valid|validation)(?=\d|[_.-]|$)", re.IGNORECASE)


class _Image(NamedTuple):
    name: str
    captions: list[str]


def detect(source: str) -> str | None:
    """Recognise a COCO caption file, or a folder that has such files in it or in `annotations/`."""
    path = Path(source)
    files = _files(path)
    if not files:
        return None
    names = ", ".join(file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files)
    return f"COCO captions: {names} ha{'ve' if len(files) > 1 else 's'} images and annotations"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _is_coco(path) else []
    if not path.is_dir():
        return []
    # instances_*.json and person_keypoints_*.json lie beside the captions, and describe the same images otherwise.
    return [file for file in json_files(path) if "caption" in file.name.lower() and _is_coco(file)]


def _is_coco(file: Path) -> bool:
    found = ends(file)
    return (b'"images"' in found and b'"annotations"' in found) or (b'"file_name"' in found and b'"caption"' in found)


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open COCO captions. A file whose name has train, val or test in it is that split.

    Raises:
        DataError: no such file, or one without captions.
    """
    path = Path(source)
    files = _files(path) or ([path] if path.is_file() else [])
    if not files:
        raise DataError(
            f"{path} holds no COCO captions",
            "looked for captions_*.json in it and in annotations/",
            "name the file itself",
        )
    found = Source("coco", source, reason, [])
    for file in files:
        match = SPLIT_WORD.search(file.stem)
        split = SPLIT_NAMES[match[1].lower()] if match else None
        images, dropped = _collect(file)
        root, why = image_root(file, [image.name for image in images], options)
        found.notes.append(
            f"{file.name}: {len(images):,} images, {sum(len(image.captions) for image in images):,} captions"
            + (f", split {split}" if split else "")
        )
        found.notes.append(f"{file.name}: image folder {root} ({why})")
        found.choices.setdefault("image_roots", {})[file.name] = str(root)
        records = partial(_records, images, dropped, root, split, file.name)
        found.parts.append(Part(file.name, records, split=split, total=len(images) + len(dropped)))
    if any(part.split for part in found.parts):
        found.choices["splits"] = "names of the files"
    return found


def _collect(file: Path) -> tuple[list[_Image], list[tuple[str, str]]]:
    """The images of a file with their captions, and (reason, detail) of what is not usable."""
    document = load(file)
    images: dict[Any, _Image] = {}
    dropped: list[tuple[str, str]] = []
    for number, entry in enumerate(document["images"], 1):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and clean_name(name) and isinstance(entry.get("id"), (int, str)):
            images.setdefault(entry["id"], _Image(clean_name(name), []))
        else:
            dropped.append(("bad-row", f"image {number} of {file.name} has no file_name or no id"))
    annotations = document.get("annotations")
    captions = 0
    for number, entry in enumerate(annotations if isinstance(annotations, list) else [], 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
            dropped.append(("bad-row", f"annotation {number} of {file.name} has no caption"))
        elif not isinstance(entry.get("image_id"), (int, str)) or entry["image_id"] not in images:
            dropped.append(("no-image", f"annotation {number} of {file.name} names no image of it"))
        else:
            captions += 1
            images[entry["image_id"]].captions.append(entry["caption"])
    if not captions:
        raise DataError(
            f"{file} has no captions",
            "its annotations are of another kind, such as boxes",
            "use captions_*.json of the set",
        )
    return list(images.values()), dropped


def _records(
    images: list[_Image], dropped: list[tuple[str, str]], root: Path, split: str | None, name: str
) -> Iterator[Candidate | Dropped]:
    for number, (reason, detail) in enumerate(dropped, 1):
        yield Dropped(f"{name}:{number}", split or "", reason, detail)
    for image in images:
        if "\0" in image.name:
            yield Dropped(printable(image.name), split or "", "no-image", f"{name}: a file name with a NUL")
            continue
        where = f"{name}: {printable(image.name)}"
        yield Candidate(printable(image.name), root / image.name, list(image.captions), split=split, where=where)
