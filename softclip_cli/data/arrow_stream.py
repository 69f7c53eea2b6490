"""An Arrow stream file that can be cut back to a length it once had and go on from there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow IPC stream


class ArrowStream:
    """Appends record batches to a file in Arrow's IPC stream format.

    Arrow's own writer cannot append to a file, so the messages are serialised one by one: the bytes then depend on the
    batches alone, not on how often the file was opened.

    Args:
        path: the file.
        schema: of all batches.
        length: bytes of an unfinished stream to go on from, what follows them is cut off; 0 starts anew.
    """

    def __init__(self, path: Path, schema: pa.Schema, length: int = 0) -> None:
        self.path = path
        if length:
            cut(path, length)
        self._file = path.open("ab" if length else "wb")
        self.length = length or self._file.write(schema.serialize())

    def write(self, batch: pa.RecordBatch) -> None:
        """Append one batch."""
        self.length += self._file.write(batch.serialize())

    def sync(self) -> None:
        """Return once everything written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def end(self) -> None:
        """End the stream and close the file."""
        self.length += self._file.write(END)
        self.sync()
        self._file.close()

    def abandon(self) -> None:
        """Close the file without ending the stream."""
        self._file.close()


def cut(path: Path, length: int) -> None:
    """Cut a file back to `length` bytes.

    Raises:
        OSError: it is shorter.
    """
    if path.stat().st_size < length:
        raise OSError(f"{path} is shorter than the {length} bytes it had")
    os.truncate(path, length)


def sync_folder(folder: Path) -> None:
    """Return once the names in the folder are on the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
