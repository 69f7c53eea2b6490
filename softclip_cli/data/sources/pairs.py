"""Folder of pairs: `x.jpg` with `x.txt` beside it (a caption a line), or with `x.json` that has a caption in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from softclip_cli.data.sources.base import SPLIT_NAMES, Candidate, Dropped, Part, Source, SourceOptions
from softclip_cli.data.sources.walk import is_image_name, relative, stem_and_suffix, walk
from softclip_cli.errors import DataError

CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # the first one that exists is read
ORPHAN_SUFFIXES = (".txt", ".caption")  # these without an image are reported; a lone .json is rarely a caption
# Text files that lie in data folders without being anybody's caption.
NOT_CAPTIONS = frozenset({"readme", "license", "licence", "notice", "changelog", "requirements", "classes", "labels"})
DETECT_FOLDERS = 1000


def detect(source: str) -> str | None:
    """Recognise a folder in which at least one image has a caption file of the same name."""
    root = Path(source)
    if not root.is_dir():
        return None
    for folder, files in islice(walk(root), DETECT_FOLDERS):
        texts = _caption_files(files)
        for image in filter(is_image_name, files):
            text = texts.get(stem_and_suffix(image)[0])
            if text:
                return f"a folder of pairs: {relative(folder / image, root)} has {text} beside it"
    return None


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open a folder of pairs; folders named train, val, test and the like become splits if all images are in such.

    Raises:
        DataError: there is no image in the folder.
    """
    root = Path(source)
    tops: set[str] = set()
    images = total = 0
    for item in _records(root, False):
        total += 1
        if isinstance(item, Candidate) or item.reason != "no-image-file":
            images += 1
            top, slash, _ = item.key.partition("/")
            tops.add(top if slash else "")
    if not images:
        raise DataError(f"{root} holds no images", "no file in it ends in .jpg, .png, .webp, ...", "check the folder")
    found = Source("pairs", source, reason, [])
    by_folder = all(name.lower() in SPLIT_NAMES for name in tops)
    if by_folder:
        found.choices["splits"] = "folders"
        found.notes.append(f"splits: the folders {', '.join(sorted(tops))}")
    found.parts.append(Part(str(root), lambda: _records(root, by_folder), total=total))
    return found


def _caption_files(files: list[str]) -> dict[str, str]:
    """The caption file of each stem."""
    texts: dict[str, str] = {}
    for wanted in CAPTION_SUFFIXES:
        for name in files:
            stem, suffix = stem_and_suffix(name)
            if suffix.lower() == wanted:
                texts.setdefault(stem, name)
    return texts


def _records(root: Path, by_folder: bool) -> Iterator[Candidate | Dropped]:
    for folder, files in walk(root):
        split = folder.relative_to(root).parts[0] if by_folder and folder != root else None
        texts = _caption_files(files)
        stems = {stem_and_suffix(name)[0] for name in files if is_image_name(name)}
        for name in files:
            stem, suffix = stem_and_suffix(name)
            key = relative(folder / name, root)
            if is_image_name(name):
                if stem in texts:
                    yield Candidate(key, folder / name, folder / texts[stem], split=split, where=key)
                else:
                    yield Dropped(key, split or "", "no-caption-file", f"no {stem}.txt or {stem}.json beside it")
            elif suffix.lower() in ORPHAN_SUFFIXES and stem not in stems and stem.lower() not in NOT_CAPTIONS:
                yield Dropped(key, split or "", "no-image-file", f"no image named {stem} beside it")
