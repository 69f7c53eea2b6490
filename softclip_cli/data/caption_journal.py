"""The captions that were counted, in the order of counting: what a run that goes on counts again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from softclip_cli.data.arrow_stream import ArrowStream


class CaptionJournal:
    """Writes the captions that a `CaptionCounter` has kept.

    The corpus itself does not tell their order over several splits, and some captions in it were never counted.

    Args:
        path: of an Arrow stream.
        length: bytes of it to go on from; 0 starts anew.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        import pyarrow as pa

        self._schema = pa.schema([("caption", pa.string())])
        self._stream = ArrowStream(path, self._schema, length)
        self._waiting: list[str] = []

    @property
    def length(self) -> int:
        """Bytes that were flushed."""
        return self._stream.length

    def add(self, captions: Sequence[str]) -> None:
        """Note the captions of one image; one that stands there twice was counted once."""
        self._waiting.extend(dict.fromkeys(captions))

    def captions(self) -> Iterator[str]:
        """All captions that were flushed, read back."""
        import pyarrow as pa

        with pa.OSFile(str(self._stream.path)) as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                yield from batch.column(0).to_pylist()

    def flush(self) -> None:
        """Write what waits."""
        import pyarrow as pa

        if self._waiting:
            self._stream.write(pa.RecordBatch.from_arrays([pa.array(self._waiting, pa.string())], schema=self._schema))
            self._waiting = []

    def sync(self) -> None:
        """Return once everything that was flushed is on the disk."""
        self._stream.sync()

    def abort(self) -> None:
        """Let go of the file."""
        self._stream.abandon()
