"""How far the reading of a source has come, and whether a source is still the one that was read before."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softclip_cli import __version__
from softclip_cli.data.sources.base import Candidate, Dropped, Part, Source
from softclip_cli.data.split_writer import hash_file

FORMAT = 1  # of what is saved at a durable point: another one cannot be gone on from


class SourceChanged(Exception):
    """The source no longer begins with what was read of it before."""


@dataclass(frozen=True)
class Position:
    """A place between two items of a source.

    Attributes:
        part: number of the part.
        items: items of this part before the place.
        check: CRC-32 over what identifies these items.
    """

    part: int = 0
    items: int = 0
    check: int = 0


def numbered(number: int, part: Part) -> Iterator[tuple[Position, Candidate | Dropped]]:
    """The items of a part, each with the position behind it."""
    check = 0
    for count, item in enumerate(part.records(), 1):
        check = zlib.crc32(_identity(item), check)
        yield Position(number, count, check), item


def _identity(item: Candidate | Dropped) -> bytes:
    """What tells an item from another without opening its files."""
    if isinstance(item, Candidate):
        size = len(item.image) if isinstance(item.image, bytes) else ""
        captions = len(item.captions) if isinstance(item.captions, list) else ""
        text = f"{item.key}\0{size}\0{captions}"
    else:
        text = f"{item.key}\0{item.reason}"
    return text.encode("utf-8", "surrogateescape")


def unread(number: int, part: Part, start: Position) -> Iterator[tuple[Position, Candidate | Dropped, bool]]:
    """As `numbered`, with whether the item lies behind `start`.

    Raises:
        SourceChanged: the items before `start` are not those that its check was made of.
    """
    last = Position(number)
    for position, item in numbered(number, part):
        last = position
        if number == start.part and position.items == start.items and position.check != start.check:
            raise SourceChanged
        yield position, item, number > start.part or (number == start.part and position.items > start.items)
    if number == start.part and last.items < start.items:
        raise SourceChanged


def fingerprint(source: Source, options: Mapping[str, Any]) -> str:
    """SHA-256 over what shapes the bytes of a corpus and is cheap to know: versions, options, the source's parts.

    Args:
        source: opened.
        options: those that shape the corpus, as JSON has them.
    """
    import PIL
    import pyarrow as pa

    path = Path(source.path)
    status = path.stat() if path.is_file() else None
    lists = [Path(file) for file in options.get("split_lists", source.split_lists).values()]
    facts = {
        "versions": [FORMAT, __version__, pa.__version__, PIL.__version__],
        "options": options,
        "source": [str(path.resolve()) if path.exists() else source.path, source.format, source.choices],
        "file": [status.st_size, status.st_mtime_ns] if status else None,
        "parts": [[part.name, part.split, part.total] for part in source.parts],
        "classes": source.class_names,
        "split_lists": [hash_file(file) for file in lists if file.is_file()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
