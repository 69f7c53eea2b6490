"""What a source is: it yields candidates and says what it could not read; everything after that is common to all.

A new source is one module in this folder with two functions, `detect` and `open_source`, and a row in
`sources/__init__.py`. It never decodes an image, never cleans a caption and never writes: `prepare` does.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from softclip_cli.errors import DataError, UsageError

MAX_IMAGE_BYTES = 256 << 20
MAX_CAPTION_FILE_BYTES = 4 << 20
CAPTION_KEYS = (
    "caption",
    "captions",
    "text",
    "texts",
    "sentences",
    "title",
)  # where JSON beside an image has its captions
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(slots=True)
class Candidate:
    """One image with its captions as the source has it, unchecked.

    Attributes:
        key: names the record in messages and in the corpus; need not be unique yet.
        image: the encoded bytes, or the path of the file that holds them (read later, by a worker).
        captions: raw captions, or the path of the text or JSON file that holds them (read later, by a worker).
            Bytes that are not valid in the source's encoding stand as surrogate escapes.
        split: the source's own name of the split; None where it has none.
        label: index into the source's class names.
        group: records that share a group are positives of each other.
        where: the place in the source, such as "captions.csv row 12", for messages.
        name: the image's file name, where bytes have one.
    """

    key: str
    image: bytes | Path
    captions: list[str] | Path
    split: str | None = None
    label: int | None = None
    group: str | None = None
    where: str = ""
    name: str = ""


@dataclass(slots=True)
class Dropped:
    """A record, or a caption of a record, that did not make it into the corpus.

    Attributes:
        key: names the record.
        split: the split that it would have been in; empty when that is not known.
        reason: a key of `clean.REASONS`.
        detail: what exactly was wrong, with the file, row or byte.
    """

    key: str
    split: str
    reason: str
    detail: str


@dataclass
class Part:
    """A stretch of a source that is read from start to end: one table, one folder, one split.

    Attributes:
        name: for messages.
        records: starts reading from the beginning each time it is called.
        split: the split of all its records, where one is known before reading.
        total: how many records it will yield, where that is cheap to know; never too low.
    """

    name: str
    records: Callable[[], Iterator[Candidate | Dropped]]
    split: str | None = None
    total: int | None = None


@dataclass
class Source:
    """An opened source.

    Attributes:
        format: the name of its kind in the table of sources.
        path: where it is: a path, or a name on the Hub.
        reason: why it was taken for this kind.
        parts: what it holds, in reading order.
        has_captions: False for a labelled set without captions, whose records may have none.
        class_names: names of the classes, for labelled sets.
        split_lists: lists of keys or file names found beside the source, by split.
        choices: what was chosen or guessed, such as the columns (goes into corpus.json).
        notes: the same for people, one line each, with the reason of each guess.
    """

    format: str
    path: str
    reason: str
    parts: list[Part]
    has_captions: bool = True
    class_names: list[str] | None = None
    split_lists: dict[str, Path] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def has_splits(self) -> bool:
        """Whether the source itself tells the split of its records."""
        return any(part.split for part in self.parts) or not {"splits", "split_column"}.isdisjoint(self.choices)


@dataclass(frozen=True)
class SourceOptions:
    """How a source is to be read; what is left out is found out, and the finding is reported.

    Attributes:
        format: name of the source's kind, instead of its detection.
        image_column, caption_columns, label_column, group_column, split_column, key_column: columns of a table.
        image_root: the folder that image paths of a table are relative to.
        split_lists: for each split, a text file that lists its keys or image file names, one a line.
        class_names: names of the classes in the order of their numbers.
        encoding: of text files: CSV, JSON lines, caption files.
    """

    format: str | None = None
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    key_column: str | None = None
    image_root: Path | None = None
    split_lists: Mapping[str, Path] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    encoding: str = "utf-8"


@functools.lru_cache(maxsize=1024)
def split_name(name: str) -> str:
    """The split's name in the corpus: usual names become train, val and test; characters other than letters, digits, _
    and . become _ (the name is a folder, and `datasets` accepts no others).

    Raises:
        DataError: nothing is left of the name.
    """
    name = str(name).strip()
    usual = SPLIT_NAMES.get(name.lower())
    if usual:
        return usual
    safe = re.sub(r"\W+", "_", name).strip("_") if "." not in name else re.sub(r"[^\w.]+", "_", name).strip("_.")
    if not safe:
        raise DataError(f"{name!r} is not usable as the name of a split", hint="name splits by letters and digits")
    return safe


def printable(text: str) -> str:
    """The text with what is no valid Unicode (file names may hold any bytes) spelled out, so that it can be stored."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def open_text(path: Path, encoding: str, newline: str | None = None) -> IO[str]:
    """Open a text file as its byte-order mark says, else in `encoding`; bytes that are not valid in it become surrogate
    escapes, so that one bad line does not hide the others.

    Raises:
        DataError: the file cannot be opened.
        UsageError: no such encoding.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise UsageError(
            f"no such text encoding: {encoding!r}", hint="for example --encoding utf-8 or latin-1"
        ) from None
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            name = "utf-16"
        codec = "utf-8-sig" if name == "utf-8" else name
        # Surrogate escapes exist for codecs of single bytes only.
        errors = "replace" if name.startswith(("utf-16", "utf-32")) else "surrogateescape"
        return path.open(encoding=codec, errors=errors, newline=newline)
    except OSError as error:
        raise DataError(f"{path} cannot be read", error.strerror or str(error)) from error
