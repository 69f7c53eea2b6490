"""SugarCrepe's and Winoground's own files: captions made false by an edit, and pairs of images with pairs of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softclip_cli.data.sources.walk import walk
from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import FileImages, Subset
from softclip_cli.evaluation.layout_captions import locate, nearby
from softclip_cli.evaluation.layouts import Contrasted, Layout, Paired, Wanted

EDITS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
ALL = "all"
PAIR_FILES = ("examples.jsonl", "metadata.jsonl")
PAIR_SPLIT = "test"
TAG = "collapsed_tag"


# SugarCrepe: add_att.json, …, each {"0": {"filename", "caption", "negative_caption"}, …}


def _edit_files(folder: Path, shallow: bool) -> dict[str, Path]:
    found = {}
    for edit in EDITS:
        paths = sorted(folder.glob(f"{edit}.json")) if shallow else nearby(folder, f"{edit}.json")
        if paths:
            found[edit] = paths[0]
    return found


def _edit_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    files = _edit_files(folder, shallow)
    return ([ALL] if len(files) == len(EDITS) else []) + list(files) or None


def _contrasts(folder: Path, split: str, wanted: Wanted) -> Contrasted:
    files = _edit_files(folder, shallow=False)
    chosen = files if split == ALL else {split: files[split]}
    rows: list[tuple[str, str, str, str]] = []
    for edit, path in chosen.items():
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            rows += [
                (edit, str(entry["filename"]), entry["caption"].strip(), entry["negative_caption"].strip())
                for entry in (entries.values() if isinstance(entries, dict) else entries)
            ]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not one of SugarCrepe's files",
                f"expected filename, caption and negative_caption ({type(error).__name__}: {error})",
                "fetch the file again",
            ) from None
    names = list(dict.fromkeys(name for _, name, _, _ in rows))
    place = {name: index for index, name in enumerate(names)}
    images = locate(folder, names, next(iter(chosen.values())))
    return Contrasted(
        images=Subset(images, [place[name] for _, name, _, _ in rows]),
        captions=[caption for _, _, caption, _ in rows],
        negatives=[[negative] for _, _, _, negative in rows],
        edits=[edit for edit, _, _, _ in rows],
    )


# Winoground: examples.jsonl, each line {"image_0", "image_1", "caption_0", "caption_1", …}


def _pair_file(folder: Path, shallow: bool) -> Path | None:
    for name in PAIR_FILES:
        for path in sorted(folder.glob(name)) if shallow else nearby(folder, name):
            with path.open(encoding="utf-8", errors="replace") as stream:
                if '"caption_1"' in stream.readline():
                    return path
    return None


def _pair_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    return [PAIR_SPLIT] if _pair_file(folder, shallow) else None


def _pairs(folder: Path, split: str, wanted: Wanted) -> Paired:
    path = _pair_file(folder, shallow=False)
    assert path is not None
    names: list[str] = []
    captions: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry: dict[str, Any] = json.loads(line)
            names += [str(entry["image_0"]), str(entry["image_1"])]
            captions += [entry["caption_0"].strip(), entry["caption_1"].strip()]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path.name}, line {number}: expected image_0, image_1, caption_0 and caption_1",
                f"{type(error).__name__}: {error}",
                "fetch the file again",
            ) from None
        tags.append(str(entry.get(TAG) or ""))
    return Paired(_images(folder, names, path), captions, tags)


def _images(folder: Path, names: list[str], path: Path) -> FileImages:
    """The files of these names, which the release writes without a suffix."""
    files: dict[str, str] = {}
    for inner, present in walk(folder):
        for file in present:
            place = (inner / file).relative_to(folder).as_posix()
            files.setdefault(Path(file).stem, place)
            files[file] = place
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(
            f"{path.name} does not match the images in {folder}",
            f"{len(missing):,} of {len(names):,} images are not there, first {missing[0]}",
            "unpack images.zip beside it",
        )
    return FileImages(folder, [files[name] for name in names])


SUGARCREPE = Layout(
    "sugarcrepe",
    "SugarCrepe's add_att.json, add_obj.json, replace_att.json, replace_obj.json, replace_rel.json, swap_att.json and swap_obj.json"
    " with COCO's val2017 images in a folder beside them",
    _edit_splits,
    composed=_contrasts,
)
WINOGROUND = Layout(
    "winoground",
    "Winoground's examples.jsonl with the images (images.zip, unpacked) in a folder beside it",
    _pair_splits,
    composed=_pairs,
)
