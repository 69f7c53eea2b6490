"""Images that lie inside larger files: members of tars, and rows of arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import ImageSource, digest


class PackedImages(ImageSource):
    """Encoded images at known places of a few files, such as the members of tars.

    Args:
        files: the files.
        number, offset, size: int64 (N,): the file, where the image begins in it, and its length in bytes.
        names: N names for messages.
    """

    def __init__(
        self, files: Sequence[Path], number: np.ndarray, offset: np.ndarray, size: np.ndarray, names: Sequence[str]
    ) -> None:
        self.files = list(files)
        self.number, self.offset, self.size = number, offset, size
        self.names = list(names)
        self._open: tuple[int, BinaryIO] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": None}  # a worker process opens the files itself

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> bytes:
        number = int(self.number[index])
        try:
            if self._open is None or self._open[0] != number:
                if self._open is not None:
                    self._open[1].close()
                self._open = (number, self.files[number].open("rb"))
            self._open[1].seek(int(self.offset[index]))
            data = self._open[1].read(int(self.size[index]))
        except OSError as error:
            raise DataError("image cannot be read", str(error)) from error
        if len(data) != self.size[index]:
            raise DataError("image cannot be read", f"{self.files[number]} ends before it does")
        return data

    def key(self, index: int) -> str:
        return f"{self.names[index]} of {self.files[int(self.number[index])].name}"

    def signature(self) -> str:
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return digest("packed", facts, self.offset.tolist(), self.number.tolist())


class ArrayImages(ImageSource):
    """Rows of an array of pixels, encoded as PNG when they are asked for: the pixels stay as they are.

    Args:
        pixels: uint8 (N, height, width) or (N, height, width, 3); may be mapped from the disk.
        files: where it came from, for messages and the signature.
        keys: names row `index` for a message; default: its number.
    """

    def __init__(self, pixels: np.ndarray, files: Sequence[Path], keys: Callable[[int], str] | None = None) -> None:
        self.pixels = pixels
        self.files = list(files)
        self.keys = keys

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> bytes:
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self.pixels[index])).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    def key(self, index: int) -> str:
        return self.keys(index) if self.keys else f"row {index} of {', '.join(path.name for path in self.files)}"

    def signature(self) -> str:
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return digest("array", facts, list(self.pixels.shape))
