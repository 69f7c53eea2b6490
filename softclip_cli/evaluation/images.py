"""Where encoded images come from: files, Arrow or Parquet rows, or memory, all read one by one and by index.

Nothing is decoded here and nothing is loaded ahead: a source can be sent to worker processes and used from there.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.data.sharded.corpus import ShardedSplit
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow.parquet as pq


def digest(*parts: Any) -> str:
    """SHA-256 over the JSON of `parts`, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class ImageSource(ABC):
    """A sequence of encoded images.

    `signature()` is cheap and changes whenever the images may have changed: it keys the feature cache. (What identifies
    a dataset in a result is a hash of its content, made while the images are read: see `embed.py`.)
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> bytes:
        """The encoded file. Raises DataError when it cannot be read."""

    @abstractmethod
    def key(self, index: int) -> str:
        """What names this image in a message: a path or a key."""

    @abstractmethod
    def signature(self) -> str:
        """SHA-256 in hexadecimal over whatever tells these images from others without reading them all."""


class BytesImages(ImageSource):
    """Images that are in memory already."""

    def __init__(self, images: Sequence[bytes], keys: Sequence[str] | None = None) -> None:
        self.images = images
        self.keys = keys

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> bytes:
        return self.images[index]

    def key(self, index: int) -> str:
        return self.keys[index] if self.keys is not None else f"number {index}"

    def signature(self) -> str:
        return digest("bytes", [hashlib.sha256(image).hexdigest() for image in self.images])


class FileImages(ImageSource):
    """Image files under a folder.

    Args:
        root: the folder that `names` are relative to.
        names: relative paths with forward slashes.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> bytes:
        try:
            return (self.root / self.names[index]).read_bytes()
        except OSError as error:
            raise DataError("image cannot be read", str(error)) from error

    def key(self, index: int) -> str:
        return self.names[index]

    def signature(self) -> str:
        facts = []
        for name in self.names:
            try:
                status = (self.root / name).stat()
            except OSError as error:
                raise DataError(
                    f"image {name} cannot be read", str(error), "restore the file, or remove it from the set"
                ) from error
            facts.append((name, status.st_size, status.st_mtime_ns))
        return digest("files", facts)


class ArrowImages(ImageSource):
    """The image column of a `datasets.Dataset` that is opened with `datasets.Image(decode=False)`.

    Args:
        dataset: the split.
        signature: identifies its content, for example a corpus fingerprint with the split's name.
        column: name of the image column.
        keys: name of the column that names a sample, if there is one.
    """

    def __init__(
        self, dataset: datasets.Dataset | ShardedSplit, signature: str, column: str = "image", keys: str | None = "key"
    ) -> None:
        self.dataset = dataset.select_columns([column])
        self.column = column
        self._signature = digest("arrow", signature, column, len(dataset))
        self.keys = dataset[keys][:] if keys is not None and keys in dataset.column_names else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> bytes:
        return cell_bytes(self.dataset[int(index)][self.column])

    def key(self, index: int) -> str:
        return str(self.keys[index]) if self.keys is not None else f"row {index}"

    def signature(self) -> str:
        return self._signature


class ParquetImages(ImageSource):
    """The image column of Parquet files in the Hub's form, read a row group at a time.

    Nothing is converted or copied, in contrast to `datasets.load_dataset`. Each process keeps the last row group.

    Args:
        files: the split's shards, in order.
        column: name of the image column: a struct with `bytes`, or plain binary.
    """

    def __init__(self, files: Sequence[Path], column: str) -> None:
        import pyarrow.parquet as pq

        self.files = list(files)
        self.column = column
        self.groups: list[tuple[int, int]] = []  # (file, row group)
        self.starts = [0]
        for number, path in enumerate(self.files):
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                self.starts.append(self.starts[-1] + metadata.row_group(group).num_rows)
        self._forget()

    def _forget(self) -> None:
        self._file: tuple[int, pq.ParquetFile] | None = None
        self._group: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_group": None}

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> bytes:
        group = bisect_right(self.starts, index) - 1
        if self._group is None or self._group[0] != group:
            self._group = (group, self._read(group))
        return cell_bytes(self._group[1][int(index) - self.starts[group]].as_py())

    def _read(self, group: int) -> Any:
        import pyarrow.parquet as pq

        number, inside = self.groups[group]
        try:
            if self._file is None or self._file[0] != number:
                self._file = (number, pq.ParquetFile(self.files[number]))
            # Threads of Arrow's pool do not survive the fork of a worker process.
            return self._file[1].read_row_group(inside, columns=[self.column], use_threads=False)[self.column]
        except Exception as error:  # Arrow raises many kinds for a damaged file
            raise DataError(f"{self.files[number]} cannot be read", f"{type(error).__name__}: {error}") from error

    def key(self, index: int) -> str:
        group = bisect_right(self.starts, index) - 1
        number = self.groups[group][0]
        first = next(self.starts[i] for i, (file, _) in enumerate(self.groups) if file == number)
        return f"row {index - first} of {self.files[number].name}"

    def signature(self) -> str:
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return digest("parquet", facts, self.column)


class Subset(ImageSource):
    """Some images of another source, by index."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = [int(index) for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> bytes:
        return self.source[self.indices[index]]

    def key(self, index: int) -> str:
        return self.source.key(self.indices[index])

    def signature(self) -> str:
        return digest("subset", self.source.signature(), self.indices)


class Interleaved(ImageSource):
    """The images of several sources of one length by turns: the first of each, then the second of each, and so on."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = list(sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> bytes:
        return self.sources[index % len(self.sources)][index // len(self.sources)]

    def key(self, index: int) -> str:
        return self.sources[index % len(self.sources)].key(index // len(self.sources))

    def signature(self) -> str:
        return digest("interleaved", [source.signature() for source in self.sources])


def cell_bytes(cell: Any) -> bytes:
    """The encoded image of one cell: bytes, or the Hub's `{"bytes", "path"}`.

    Raises:
        DataError: the cell is empty, or names a file that cannot be read.
    """
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, dict):
        if cell.get("bytes"):
            return cell["bytes"]
        if cell.get("path"):
            try:
                return Path(cell["path"]).read_bytes()
            except OSError as error:
                raise DataError("image cannot be read", str(error)) from error
    raise DataError("image cannot be read", "the cell is empty")


def as_images(images: ImageSource | Sequence[bytes] | datasets.Dataset | ShardedSplit) -> ImageSource:
    """A source for plain bytes, a `datasets.Dataset` with an `image` column, a split of shards, or a source as it is."""
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, ShardedSplit):
        return ArrowImages(images, images.signature)
    import datasets

    if isinstance(images, datasets.Dataset):
        opened = images.cast_column("image", datasets.Image(decode=False))
        return ArrowImages(opened, opened._fingerprint)
    return BytesImages(images)
