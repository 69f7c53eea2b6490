"""The log of what was left out of a corpus: `dropped.parquet`, counts by reason, and the examples for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softclip_cli.data.clean import REASONS
from softclip_cli.data.sources.base import Dropped

COLUMNS = ("key", "split", "reason", "detail")
BATCH = 8192
EXAMPLES = 3


class DroppedLog:
    """Writes (key, split, reason, detail) rows in order and counts them.

    Args:
        path: the Parquet file to write; it exists, perhaps without rows, once the log is closed.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Dropped] = []
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, item: Dropped) -> None:
        """Log one record or caption."""
        self._rows.append(item)
        self.counts[item.reason] += 1
        shown = self.examples.setdefault(item.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(item.detail if item.key in item.detail else f"{item.key}: {item.detail}")
        if len(self._rows) >= BATCH:
            self._flush()

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

    def _flush(self) -> None:
        import pyarrow as pa

        columns = {name: [getattr(row, name) for row in self._rows] for name in COLUMNS}
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        """Write what is pending."""
        if self._rows:
            self._flush()
        self._writer.close()


class Noted:
    """Counts what was kept but is worth a note, with the first examples."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

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
