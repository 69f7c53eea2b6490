"""Flickr8k and Flickr30k: the token file (`name.jpg#k<TAB>caption`) or the table `image,caption`, and split lists."""

from __future__ import annotations

import re
from pathlib import Path

from softclip_cli.data.sources.base import SPLIT_NAMES, Source, SourceOptions
from softclip_cli.data.sources.readers import CsvReader, Reader, TokenReader
from softclip_cli.data.sources.tables import table_source
from softclip_cli.errors import DataError

SPLIT_LIST = re.compile(r"(?:flickr.*[._-])?(?P<split>train|dev|val|test)(?:images)?\.txt", re.IGNORECASE)
KAGGLE_NAMES = ("captions.txt", "captions.csv", "results.csv")
KAGGLE_COLUMNS = ({"image", "caption"}, {"image_name", "comment_number", "comment"})


def detect(source: str) -> str | None:
    """Recognise a token file, or a Kaggle table with split lists beside it, by its first lines."""
    path = Path(source)
    token = _token_file(path)
    if token:
        return f"a Flickr token file: {token.name} has lines NAME#k<TAB>CAPTION"
    kaggle = _kaggle_file(path)
    if kaggle and _split_lists(kaggle.parent):
        lists = ", ".join(file.name for file in _split_lists(kaggle.parent).values())
        return f"a Flickr caption table: {kaggle.name} names image and caption, and {lists} lie beside it"
    return None


def _is_token_file(path: Path) -> bool:
    with path.open("rb") as stream:
        lines = stream.read(1 << 16).decode("utf-8", "replace").split("\n")[:-1]
    lines = [line for line in lines if line.strip()][:20]
    return bool(lines) and all(TokenReader.LINE.fullmatch(line) for line in lines)


def _token_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix in {".txt", ".token"} and _is_token_file(path) else None
    if not path.is_dir():
        return None
    named = sorted(file for file in path.iterdir() if file.is_file() and "token" in file.name.lower())
    # Flickr8k.lemma.token.txt comes beside Flickr8k.token.txt: the shorter name has the captions as they were written.
    return next((file for file in sorted(named, key=lambda file: len(file.name)) if _is_token_file(file)), None)


def _kaggle_file(path: Path) -> Path | None:
    files = [path] if path.is_file() else [path / name for name in KAGGLE_NAMES]
    for file in files:
        if file.is_file() and file.name.lower() in KAGGLE_NAMES and file.stat().st_size:
            try:
                columns = set(CsvReader(file).columns)
            except DataError:
                continue
            if columns in KAGGLE_COLUMNS:
                return file
    return None


def _split_lists(folder: Path) -> dict[str, Path]:
    """The files beside the captions that list the images of each split."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        match = SPLIT_LIST.fullmatch(file.name)
        if match and file.is_file():
            found.setdefault(SPLIT_NAMES[match["split"].lower()], file)
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open a Flickr caption file, or the folder that it lies in.

    Raises:
        DataError: there is no caption file.
    """
    path = Path(source)
    token = _token_file(path)
    reader: Reader
    if token:
        reader, folder = TokenReader(token, options.encoding), token.parent
    elif kaggle := _kaggle_file(path):
        reader, folder = CsvReader(kaggle, options.encoding), kaggle.parent
    else:
        raise DataError(
            f"{path} holds no Flickr caption file",
            "expected lines of NAME.jpg#k<TAB>CAPTION, or a table captions.txt with the columns image,caption",
            "name the file itself",
        )
    found = table_source("flickr", source, reason, [(None, reader)], options, folder)
    # The columns of these files are fixed: that they were found is no news.
    found.notes = [note for note in found.notes if "column" not in note.split(":")[0]]
    found.split_lists = _split_lists(folder)
    for name, file in found.split_lists.items():
        found.notes.append(f"split {name}: the images listed in {file.name}")
    return found
