"""The index of a shard: which samples it holds and where they lie, found in one pass and kept for the next run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.data.clean import clean_caption
from softclip_cli.data.sources.arrow_readers import ParquetReader
from softclip_cli.data.sources.base import MAX_IMAGE_BYTES, SourceOptions
from softclip_cli.data.sources.columns import Columns, choose_columns
from softclip_cli.data.sources.places import file_name, is_address, shown
from softclip_cli.data.sources.tar_samples import TEXT_KINDS, NoCaption, TarSample, captions_of, read_samples
from softclip_cli.data.sources.tar_stream import Member, TarDamage
from softclip_cli.errors import DataError

FORMAT = 1  # of the kept files
BLOCK_BYTES = 4 << 20  # samples of a tar that stay together when blocks are shuffled
# Offsets are relative to `start`; a size of 0 means that there is none.
SAMPLE = np.dtype(
    [
        ("start", "<u8"),
        ("length", "<u4"),
        ("image", "<u4"),
        ("image_size", "<u4"),
        ("text", "<u4"),
        ("text_size", "<u4"),
        ("json", "<u4"),
        ("json_size", "<u4"),
    ]
)


@dataclass
class Shard:
    """One tar or Parquet file.

    Attributes:
        place: its path or address.
        size: of the file, in bytes.
        rows: samples that can be used.
        blocks: [rows, bytes] of the stretches that are best read together: row groups, or some megabytes of a tar.
        skipped: how many samples cannot be used, by reason.
        damage: why it could not be read to its end; empty for a whole one.
        samples: where the samples of a tar lie, (rows,) of SAMPLE, mapped from the disk; None for Parquet.
    """

    place: str
    size: int
    rows: int = 0
    blocks: list[list[int]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    damage: str = ""
    samples: np.ndarray | None = None


class IndexCache:
    """Keeps indices under what identifies a file: its place, size and time of change.

    Args:
        folder: made when it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, place: str) -> Shard:
        """The index of a tar or Parquet file, from before where the file is still the same.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        size, version = identity(place)
        name = hashlib.sha256(json.dumps([FORMAT, place, size, version]).encode()).hexdigest()[:32]
        facts, samples = self.folder / f"{name}.json", self.folder / f"{name}.npy"
        with contextlib.suppress(OSError, ValueError, TypeError):
            shard = Shard(**json.loads(facts.read_text(encoding="utf-8")))
            if is_tar(place) and shard.rows:
                shard.samples = np.load(samples, mmap_mode="r")
            return shard
        shard = index_tar(place, size) if is_tar(place) else index_parquet(place, size)
        if shard.samples is not None and shard.rows:
            _write(samples, lambda stream: np.save(stream, shard.samples))
            shard.samples = np.load(samples, mmap_mode="r")
        document = json.dumps({**asdict(shard), "samples": None})
        _write(facts, lambda stream: stream.write(document.encode()))
        return shard


def _write(path: Path, write: Any) -> None:
    """Write a file wholly or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with new.open("wb") as stream:
        write(stream)
    new.replace(path)


def is_tar(place: str) -> bool:
    """Whether the place is a tar (else it is a Parquet file)."""
    return shown(place).lower().endswith(".tar")


def identity(place: str) -> tuple[int, str]:
    """The size of a file, and what changes when its content does.

    Raises:
        DataError: it is not there.
    """
    try:
        if not is_address(place):
            status = Path(place).stat()
            return status.st_size, str(status.st_mtime_ns)
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(place)
        return int(filesystem.info(path)["size"] or 0), str(filesystem.ukey(path))
    except Exception as error:  # each storage service has errors of its own
        raise DataError(
            f"{shown(place)} cannot be read", f"{type(error).__name__}: {error}", "check the path or pattern"
        ) from error


def index_tar(place: str, size: int) -> Shard:
    """Read a tar once, and note where each image with a usable caption lies."""
    shard = Shard(place, size)
    found: list[tuple[int, ...]] = []
    skipped: Counter[str] = Counter()
    for sample in read_samples(place, images=False):
        if isinstance(sample, TarDamage):
            shard.damage = str(sample)
            continue
        if sample.refused:
            skipped["refused member"] += 1
            continue
        if not sample.images:
            skipped["no image"] += 1
        for middle, image in sample.images.items():
            problem = _unusable(sample, middle, image)
            if problem:
                skipped[problem] += 1
            else:
                found.append(_sample(sample, middle, image))
    shard.samples = np.array(found, SAMPLE)
    shard.rows, shard.skipped = len(found), dict(skipped)
    lengths = shard.samples["length"].astype(np.int64)
    number = (np.cumsum(lengths) - lengths) // BLOCK_BYTES
    edges = np.flatnonzero(np.diff(number, prepend=-1))
    if len(edges):
        counts = np.diff(edges, append=len(lengths))
        shard.blocks = np.stack([counts, np.add.reduceat(lengths, edges)], axis=1).tolist()
    return shard


def _unusable(sample: TarSample, middle: str, image: Member) -> str:
    """Why an image of a tar cannot be trained on, as far as its neighbours tell; empty if it can."""
    if not 0 < image.size <= MAX_IMAGE_BYTES:
        return "image too large" if image.size else "empty image"
    try:
        captions = captions_of(sample, middle, "utf-8")
    except NoCaption:
        return "no caption"
    return "" if any(clean_caption(text)[0] for text in captions) else "no usable caption"


def _sample(sample: TarSample, middle: str, image: Member) -> tuple[int, ...]:
    text = next((member for kind in TEXT_KINDS if (member := sample.side(middle, kind))), None)
    described = sample.side(middle, "json")
    members = [image, text, described]
    there = [member for member in members if member is not None]
    start = min(member.offset for member in there)
    places = [number for m in members for number in ((m.offset - start, m.size) if m is not None else (0, 0))]
    return (start, max(member.offset + member.size for member in there) - start, *places)


def index_parquet(place: str, size: int) -> Shard:
    """Read the footer of a Parquet file: rows and sizes of its row groups."""
    shard = Shard(place, size)
    try:
        with parquet_reader(place).open_file() as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            shard.blocks = [[group.num_rows, group.total_byte_size] for group in groups]
    except DataError as error:
        shard.damage = error.why
    shard.rows = sum(rows for rows, _ in shard.blocks)
    return shard


def parquet_reader(place: str) -> ParquetReader:
    """A reader of the file; Arrow opens local files itself, which is faster.

    Raises:
        DataError: it is not Parquet or is damaged.
    """
    return ParquetReader(place if is_address(place) else Path(place))


def parquet_columns(place: str) -> Columns:
    """Which columns of a Parquet file are image, captions and group, guessed as `softclip data prepare` guesses.

    Raises:
        DataError: no encoded images, or no captions in the first rows.
        UsageError: no image or caption column is found.
    """
    reader = parquet_reader(place)
    columns = choose_columns(reader, SourceOptions(), split_known=True)
    if reader.kind(columns.image) != "image":
        raise DataError(
            f"{file_name(place)} holds no encoded images",
            f"its column {columns.image!r} names files",
            "make a corpus of it: softclip data prepare",
        )
    if not columns.captions:
        raise DataError(
            f"{file_name(place)} holds labels but no captions",
            "its columns: " + ", ".join(reader.columns),
            'make a corpus of it: softclip data prepare ... --caption-template "a photo of a {}"',
        )
    if "group" in reader.columns and reader.kind("group") == "text":
        columns.group = "group"
    return columns
