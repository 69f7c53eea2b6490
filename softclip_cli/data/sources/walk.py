"""Walking folders of images in a fixed order, and finding the folder that a list of image names is relative to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from softclip_cli.data.sources.base import printable

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2",
    ".avif", ".mpo",
})
# fmt: on


def is_image_name(name: str) -> bool:
    """Whether the name ends as image files do."""
    return stem_and_suffix(name)[1].lower() in IMAGE_SUFFIXES


def stem_and_suffix(name: str) -> tuple[str, str]:
    """A file name without its last suffix, and that suffix with its dot; quicker than a Path for millions of names."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, "." + suffix) if dot and stem else (name, "")


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield (folder, sorted file names), folders in sorted order, links followed once, hidden names left out.

    Hidden names are those that start with a dot (`.DS_Store`, the `._x.jpg` of macOS) and `__MACOSX`.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def relative(path: Path, root: Path) -> str:
    """The path below `root` with forward slashes, as valid Unicode: the key of an image in a folder."""
    return printable(path.relative_to(root).as_posix())


def clean_name(name: str) -> str:
    """An image path as tables write it, with forward slashes and without a leading `./`."""
    name = name.strip().replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return name


def find_image_root(base: Path, names: Sequence[str]) -> tuple[Path, str]:
    """The folder that `names` are relative to: `base`, or a folder up to two levels below it that holds more of them.

    Args:
        base: where the table is.
        names: a sample of the image paths in it.

    Returns:
        The folder, and the reason in words.
    """
    names = [clean_name(name) for name in names]

    def held(folder: Path) -> int:
        return sum((folder / name).is_file() for name in names)

    best, best_count = base, held(base)
    if names and best_count < len(names):
        for folder in _folders_below(base):
            count = held(folder)
            if count > best_count:
                best, best_count = folder, count
            if best_count == len(names):
                break
    return best, f"{best_count} of the first {len(names)} images are there"


def _folders_below(base: Path, limit: int = 200) -> Iterator[Path]:
    def children(folder: Path) -> list[Path]:
        try:
            found = sorted(
                entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
            )
        except OSError:
            return []
        return [folder / name for name in found]

    first = children(base)
    yield from islice(first, limit)
    yield from islice((inner for folder in first[:limit] for inner in children(folder)), limit)
