"""Tables of image paths or bytes with captions: rows of one image become one record with several captions."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.data.sources.base import (
    SPLIT_NAMES,
    Candidate,
    Dropped,
    Part,
    Source,
    SourceOptions,
    printable,
    split_name,
)
from softclip_cli.data.sources.columns import Columns, choose_columns
from softclip_cli.data.sources.labels import Labels, number_labels
from softclip_cli.data.sources.readers import BadRow, Reader, Row
from softclip_cli.data.sources.table_files import is_table_name, open_table
from softclip_cli.data.sources.walk import clean_name, find_image_root
from softclip_cli.errors import DataError

CAPTION_TABLE = re.compile(
    r"(captions?|results|annotations?|metadata|labels?|pairs|data|index|dataset)\.(txt|csv)", re.IGNORECASE
)


def detect(source: str) -> str | None:
    """Recognise a CSV, TSV, JSON lines or Parquet file, or a folder with one of them or with one a split."""
    path = Path(source)
    if path.is_file():
        if is_table_name(path.name):
            return f"a table: {path.name}"
        if path.suffix.lower() == ".txt" and _has_header(path):
            return f"a table: the first line of {path.name} names the columns"
        return None
    if not path.is_dir():
        return None
    tables = _tables_in(path)
    return "a table in a folder: " + ", ".join(table.name for table in tables) if tables else None


def _has_header(path: Path) -> bool:
    with path.open("rb") as stream:
        first = stream.readline(1000).decode("utf-8", "replace").strip().lower()
    return bool(re.fullmatch(r"[\w ]+([,\t;|] ?[\w ]+)+", first)) and ("image" in first or "file" in first)


def _tables_in(folder: Path) -> list[Path]:
    """The text tables that lie in a folder (Parquet in folders is the matter of `parquet`)."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    tables = [path for path in files if is_table_name(path.name) and path.suffix.lower() not in {".parquet", ".pq"}]
    return tables or [path for path in files if CAPTION_TABLE.fullmatch(path.name) and _has_header(path)]


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open a table, or the tables of a folder if their names are those of splits.

    Raises:
        DataError: no table, or several that are not one a split.
        UsageError: a column that does not exist, or none found.
    """
    path = Path(source)
    tables = [path] if path.is_file() else _tables_in(path)
    if not tables:
        raise DataError(f"{path} holds no table", "looked for .csv, .tsv and .jsonl", "name the file itself")
    splits: list[str | None] = [None] if len(tables) == 1 else [SPLIT_NAMES.get(table.stem.lower()) for table in tables]
    if len(tables) > 1 and None in splits:
        raise DataError(
            f"{path} holds several tables",
            ", ".join(table.name for table in tables) + " (several are read together only if named train, val, test)",
            f"name one of them: softclip data prepare {tables[0]} OUT",
        )
    readers = [open_table(table, options.encoding) for table in tables]
    base = path.parent if path.is_file() else path
    return table_source("table", source, reason, list(zip(splits, readers, strict=True)), options, base)


def table_source(
    format_name: str,
    source: str,
    reason: str,
    tables: Sequence[tuple[str | None, Reader]],
    options: SourceOptions,
    base: Path,
) -> Source:
    """The source of one or several tables of the same columns: what every source that reads rows ends in.

    Args:
        format_name, source, reason: as in `Source`.
        tables: (split, reader), None for the split where the rows or nothing tells it.
        options: the user's choice.
        base: the folder that image paths are relative to, unless the images are found elsewhere.

    Raises:
        UsageError: a column that does not exist, or none found.
        DataError: the labels cannot be numbered, or a table lacks the columns of the first.
    """
    first = tables[0][1]
    columns = choose_columns(first, options, split_known=any(split for split, _ in tables))
    used = [columns.image, *columns.captions, columns.label, columns.group, columns.split, columns.key]
    for _, reader in tables:
        lacking = [name for name in used if name is not None and name not in reader.columns]
        if lacking:
            raise DataError(
                f"{reader.name} lacks the column {lacking[0]!r}",
                f"{first.name} has it; all tables of one source need the same columns",
                "prepare them one by one",
            )
    found = Source(format_name, source, reason, [], has_captions=bool(columns.captions))
    found.choices.update(columns.choices())
    found.notes.extend(columns.notes)
    if any(split for split, _ in tables):
        found.notes.append("splits: " + ", ".join(dict.fromkeys(str(split) for split, _ in tables)))
    root = _image_root(found, first, columns, options, base)
    labels = None
    if columns.label:
        labels = number_labels([reader for _, reader in tables], columns.label, options.class_names)
        found.class_names = labels.names
        found.notes.append(f"classes: {len(labels.names)} ({labels.reason})")
    for split, reader in tables:
        rows = _Rows(reader, columns, root, split, labels, found.has_captions)
        found.parts.append(Part(reader.name, rows.records, split=split, total=rows.total()))
    return found


def _image_root(found: Source, reader: Reader, columns: Columns, options: SourceOptions, base: Path) -> Path:
    """Where relative image paths start; noted only if there are paths."""
    names = [row[0] for row in reader.sample([columns.image]) if isinstance(row[0], str) and row[0].strip()]
    if options.image_root is not None:
        if not options.image_root.is_dir():
            raise DataError(f"no folder at {options.image_root}", "it was named by --image-root")
        found.choices["image_root"] = str(options.image_root)
        return options.image_root
    if not names:
        return base
    root, why = find_image_root(base, names)
    if root != base:
        found.notes.append(f"image folder: {root} ({why})")
    found.choices["image_root"] = str(root)
    return root


class _Rows:
    """Turns the rows of a table into candidates; rows of the same image path (and split, label, group) become one."""

    def __init__(
        self, reader: Reader, columns: Columns, root: Path, split: str | None, labels: Labels | None, has_captions: bool
    ) -> None:
        self.reader, self.columns, self.root, self.split = reader, columns, root, split
        self.labels, self.has_captions = labels, has_captions
        # Rows that agree in these are one record; the key is that of the first of them.
        self.same = [columns.image, *(name for name in (columns.split, columns.label, columns.group) if name)]
        self.names = [*self.same, *([columns.key] if columns.key else []), *columns.captions]
        self.encoded = reader.kind(columns.image) == "image"
        self._scattered: set[int] = set()
        self._split_names = reader.class_names(columns.split) if columns.split else None

    def total(self) -> int | None:
        """How many records and bad rows there will be, from one quick pass over the columns that tell images apart."""
        if self.encoded:
            return self.reader.total
        runs = array("q")  # 8 bytes a run: the text of a large table would not fit
        alone = 0
        last: Any = None
        for row in self.reader.rows(self.same):
            if isinstance(row, BadRow) or not row.values[0]:
                alone += 1
            elif row.values != last:
                last = row.values
                runs.append(hash(_hashable(last)))
        unique, counts = np.unique(np.asarray(runs), return_counts=True)
        self._scattered = set(unique[counts > 1].tolist())
        return len(unique) + alone

    def records(self) -> Iterator[Candidate | Dropped]:
        """Yield a candidate for each image, in the order of first appearance."""
        later = self._scattered_captions()
        pending: Row | None = None
        captions: list[str] = []
        for row in self.reader.rows(self.names):
            if isinstance(row, BadRow):
                yield Dropped(f"{self.reader.name}:{row.number}", self.split or "", "bad-row", row.detail)
                continue
            image = row.values[0]
            cells = self._cells(row)
            if pending is not None and not self.encoded and image and cells == self._cells(pending):
                captions.extend(self._captions(row))
                continue
            if pending is not None:
                yield self._candidate(pending, captions)
                pending = None
            if not self.encoded and image and hash(_hashable(cells)) in self._scattered:
                # Rows of this image lie apart: its captions were collected, and it is yielded where it comes first.
                collected = later.pop(_hashable(cells), None)
                if collected is not None:
                    yield self._candidate(row, collected)
                continue
            pending, captions = row, self._captions(row)
        if pending is not None:
            yield self._candidate(pending, captions)

    def _cells(self, row: Row) -> tuple[Any, ...]:
        return row.values[: len(self.same)]

    def _captions(self, row: Row) -> list[str]:
        return _captions(row.values[len(self.names) - len(self.columns.captions) :])

    def _scattered_captions(self) -> dict[Any, list[str]]:
        """Captions of the images whose rows do not stand together."""
        found: dict[Any, list[str]] = {}
        if self._scattered:
            for row in self.reader.rows(self.names):
                if isinstance(row, Row) and row.values[0]:
                    cells = _hashable(self._cells(row))
                    if hash(cells) in self._scattered:
                        found.setdefault(cells, []).extend(self._captions(row))
        return found

    def _candidate(self, row: Row, captions: list[str]) -> Candidate | Dropped:
        values = dict(zip(self.names, row.values, strict=False))
        where = f"{self.reader.name} row {row.number}"
        cell = values[self.columns.image]
        split = self.split or self._split(values.get(self.columns.split or ""))
        image, name = _image(cell, self.root)
        given = values.get(self.columns.key or "")
        key = printable(str(given).strip() if given not in (None, "") else name)
        key = key or f"{Path(self.reader.name).stem}-{row.number:08d}"
        if image is None:
            detail = f"{where}: {printable(name)}" if name else f"{where} has no image"
            reason = "no-image" if not name else "unreadable-image" if "\0" in name else "image-is-a-url"
            return Dropped(key, split or "", reason, detail)
        label = None
        if self.labels is not None:
            value = values[self.columns.label or ""]
            try:
                label = self.labels.number(value)
            except (KeyError, ValueError, TypeError):
                return Dropped(key, split or "", "unknown-label", f"{where}: {value!r} is not one of the classes")
            if label is None and not self.has_captions:
                return Dropped(key, split or "", "no-label", f"{where} has neither label nor caption")
        group = values.get(self.columns.group or "")
        group = None if group in (None, "") else printable(str(group))
        return Candidate(key, image, captions, split, label, group, where, name)

    def _split(self, value: Any) -> str | None:
        if value is None or not str(value).strip():
            return None
        if self._split_names and isinstance(value, int) and 0 <= value < len(self._split_names):
            value = self._split_names[value]
        return split_name(value)


def _hashable(cells: tuple[Any, ...]) -> Any:
    """The cells themselves, or their text where one of them is a list. A collision of their 64-bit hashes costs only a
    little memory, since the cells are compared too.
    """
    try:
        hash(cells)
    except TypeError:
        return repr(cells)
    return cells


def _captions(values: Sequence[Any]) -> list[str]:
    """The captions in some cells: text, or lists of text; empty cells give an empty caption, missing ones none."""
    found: list[str] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found.extend(_captions(value))
        elif value is not None and not (isinstance(value, float) and math.isnan(value)):
            found.append(value if isinstance(value, str) else str(value))
    return found


def _image(cell: Any, root: Path) -> tuple[bytes | Path | None, str]:
    """The image of a cell and its name; None for an empty cell, an address on the web, or a name with a NUL."""
    if isinstance(cell, dict):
        name = clean_name(cell.get("path") or "")
        if cell.get("bytes"):
            return cell["bytes"], name
        return (root / name, name) if name else (None, "")
    if isinstance(cell, (bytes, bytearray)):
        return (bytes(cell) if cell else None), ""
    name = clean_name(cell) if isinstance(cell, str) else ""
    if not name or re.match(r"[a-zA-Z][\w+.-]+://", name) or "\0" in name:
        return None, name
    return root / name, name
