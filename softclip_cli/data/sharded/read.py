"""Reading samples at random places: ranges of tars, rows of Parquet row groups. What cannot be read says why, in its place."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.data.clean import clean_caption
from softclip_cli.data.sharded.index import Shard, parquet_reader
from softclip_cli.data.sources.arrow_readers import ParquetReader
from softclip_cli.data.sources.columns import Columns
from softclip_cli.data.sources.places import is_address
from softclip_cli.data.sources.tar_samples import NoCaption, TarSample, captions_of
from softclip_cli.data.sources.tar_stream import Member

OPEN_FILES = 64
ROW_GROUPS_BYTES = 256 << 20  # two windows of the sampler: so each row group is read once an epoch


@dataclass(slots=True)
class Sample:
    """One sample as it was read.

    Attributes:
        image: the encoded file; empty if it could not be read.
        captions: clean ones; none if it could not be read.
        group: as in `Record`.
        problem: why image or captions are missing.
    """

    image: bytes = b""
    captions: tuple[str, ...] = ()
    group: str | None = None
    problem: str = ""


class Ranges:
    """Reads stretches of files, local or at addresses; each process opens its own files."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget()

    def read(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        """The bytes of each (place, start, length), or what went wrong. Ranges at addresses are fetched together."""
        if self._process != os.getpid():
            self._forget()
        found: list[bytes | Exception] = [b""] * len(wanted)
        remote = []
        for number, (place, start, length) in enumerate(wanted):
            if is_address(place):
                remote.append(number)
                continue
            try:
                found[number] = self._read(place, start, length)
            except OSError as error:
                found[number] = error
        if remote:
            for number, data in zip(remote, self._fetch([wanted[number] for number in remote]), strict=True):
                found[number] = data
        for number, (_, _, length) in enumerate(wanted):
            data = found[number]
            if not isinstance(data, Exception) and len(data) != length:
                found[number] = OSError(f"{len(data)} of {length} bytes are there")
        return found

    def _read(self, place: str, start: int, length: int) -> bytes:
        file = self._files.get(place)
        if file is None:
            file = self._files[place] = open(place, "rb", buffering=0)  # noqa: PTH123, SIM115  kept open
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(place)
        file.seek(start)
        return file.read(length)

    def _fetch(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        import fsspec

        try:
            filesystem = fsspec.core.url_to_fs(wanted[0][0])[0]
            paths = [filesystem._strip_protocol(place) for place, _, _ in wanted]
            starts = [start for _, start, _ in wanted]
            ends = [start + length for _, start, length in wanted]
            return filesystem.cat_ranges(paths, starts, ends, on_error="return")
        except Exception as error:  # each storage service has errors of its own
            return [error] * len(wanted)


class TarRows:
    """Samples of tars by (shard, row)."""

    columns = ("image", "captions")

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards, self._ranges = shards, Ranges()

    def read(self, rows: Sequence[tuple[int, int]]) -> list[Sample]:
        """Read some samples, in the given order."""
        entries = []
        for shard, row in rows:
            samples = self.shards[shard].samples
            assert samples is not None
            entries.append(samples[row])
        wanted = [
            (self.shards[shard].place, int(entry["start"]), int(entry["length"]))
            for (shard, _), entry in zip(rows, entries, strict=True)
        ]
        return [_tar_sample(data, entry) for data, entry in zip(self._ranges.read(wanted), entries, strict=True)]


def _tar_sample(data: bytes | Exception, entry: np.void) -> Sample:
    if isinstance(data, Exception):
        return Sample(problem=f"{type(data).__name__}: {data}")

    def member(name: str) -> bytes | None:
        start, size = int(entry[name]), int(entry[f"{name}_size"])
        return data[start : start + size] if size else None

    sides = {
        ("", kind): Member(kind, len(content), data=content)
        for kind, name in (("txt", "text"), ("json", "json"))
        if (content := member(name)) is not None
    }
    try:
        captions = _clean(captions_of(TarSample("", sides=sides), "", "utf-8"))
    except NoCaption as problem:
        return Sample(problem=problem.detail)
    return Sample(member("image") or b"", captions, problem="" if captions else "no usable caption")


class ParquetRows:
    """Samples of Parquet files by (shard, row); the row groups read last stay in memory."""

    def __init__(self, shards: Sequence[Shard], columns: Columns) -> None:
        self.shards, self.chosen = shards, columns
        self.columns = ("image", "captions", "group") if columns.group else ("image", "captions")
        self._starts = [np.cumsum([0, *(rows for rows, _ in shard.blocks)]) for shard in shards]
        self._readers: dict[int, ParquetReader] = {}
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._tables: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": OrderedDict(), "_bytes": 0}

    def read(self, rows: Sequence[tuple[int, int]]) -> list[Sample]:
        """Read some samples, in the given order."""
        if self._process != os.getpid():
            self._forget()
        places = [
            (shard, int(np.searchsorted(self._starts[shard], row, side="right")) - 1, row, number)
            for number, (shard, row) in enumerate(rows)
        ]
        found: list[Sample] = [Sample()] * len(rows)
        # Group by group, so that a batch needs each of them once even where they do not all fit.
        for shard, group, row, number in sorted(places):
            try:
                table = self._table(shard, group)
            except Exception as error:  # Arrow and the storage services raise many kinds
                found[number] = Sample(problem=f"{type(error).__name__}: {error}")
                continue
            found[number] = self._sample(table, row - int(self._starts[shard][group]))
        return found

    def _table(self, shard: int, group: int) -> Any:
        key = (shard, group)
        if key not in self._tables:
            names = [self.chosen.image, *self.chosen.captions, *([self.chosen.group] if self.chosen.group else [])]
            if shard not in self._readers:
                self._readers[shard] = parquet_reader(self.shards[shard].place)
            with self._readers[shard].open_file() as file:
                # Threads of Arrow's pool do not survive the fork of a worker process.
                table = file.read_row_group(group, columns=names, use_threads=False)
            self._tables[key] = table
            self._bytes += table.nbytes
            while self._bytes > ROW_GROUPS_BYTES and len(self._tables) > 1:
                self._bytes -= self._tables.popitem(last=False)[1].nbytes
        self._tables.move_to_end(key)
        return self._tables[key]

    def _sample(self, table: Any, row: int) -> Sample:
        cell = table[self.chosen.image][row].as_py()
        image = (cell.get("bytes") if isinstance(cell, dict) else cell) or b""
        texts: list[str] = []
        for name in self.chosen.captions:
            value = table[name][row].as_py()
            texts.extend(str(text) for text in (value if isinstance(value, list) else [value]) if text is not None)
        captions = _clean(texts)
        group = table[self.chosen.group][row].as_py() if self.chosen.group else None
        problem = "no image bytes" if not image else "" if captions else "no usable caption"
        return Sample(image, captions, group, problem)


def _clean(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(clean for text in texts if (clean := clean_caption(text)[0]))
