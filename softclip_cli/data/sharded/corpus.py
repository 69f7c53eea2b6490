"""Tars or Parquet files as a corpus to train on: what is there is counted first, and said; then it reads as any corpus does."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from softclip_cli.data.sampler import WindowSampler
from softclip_cli.data.sharded.index import IndexCache, Shard, is_tar, parquet_columns
from softclip_cli.data.sharded.read import ParquetRows, Sample, TarRows
from softclip_cli.data.sources.base import SPLIT_NAMES
from softclip_cli.data.sources.parquet import split_of
from softclip_cli.data.sources.places import expand, file_name, is_address, is_pattern, shown
from softclip_cli.errors import DataError, nearest

TARS, PARQUET = (".tar",), (".parquet", ".pq")
COMPRESSED = (".tar.gz", ".tgz")
INDEXERS = 8  # shards that are indexed side by side
SHOWN = 3

Progress = Callable[[int, int], None]


def names_shards(address: str) -> bool:
    """Whether an address, pattern or path names tars or Parquet files, and not a prepared corpus."""
    if is_address(address) or is_pattern(address):
        return True
    path = Path(address)
    if path.is_file() or not path.exists():
        return address.lower().endswith((*TARS, *PARQUET, *COMPRESSED))
    if (path / "corpus.json").is_file():
        return False
    return bool(expand(address, TARS) or expand(address, PARQUET))


@dataclass
class ShardedCorpus:
    """Shards, indexed; offers what training needs of a `Corpus`.

    Attributes:
        path: what the user gave, without secrets.
        info: `{"splits": {NAME: {"rows": N}}, "sources": [...]}`.
        fingerprint: SHA-256 over names, sizes and sample counts of the shards.
        notes: for people: what was found, what is skipped and why.
    """

    path: str
    info: dict[str, Any]
    fingerprint: str
    notes: list[str]
    _splits: dict[str, ShardedSplit] = field(repr=False, default_factory=dict)

    @classmethod
    def open(cls, address: str, cache: Path, progress: Progress | None = None) -> ShardedCorpus:
        """Find and index the shards; what was indexed before is not read again.

        Args:
            address: a path, folder, pattern (`{000..099}`, `*`) or fsspec address of tars or Parquet files.
            cache: folder for the indices.
            progress: called with (shards done, shards in all).

        Raises:
            DataError: there are no shards, one is missing, or no sample can be trained on.
        """
        import filelock

        started = time.monotonic()
        places = find_shards(address)
        keep = IndexCache(cache)
        # The first process of a machine indexes; the others wait here, and then find everything kept.
        with filelock.FileLock(cache / "lock"):
            shards = _index(places, keep, progress)
        seconds = time.monotonic() - started
        facts = [[file_name(shard.place), shard.size, shard.rows] for shard in shards]
        fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        columns = None if is_tar(places[0]) else parquet_columns(places[0])
        splits: dict[str, list[Shard]] = {}
        for shard in shards:
            splits.setdefault(_split(shard.place) or "train", []).append(shard)
        if len(splits) == 1:
            splits = {"train": shards}  # what was named is what is trained on
        made = {
            name: ShardedSplit(
                TarRows(some) if columns is None else ParquetRows(some, columns), f"{fingerprint}/{name}"
            )
            for name, some in splits.items()
        }
        info = {
            "splits": {name: {"rows": len(split)} for name, split in made.items()},
            "sources": [{"path": shown(address), "format": "webdataset" if columns is None else "parquet"}],
        }
        notes = _notes(shards, seconds) + (columns.notes if columns else [])
        if len(made) > 1:
            notes.append("splits: " + ", ".join(f"{name} {len(split):,}" for name, split in made.items()))
        return cls(shown(address), info, fingerprint, notes, made)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._splits)

    def split(self, name: str) -> ShardedSplit:
        """One split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self._splits:
            raise DataError(
                f"{self.path} has no split {name!r}",
                "it has " + ", ".join(self.splits),
                nearest(name, self.splits) or f"choose one of them: --set data.split={self.splits[0]}",
            )
        return self._splits[name]


def find_shards(address: str) -> list[str]:
    """The tars that an address names, else the Parquet files.

    Raises:
        DataError: there are none.
    """
    for suffixes in (TARS, PARQUET):
        if places := expand(address, suffixes):
            # Absolute: worker processes and kept indices must not depend on the working folder.
            return [place if is_address(place) else os.path.abspath(place) for place in places]  # noqa: PTH100
    if expand(address, COMPRESSED):
        raise DataError(
            f"{shown(address)} names compressed tars",
            "training reads at random places, which compression does not allow; it would save nothing on images",
            "gunzip them, or make a corpus: softclip data prepare reads them as they are",
        )
    raise DataError(
        f"no tars or Parquet files at {shown(address)}", "looked for .tar and .parquet", "check the path or pattern"
    )


def _index(places: Sequence[str], keep: IndexCache, progress: Progress | None) -> list[Shard]:
    # One shard first: what is wrong with all of them is found in seconds.
    shards = [keep.open(places[0])]
    if not shards[0].rows and not shards[0].damage:
        raise _useless(shards[0])
    with ThreadPoolExecutor(INDEXERS) as pool:
        pending = [pool.submit(keep.open, place) for place in places[1:]]
        try:
            for number, future in enumerate(pending, 2):
                shards.append(future.result())
                if progress:
                    progress(number, len(places))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if not any(shard.rows for shard in shards):
        raise _useless(shards[0])
    return shards


def _useless(first: Shard) -> DataError:
    why = first.damage or ", ".join(f"{count:,} × {reason}" for reason, count in first.skipped.items())
    return DataError(
        f"{file_name(first.place)} has no sample that can be trained on",
        why or "it holds no image that has a .txt or .json of the same name",
        "a sample is key.jpg with key.txt or key.json beside it; see what is there: softclip data prepare "
        f"{shown(first.place)} OUT",
    )


def _notes(shards: Sequence[Shard], seconds: float) -> list[str]:
    rows, size = sum(shard.rows for shard in shards), sum(shard.size for shard in shards)
    kind = "tar" if is_tar(shards[0].place) else "Parquet file"
    count = f"{len(shards):,} {kind}{'s' * (len(shards) > 1)}"
    notes = [f"data: {rows:,} samples in {count}, {size / 1e6:,.1f} MB; indexed in {seconds:.1f} s"]
    skipped: Counter[str] = Counter()
    for shard in shards:
        skipped.update(shard.skipped)
    if skipped:
        reasons = ", ".join(f"{number:,} × {reason}" for reason, number in skipped.most_common())
        notes.append(f"data: skipped {skipped.total():,} samples: {reasons}")
    damaged = [shard for shard in shards if shard.damage]
    notes += [
        f"data: {file_name(shard.place)} is damaged, {shard.rows:,} samples before that are used: {shard.damage}"
        for shard in damaged[:SHOWN]
    ]
    if len(damaged) > SHOWN:
        notes.append(f"data: {len(damaged) - SHOWN:,} more shards are damaged")
    return notes


def _split(place: str) -> str | None:
    path = Path(shown(place))
    return split_of(path) if not is_tar(place) else SPLIT_NAMES.get(path.parent.name.lower())


class ShardedSplit:
    """The samples of some shards by number: the part of a `datasets.Dataset` that training uses.

    Args:
        source: reads samples by (shard, row).
        signature: identifies the samples.
        rows: only the first so many.
    """

    def __init__(self, source: TarRows | ParquetRows, signature: str, rows: int | None = None) -> None:
        self.source, self.signature = source, signature
        self._starts = np.cumsum([0, *(shard.rows for shard in source.shards)])
        self._rows = int(self._starts[-1]) if rows is None else rows
        self.column_names = list(source.columns)

    def __len__(self) -> int:
        return self._rows

    def samples(self, rows: Sequence[int]) -> list[Sample]:
        """Some samples, in the given order."""
        numbers = np.asarray(rows, np.int64)
        shards = np.searchsorted(self._starts, numbers, side="right") - 1
        inside = numbers - self._starts[shards]
        return self.source.read(list(zip(shards.tolist(), inside.tolist(), strict=True)))

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: str) -> list[Any]: ...
    @overload
    def __getitem__(self, at: list[int]) -> dict[str, list[Any]]: ...
    def __getitem__(self, at: int | str | list[int]) -> Any:
        """A row, some rows as columns, or a whole column, as of a `datasets.Dataset` whose images stay encoded."""
        if isinstance(at, str):
            return [value for start in range(0, len(self), 256) for value in self._columns(self._part(start))[at]]
        if isinstance(at, list):
            return self._columns(self.samples(at))
        return {name: values[0] for name, values in self._columns(self.samples([at])).items()}

    def _part(self, start: int) -> list[Sample]:
        return self.samples(range(start, min(start + 256, len(self))))

    def _columns(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {
            "image": [{"bytes": sample.image, "path": None} for sample in samples],
            "captions": [list(sample.captions) for sample in samples],
            "group": [sample.group for sample in samples],
            "problem": [sample.problem for sample in samples],
        }
        return {name: columns[name] for name in (*self.column_names, "problem")}

    def select(self, rows: range) -> ShardedSplit:
        """The first rows."""
        assert rows.start == 0
        assert rows.step == 1
        return ShardedSplit(self.source, f"{self.signature}[:{len(rows)}]", len(rows))

    def select_columns(self, names: list[str]) -> ShardedSplit:
        """Itself: a sample is read at once."""
        return self

    def sampler(self, batch_size: int, seed: int, window: int) -> WindowSampler:
        """The order in which training sees the samples: what is read at a time lies in few places.

        Args:
            batch_size: over all processes.
            seed: of the order.
            window: bytes that are shuffled together.
        """
        blocks = np.array([block for shard in self.source.shards for block in shard.blocks], np.int64).reshape(-1, 2)
        ends = np.minimum(np.cumsum(blocks[:, 0]), self._rows)
        rows = np.diff(ends, prepend=0)
        there = rows > 0
        return WindowSampler(self._rows, batch_size, seed, rows=rows[there], bytes=blocks[there, 1], window=window)
