"""Writing what was fetched in the layout of img2dataset: `00000.tar`, `00000.parquet`, `00000_stats.json`.

The statistics come last and stand for the whole shard: a shard without them is fetched again.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from softclip_cli.data.download.fetch import Fetched
from softclip_cli.data.download.url_list import Entry
from softclip_cli.data.sources.base import printable
from softclip_cli.data.sources.tar_stream import Member

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}
COLUMNS = ("key", "url", "caption", "status", "error_message", "width", "height", "sha256")


class Shard:
    """The files of one shard.

    Args:
        folder: of the download.
        number: of the shard.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.name = f"{number:05d}"
        self.tar, self.table = folder / f"{self.name}.tar", folder / f"{self.name}.parquet"
        self.stats = folder / f"{self.name}_stats.json"

    def done(self) -> dict[str, Any] | None:
        """The statistics, if the shard is whole."""
        try:
            found = json.loads(self.stats.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and self.tar.is_file() and self.table.is_file() else None

    def rows(self) -> list[dict[str, Any]]:
        """What became of each address."""
        import pyarrow.parquet as pq

        return pq.read_table(self.table).to_pylist()

    def key(self, entry: Entry) -> str:
        """The key of a sample: the number of its line, so that it is unique over all shards."""
        return f"{entry.number:010d}"


class ShardWriter:
    """Writes a shard beside its place and puts it there when it is whole; memory does not grow with the images."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.rows: list[dict[str, Any]] = []
        self.causes: Counter[str] = Counter()
        self._started = time.time()
        self._partial = shard.tar.with_suffix(".tar.partial")
        self._archive = tarfile.open(self._partial, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 (closed by hand)

    def add(self, entry: Entry, found: Fetched) -> None:
        """Write an image with its captions, or note why there is none."""
        key = self.shard.key(entry)
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        captions = [printable(text) for text in entry.captions]
        row |= {"key": key, "url": printable(entry.url), "caption": captions[0] if captions else None}
        if found.data is None:
            row |= {"status": "failed_to_download", "error_message": printable(f"{found.cause}: {found.detail}")}
            self.causes[found.cause] += 1
        else:
            row |= {"status": "success", "width": found.width, "height": found.height}
            row["sha256"] = hashlib.sha256(found.data).hexdigest()
            described = row | ({"captions": captions} if len(captions) > 1 else {})
            self._member(f"{key}.{SUFFIXES.get(found.format, found.format.lower())}", found.data)
            self._member(f"{key}.txt", row["caption"] or "")
            self._member(f"{key}.json", json.dumps(described, ensure_ascii=False))
        self.rows.append(row)

    def copy(self, member: Member) -> None:
        """Take over a member of an earlier tar."""
        assert member.data is not None
        self._member(member.name, member.data)

    def copy_row(self, row: dict[str, Any]) -> None:
        """Take over the row of an image that was fetched before."""
        self.rows.append(row)

    def _member(self, name: str, content: bytes | str) -> None:
        data = content.encode() if isinstance(content, str) else content
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._archive.addfile(info, io.BytesIO(data))
        self._archive.members = []  # type: ignore[attr-defined]  # or it remembers every member for ever

    def finish(self) -> dict[str, Any]:
        """Put the shard in its place; returns its statistics."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._archive.close()
        rows = sorted(self.rows, key=lambda row: row["key"])
        schema = pa.schema([(name, pa.int32() if name in {"width", "height"} else pa.string()) for name in COLUMNS])
        table = self.shard.table.with_suffix(".parquet.partial")
        pq.write_table(pa.Table.from_pylist(rows, schema), table, compression="zstd")
        good = sum(row["status"] == "success" for row in rows)
        ended = time.time()
        stats = {
            "count": len(rows), "successes": good, "failed_to_download": len(rows) - good, "failed_to_resize": 0,
            "duration": ended - self._started, "start_time": self._started, "end_time": ended,
            "status_dict": {"success": good, **self.causes},
        }  # fmt: skip
        self.shard.stats.unlink(missing_ok=True)
        self._partial.replace(self.shard.tar)
        table.replace(self.shard.table)
        written = self.shard.stats.with_suffix(".json.partial")
        written.write_text(json.dumps(stats, indent=2) + "\n", encoding="utf-8")
        written.replace(self.shard.stats)
        return stats

    def abort(self) -> None:
        """Leave nothing."""
        self._archive.close()
        self._partial.unlink(missing_ok=True)
