"""Which table file is read by which reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from softclip_cli.data.sources.arrow_readers import ParquetReader
from softclip_cli.data.sources.readers import CsvReader, JsonLinesReader, Reader
from softclip_cli.errors import DataError


def _parquet(path: Path, encoding: str) -> Reader:
    return ParquetReader(path)


READERS: dict[str, Callable[[Path, str], Reader]] = {
    ".csv": CsvReader,
    ".tsv": CsvReader,
    ".jsonl": JsonLinesReader,
    ".ndjson": JsonLinesReader,
    ".parquet": _parquet,
    ".pq": _parquet,
}


def is_table_name(name: str) -> bool:
    """Whether the name ends as a table that we read."""
    return name.lower().endswith(tuple(READERS))


def open_table(path: Path, encoding: str = "utf-8") -> Reader:
    """Open a table by the suffix of its name; any other text file is read as CSV.

    Raises:
        DataError: the file is missing, empty or damaged.
    """
    if not path.is_file():
        raise DataError(f"no table at {path}", "there is no such file")
    return READERS.get(path.suffix.lower(), CsvReader)(path, encoding)
