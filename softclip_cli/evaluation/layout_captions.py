"""Image folders with captions beside them: the Karpathy JSON files, and Flickr's token file with split lists."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from softclip_cli.data.sources.walk import find_image_root, walk
from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import FileImages
from softclip_cli.evaluation.layouts import WHOLE, Captioned, Layout, Wanted

SPLIT_LIST = re.compile(r"(?:.*[^a-z])?(train|training|val|valid|validation|dev|test)(?:_?images?)?", re.IGNORECASE)
SAMPLE = 200  # image names by which the folder of the images is found


def nearby(folder: Path, pattern: str) -> list[Path]:
    """The files of this pattern in a folder, then those one folder below."""
    return sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


# Karpathy's dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json


def _karpathy_file(folder: Path, shallow: bool) -> Path | None:
    for path in sorted(folder.glob("dataset_*.json")) if shallow else nearby(folder, "dataset_*.json"):
        with path.open("rb") as stream:
            if b'"images"' in stream.read(4096):
                return path
    return None


def _karpathy_images(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["images"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged", f"{type(error).__name__}: {error}", "fetch the file again") from None


def _karpathy_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    path = _karpathy_file(folder, shallow)
    # restval is the part of COCO's validation images that is used for training.
    return None if path is None else sorted({image["split"] for image in _karpathy_images(path)} - {"restval"})


def _karpathy(folder: Path, split: str, wanted: Wanted) -> Captioned:
    path = _karpathy_file(folder, shallow=False)
    assert path is not None
    accepted = {split, "restval"} if split == "train" else {split}
    chosen = [image for image in _karpathy_images(path) if image["split"] in accepted]
    names = [os.path.join(image.get("filepath", ""), image["filename"]).replace("\\", "/") for image in chosen]  # noqa: PTH118
    captions = [[sentence["raw"].strip() for sentence in image["sentences"]] for image in chosen]
    return Captioned(locate(folder, names, path), captions, {"caption_file": path.name})


# Flickr8k.token.txt, results_20130124.token, or the captions.txt of its copies


def token_file(folder: Path, shallow: bool) -> Path | None:
    """The file of captions in Flickr's form, or None; with `shallow`, not of a subfolder."""
    for pattern in ("*.token.txt", "*.token", "captions.txt"):
        paths = sorted(folder.glob(pattern)) if shallow else nearby(folder, pattern)
        # Flickr8k.lemma.token.txt holds the captions' lemmas.
        paths = [path for path in paths if "lemma" not in path.name]
        if paths:
            return paths[0]
    return None


def read_tokens(path: Path) -> dict[str, list[str]]:
    """Captions by image name from `name.jpg#0<TAB>caption` lines, or from CSV with the header `image,caption`.

    Raises:
        DataError: a line of another form; names it.
    """
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        first = stream.readline()
        stream.seek(0)
        rows: Iterable[list[str]]
        if "\t" in first:
            rows = (line.rstrip("\r\n").split("\t", 1) for line in stream)
        else:
            rows = csv.reader(stream)
            next(rows)
        for number, row in enumerate(rows, start=1):
            if len(row) != 2:
                if not any(part.strip() for part in row):
                    continue
                raise DataError(f"{path.name}, line {number}: expected an image name and a caption", f"found {row!r}")
            captions.setdefault(row[0].partition("#")[0].strip(), []).append(row[1].strip())
    return captions


def _split_lists(folder: Path, token: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in [*nearby(folder, "*.txt"), *(nearby(token.parent, "*.txt") if token.parent != folder else [])]:
        match = SPLIT_LIST.fullmatch(path.stem)
        if match and path != token:
            found.setdefault(match[1].lower(), path)
    return found


def _flickr_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    token = token_file(folder, shallow)
    return None if token is None else list(_split_lists(folder, token)) or [WHOLE]


def _flickr(folder: Path, split: str, wanted: Wanted) -> Captioned:
    token = token_file(folder, shallow=False)
    assert token is not None
    captions = read_tokens(token)
    names = list(captions)
    notes: dict[str, object] = {"caption_file": token.name}
    if split:
        path = _split_lists(folder, token)[split]
        by_stem = {Path(name).stem: name for name in captions}
        listed = list(
            dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        )
        unknown = [name for name in listed if name not in captions and Path(name).stem not in by_stem]
        if unknown:
            raise DataError(
                f"{path.name} does not match {token.name}",
                f"{len(unknown):,} of its {len(listed):,} images have no captions, first {unknown[0]}",
                "take both files from the same release of the dataset",
            )
        names = [name if name in captions else by_stem[Path(name).stem] for name in listed]
        notes["split_file"] = path.name
    return Captioned(locate(folder, names, token), [captions[name] for name in names], notes)


def locate(folder: Path, names: list[str], captions: Path) -> FileImages:
    """The image files of these names, wherever below `folder` they are.

    Raises:
        DataError: some are not there; says how many and which first.
    """
    root, _ = find_image_root(folder, names[:SAMPLE])
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        # The paths of the caption file may not be those of the disk: fall back on the file's own name.
        found = {file: (inner / file).relative_to(folder).as_posix() for inner, files in walk(folder) for file in files}
        missing = [name for name in names if Path(name).name not in found]
        if not missing:
            return FileImages(folder, [found[Path(name).name] for name in names])
        raise DataError(
            f"{captions.name} does not match the images in {folder}",
            f"{len(missing):,} of {len(names):,} images are not there, first {missing[0]}",
            "complete the images, or take the caption file that belongs to them",
        )
    return FileImages(root, names)


KARPATHY = Layout(
    "karpathy",
    "Karpathy's dataset_NAME.json with the images in a folder beside it",
    _karpathy_splits,
    captioned=_karpathy,
)
FLICKR_CAPTIONS = Layout(
    "flickr-captions",
    "NAME.token.txt (lines name.jpg#0<TAB>caption) and split lists (NAME.testImages.txt) beside a folder of images",
    _flickr_splits,
    captioned=_flickr,
)
