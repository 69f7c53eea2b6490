"""The log of what was left out of a corpus: `dropped.parquet`, counts by reason, and the examples for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softclip_cli.data.arrow_stream import ArrowStream
from softclip_cli.data.clean import REASONS
from softclip_cli.data.sources.base import Dropped

COLUMNS = ("key", "split", "reason", "detail")
BATCH = 8192
EXAMPLES = 3


class DroppedLog:
    """Writes (key, split, reason, detail) rows in order and counts them.

    The rows go to an Arrow stream, which can go on where a killed process left it, as Parquet cannot; `close` makes the
    Parquet file of it.

    Args:
        path: of the stream.
        state: what `state` gave when the log was last flushed, to go on from there.
    """

    def __init__(self, path: Path, state: Mapping[str, Any] | None = None) -> None:
        import pyarrow as pa

        self._schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        self._rows: list[Dropped] = []
        self.counts: Counter[str] = Counter(state["counts"] if state else {})
        self.examples: dict[str, list[str]] = dict(state["examples"]) if state else {}
        self._stream = ArrowStream(path, self._schema, state["length"] if state else 0)

    def add(self, item: Dropped) -> None:
        """Log one record or caption."""
        self._rows.append(item)
        self.counts[item.reason] += 1
        shown = self.examples.setdefault(item.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(item.detail if item.key in item.detail else f"{item.key}: {item.detail}")
        if len(self._rows) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        import pyarrow as pa

        if self._rows:
            arrays = [pa.array([getattr(row, name) for row in self._rows], pa.string()) for name in COLUMNS]
            self._stream.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._rows = []

    def sync(self) -> None:
        """Return once everything that was flushed is on the disk."""
        self._stream.sync()

    def state(self) -> dict[str, Any]:
        """Where the log stands, as JSON has it; nothing may wait to be flushed."""
        return {"length": self._stream.length, "counts": self.counts, "examples": self.examples}

    @property
    def broken(self) -> int:
        """How many records were broken (not left out by choice)."""
        return sum(self._of("record").values())

    def _of(self, kind: str) -> dict[str, int]:
        return {name: count for name, count in self.counts.most_common() if REASONS[name].of == kind}

    def report(self, kept: int) -> dict[str, Any]:
        """What corpus.json says: broken records by reason, their share, single captions, records left out by choice."""
        return {
            "records": self.broken,
            "share": round(self.share(kept), 6),
            "reasons": self._of("record"),
            "captions": self._of("caption"),
            "left_out": self._of("choice"),
        }

    def share(self, kept: int) -> float:
        """The share of broken records among all that were not left out by choice."""
        return self.broken / max(1, kept + self.broken)

    def explain(self, kind: str = "record", count: int = 3) -> str:
        """The commonest reasons with examples, a line each."""
        lines = []
        for name, number in list(self._of(kind).items())[:count]:
            examples = self.examples[name]
            more = ", ..." if number > len(examples) else ""
            lines.append(f"{number:,} × {name} ({REASONS[name].text}): {'; '.join(examples)}{more}")
        return "\n       ".join(lines)

    def hint(self) -> str:
        """What to do about the commonest reason."""
        broken = self._of("record")
        return REASONS[next(iter(broken))].hint if broken else ""

    def close(self, path: Path) -> None:
        """End the log and write its rows to a Parquet file, in row groups that do not depend on when it was flushed."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.flush()
        self._stream.end()
        with (
            pa.OSFile(str(self._stream.path)) as source,
            pa.ipc.open_stream(source) as batches,
            pq.ParquetWriter(path, self._schema, compression="zstd") as writer,
        ):
            waiting: list[pa.RecordBatch] = []
            for batch in batches:
                waiting.append(batch)
                table = pa.Table.from_batches(waiting)
                while table.num_rows >= BATCH:
                    writer.write_table(table.slice(0, BATCH))
                    table = table.slice(BATCH)
                waiting = table.to_batches() if table.num_rows else []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting))

    def abort(self) -> None:
        """Let go of the file."""
        self._stream.abandon()


class Noted:
    """Counts what was kept but is worth a note, with the first examples.

    Args:
        state: what `state` gave, to go on from there.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.counts: Counter[str] = Counter(state["counts"] if state else {})
        self.examples: dict[str, list[str]] = dict(state["examples"]) if state else {}

    def state(self) -> dict[str, Any]:
        """The counts and examples, as JSON has them."""
        return {"counts": self.counts, "examples": self.examples}

    def add(self, key: str, names: Sequence[str]) -> None:
        """Count the notes of one record."""
        for name in names:
            self.counts[name] += 1
            shown = self.examples.setdefault(name, [])
            if len(shown) < EXAMPLES:
                shown.append(key)

    def report(self) -> dict[str, Any]:
        """What corpus.json says."""
        return {name: {"images": count, "such_as": self.examples[name]} for name, count in self.counts.most_common()}
