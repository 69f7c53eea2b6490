"""Lists of web addresses with captions: Open Images, CC3M and CC12M as they are published, and any table with such columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softclip_cli.data.sources.base import open_text
from softclip_cli.data.sources.columns import CAPTION_NAMES, NUMBERED_CAPTION, normal
from softclip_cli.data.sources.readers import BadRow, Reader, Row
from softclip_cli.data.sources.table_files import open_table
from softclip_cli.errors import DataError, UsageError, nearest

URL_NAMES = ("url", "image_url", "img_url", "original_url", "originalurl", "image_link", "link", "thumbnail300kurl")
ADDRESS = re.compile(r"https?://", re.IGNORECASE)


class TabReader(Reader):
    """Lines of fields between tabs, with or without a header line; quotes are letters, unless they enclose a field.

    CC3M (caption, address) and CC12M (address, caption) have no header and captions full of quotes.

    Raises:
        DataError: the file cannot be read or is empty.
    """

    def __init__(self, path: Path, encoding: str = "utf-8") -> None:
        self.path, self.name, self.encoding = path, path.name, encoding
        with open_text(path, encoding) as stream:
            first = _fields(stream.readline())
        if not any(first):
            raise DataError(f"{path} is empty", "expected lines of fields between tabs")
        place = next((number for number, text in enumerate(first) if ADDRESS.match(text)), None)
        self.has_header = place is None
        self.columns = first
        if place is not None:
            others = [number for number in range(len(first)) if number != place]
            self.columns = [f"column {number + 1}" for number in range(len(first))]
            self.columns[place] = "url"
            if len(others) == 1:
                self.columns[others[0]] = "caption"

    def rows(self, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield a row a line."""
        places = [self.columns.index(name) for name in columns]
        with open_text(self.path, self.encoding) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip() or (number == 1 and self.has_header):
                    continue
                fields = _fields(line)
                if len(fields) == len(self.columns):
                    yield Row(number, tuple(fields[place] for place in places))
                else:
                    yield BadRow(number, f"line {number} has {len(fields)} fields, the first has {len(self.columns)}")

    def kind(self, column: str) -> str:
        """All columns are text."""
        return "text"


def _fields(line: str) -> list[str]:
    return [
        text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text
        for text in (part.strip() for part in line.rstrip("\r\n").split("\t"))
    ]


@dataclass(slots=True)
class Entry:
    """One line of a list; `problem` says why it cannot be fetched."""

    number: int
    url: str
    captions: list[str]
    problem: str = ""


@dataclass
class UrlList:
    """An opened list.

    Attributes:
        reader: of its rows.
        url: the column of addresses.
        captions: the columns of captions.
        notes: how the columns were found, for people.
    """

    reader: Reader
    url: str
    captions: list[str]
    notes: list[str] = field(default_factory=list)

    def entries(self) -> Iterator[Entry]:
        """Yield every line in order; numbers count from 0 without gaps."""
        for number, row in enumerate(self.reader.rows([self.url, *self.captions])):
            if isinstance(row, BadRow):
                yield Entry(number, "", [], "bad-row")
                continue
            url = row.values[0].strip() if isinstance(row.values[0], str) else ""
            texts = [text for value in row.values[1:] for text in (value if isinstance(value, list) else [value])]
            captions = [text for text in texts if isinstance(text, str) and text.strip()]
            yield Entry(number, url, captions, "" if ADDRESS.match(url) else "no-http-address")


def open_list(
    path: Path, url_column: str | None = None, caption_columns: Sequence[str] = (), encoding: str = "utf-8"
) -> UrlList:
    """Open a list of addresses: .tsv (with or without a header), .csv, .jsonl or .parquet.

    Raises:
        DataError: there is no such file, or it cannot be read.
        UsageError: a column that does not exist, or none found.
    """
    if not path.is_file():
        raise DataError(f"no list at {path}", "there is no such file", "give a .tsv, .csv, .jsonl or .parquet file")
    reader = TabReader(path, encoding) if path.suffix.lower() == ".tsv" else open_table(path, encoding)
    for option, name in [("--url-column", url_column), *(("--caption-column", name) for name in caption_columns)]:
        if name is not None and name not in reader.columns:
            raise UsageError(
                f"{reader.name} has no column {name!r} ({option})",
                "its columns: " + ", ".join(reader.columns),
                nearest(name, reader.columns) or "name one of them",
            )
    notes = []
    url = url_column or _guess_url(reader)
    if url is None:
        raise UsageError(
            f"no column of addresses found in {reader.name}",
            "its columns: " + ", ".join(reader.columns),
            "--url-column NAME",
        )
    if url_column is None:
        notes.append(f"address column: {url!r}")
    captions = list(caption_columns) or _guess_captions(reader, url)
    if not captions:
        raise UsageError(
            f"no caption column found in {reader.name}",
            "its columns: " + ", ".join(reader.columns),
            "--caption-column NAME",
        )
    if not caption_columns:
        notes.append(f"caption column{'s' * (len(captions) > 1)}: " + ", ".join(map(repr, captions)))
    return UrlList(reader, url, captions, notes)


def _guess_url(reader: Reader) -> str | None:
    by_name = {normal(column): column for column in reversed(reader.columns)}
    for name in URL_NAMES:
        if name in by_name:
            return by_name[name]
    rows = reader.sample(reader.columns)
    for place, column in enumerate(reader.columns):
        values = [row[place] for row in rows if isinstance(row[place], str) and row[place]]
        if values and sum(bool(ADDRESS.match(value)) for value in values) >= 0.8 * len(values):
            return column
    return None


def _guess_captions(reader: Reader, url: str) -> list[str]:
    by_name = {normal(column): column for column in reversed(reader.columns) if column != url}
    for name in CAPTION_NAMES:
        if name in by_name:
            return [by_name[name]]
    return [column for column in reader.columns if NUMBERED_CAPTION.fullmatch(normal(column)) and column != url]
