"""What the two JSON forms of image captions share: finding the file, loading it, and finding the images it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from softclip_cli.data.sources.base import SourceOptions
from softclip_cli.data.sources.walk import find_image_root
from softclip_cli.errors import DataError

HEAD = 1 << 16  # enough of a file to tell its form by
SAMPLE = 50


def json_files(folder: Path) -> list[Path]:
    """The JSON files of a folder and of `annotations/` in it, in sorted order."""
    return [
        file
        for place in (folder, folder / "annotations")
        if place.is_dir()
        for file in sorted(place.iterdir())
        if file.suffix.lower() == ".json" and file.is_file() and not file.name.startswith(".")
    ]


def ends(file: Path) -> bytes:
    """The first and last bytes of a file: these documents are too large to be read for a look."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(max(len(head), file.stat().st_size - HEAD))
        return head + stream.read(HEAD)


def load(file: Path) -> dict[str, Any]:
    """The document, which must be an object with a list `images`.

    Raises:
        DataError: it is not.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read", error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON", str(error), "copy or download it again") from error
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise DataError(f"{file} is no list of images", "its top level has no list called 'images'")
    return document


def image_root(file: Path, names: list[str], options: SourceOptions) -> tuple[Path, str]:
    """The folder that image names are relative to, and why: the one asked for, else one near the JSON file.

    Raises:
        DataError: the folder that was asked for does not exist.
    """
    if options.image_root is not None and not options.image_root.is_dir():
        raise DataError(f"no folder at {options.image_root}", "it was named by --image-root")
    base = file.parent.parent if file.parent.name.lower() == "annotations" else file.parent
    return find_image_root(options.image_root or base, names[:SAMPLE])
