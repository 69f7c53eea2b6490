"""Readers of rows from text: CSV and TSV, JSON lines and Flickr token files, all with one face.

Each reads in a stream, as often as asked, and never holds more than a small batch of rows.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from softclip_cli.data.sources.base import open_text
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    pass

MAX_QUOTED_LINES = 100  # a field that runs over more lines has an unbalanced quote
csv.field_size_limit(1 << 24)


class Row(NamedTuple):
    """One row: its number as a person counts it (line or row, from 1), and the values of the columns asked for."""

    number: int
    values: tuple[Any, ...]


class BadRow(NamedTuple):
    """A row that cannot be read, and why."""

    number: int
    detail: str


class Reader(ABC):
    """What all readers offer.

    Attributes:
        name: for messages.
        columns: names of the columns.
        total: number of rows, where it is known without reading.
    """

    name: str
    columns: list[str]
    total: int | None = None

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield the rows from the beginning with the values of `columns`, None where a row has none."""

    def kind(self, column: str) -> str:
        """What the column holds: "image" (encoded bytes), "text", "number", "list", "class", "other" or "unknown"."""
        return "unknown"

    def class_names(self, column: str) -> list[str] | None:
        """Names of the classes, if the column is known to number classes."""
        return None

    def sample(self, columns: Sequence[str], count: int = 50) -> list[tuple[Any, ...]]:
        """The values of the first readable rows."""
        return [row.values for row in islice(self.rows(columns), count) if isinstance(row, Row)]


class CsvReader(Reader):
    """CSV or TSV with a header line; the delimiter is a tab for .tsv, else the commonest of , tab ; | in the header.

    Raises:
        DataError: the file cannot be read or is empty.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path, self.name, self.encoding = path, path.name, encoding
        with open_text(path, encoding, newline="") as stream:
            first = stream.readline()
        if not first.strip():
            raise DataError(f"{path} is empty", "its first line should name the columns")
        self.delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",\t;|", key=first.count)
        with open_text(path, encoding, newline="") as stream:
            try:
                header = next(self._parse(_Lines(stream)))
            except csv.Error as error:
                raise DataError(f"{path} has no readable header line", str(error)) from error
        self.columns = [name.strip() for name in header]

    def _parse(self, lines: _Lines) -> Any:
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True, strict=True)

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield the rows; the number is the line of the file that a row starts on.

        A quote that is never closed spoils its own line only: the lines that it swallowed are read again.
        """
        places = [self.columns.index(name) for name in columns]
        width = len(self.columns)
        with open_text(self.path, self.encoding, newline="") as stream:
            lines = _Lines(stream)
            parsed = self._parse(lines)
            next(parsed)
            while True:
                line = lines.mark()
                try:
                    fields = next(parsed)
                except StopIteration:
                    return
                except csv.Error as error:
                    lines.reread_all_but_first()
                    yield BadRow(line, f"line {line} of {self.name}: {error}")
                    continue
                if not fields:
                    continue
                if len(fields) != width:
                    yield BadRow(line, f"line {line} of {self.name} has {len(fields)} fields, its header names {width}")
                    continue
                yield Row(line, tuple(fields[place] for place in places))


class _Lines:
    """Feeds lines to a CSV parser, numbered, and can take back those of a row that failed."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._done = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self._taken) >= MAX_QUOTED_LINES:
            raise StopIteration  # an unbalanced quote: to the parser the file ends inside it
        line = self._again.popleft() if self._again else next(self._stream)
        self._taken.append(line)
        return line

    def mark(self) -> int:
        """A row starts here; returns its line number from 1."""
        self._done += len(self._taken)
        self._taken = []
        return self._done + 1

    def reread_all_but_first(self) -> None:
        """Give the lines taken since the mark again, without the first."""
        self._again.extendleft(reversed(self._taken[1:]))
        self._taken = self._taken[:1]


class JsonLinesReader(Reader):
    """JSON lines: one object a line. The columns are the keys of the first thousand objects.

    Raises:
        DataError: the file cannot be read or none of its first lines is an object.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path, self.name, self.encoding = path, path.name, encoding
        self.columns = []
        names: dict[str, None] = {}
        for item in islice(self._objects(), 1000):
            if isinstance(item, Row):
                names.update(dict.fromkeys(item.values[0]))
        self.columns = list(names)
        if not self.columns:
            raise DataError(
                f"{path} holds no JSON objects", 'expected lines such as {"image": "x.jpg", "caption": "..."}'
            )

    def _objects(self) -> Iterator[Row | BadRow]:
        with open_text(self.path, self.encoding) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    document = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield BadRow(number, f"line {number} of {self.name} is not JSON: {error}")
                    continue
                if isinstance(document, dict):
                    yield Row(number, (document,))
                else:
                    yield BadRow(number, f"line {number} of {self.name} is not a JSON object")

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield the rows; the number is the line."""
        for item in self._objects():
            if isinstance(item, BadRow):
                yield item
            else:
                yield Row(item.number, tuple(item.values[0].get(name) for name in columns))

    @cached_property
    def _first(self) -> list[dict[str, Any]]:
        return [item.values[0] for item in islice(self._objects(), 100) if isinstance(item, Row)]

    def kind(self, column: str) -> str:
        """Judged by the first hundred objects."""
        values = [row[column] for row in self._first if row.get(column) is not None]
        for kind, types in (("text", str), ("number", (int, float)), ("list", (str, list))):
            if values and all(isinstance(value, types) for value in values):
                return kind
        return "other" if values else "unknown"


class TokenReader(Reader):
    """A Flickr token file: lines of `name.jpg#k<TAB>caption`, read as the columns `image` and `caption`."""

    LINE = re.compile(r"(?P<image>[^\t]+)#(?P<number>\d+)\t(?P<caption>.*)", re.DOTALL)

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path, self.name, self.encoding = path, path.name, encoding
        self.columns = ["image", "caption"]

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield a row a line."""
        with open_text(self.path, self.encoding) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                match = self.LINE.fullmatch(line.rstrip("\n"))
                if match:
                    yield Row(number, tuple(match[name] for name in columns))
                else:
                    yield BadRow(number, f"line {number} of {self.name} is not NAME#k<TAB>CAPTION")

    def kind(self, column: str) -> str:
        """Both columns are text."""
        return "text"
