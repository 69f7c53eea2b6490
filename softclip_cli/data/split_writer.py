"""Writing one split of a corpus: records into Arrow shards of bounded size, in order, in bounded memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.data.arrow_stream import ArrowStream, cut

if TYPE_CHECKING:
    import datasets

SHARD_BYTES = 512 << 20


@dataclass
class Record:
    """One image with its captions: what every source yields and every writer takes.

    Attributes:
        key: unique within its split; names the sample in messages and in `dropped` reports.
        image: the encoded file (JPEG, PNG, ...), not decoded.
        captions: at least one; in a labelled set, perhaps none.
        label: class index, for labelled sets.
        group: samples that share a group are positives of each other (near-duplicates, one product, ...).
        extra: values for the further columns that the writer was opened with.
    """

    key: str
    image: bytes
    captions: list[str]
    label: int | None = None
    group: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def features_for(
    *, class_names: list[str] | None = None, groups: bool = False, extra: Mapping[str, Any] | None = None
) -> datasets.Features:
    """The `datasets` schema of a split: key, image, captions, and label, group and further columns where asked for."""
    import datasets

    columns: dict[str, Any] = {
        "key": datasets.Value("string"),
        "image": datasets.Image(),
        "captions": datasets.List(datasets.Value("string")),
    }
    if class_names is not None:
        columns["label"] = datasets.ClassLabel(names=class_names)
    if groups:
        columns["group"] = datasets.Value("string")
    columns.update(extra or {})
    return datasets.Features(columns)


class SplitWriter:
    """Writes the records of one split.

    Records wait in memory until `flush` makes a record batch of them; when that happens is the matter of `CorpusWriter`,
    which flushes all splits together.

    Args:
        folder: where the shards go.
        features: the columns.
        make_room: told the bytes of each record before it starts to wait; may flush.
        state: what `state` gave when the folder was last flushed: the writer goes on from there.
    """

    def __init__(
        self,
        folder: Path,
        features: datasets.Features,
        make_room: Callable[[int], None],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.features, self._make_room = folder, features, make_room
        self.schema = features.arrow_schema
        self.rows = 0
        self.hashes: list[str] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in features}
        self._stream: ArrowStream | None = None
        self._shards: list[int] = []  # lengths of those that are ended
        folder.mkdir(parents=True, exist_ok=True)
        if state is not None:
            self._restore(state)

    def write(self, record: Record) -> None:
        """Append one record."""
        self._make_room(len(record.image) + 64 * len(record.captions))
        row: dict[str, Any] = {
            "key": record.key,
            "image": {"bytes": record.image, "path": None},
            "captions": record.captions,
        }
        if "label" in self.features:
            row["label"] = record.label
        if "group" in self.features:
            row["group"] = record.group
        row.update(record.extra)
        for name, column in self._columns.items():
            column.append(row[name])
        self.rows += 1

    def flush(self) -> None:
        """Write what waits as one record batch."""
        import pyarrow as pa

        if not self._columns["key"]:
            return
        if self._stream is None:
            self._stream = ArrowStream(self._shard(len(self._shards)), self.schema)
        arrays = [pa.array(self._columns[field.name], field.type) for field in self.schema]
        self._columns = {name: [] for name in self._columns}
        self._stream.write(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        if self._stream.length >= SHARD_BYTES:
            self._end_shard()

    def sync(self) -> None:
        """Return once everything that was flushed is on the disk."""
        if self._stream is not None:
            self._stream.sync()

    def _shard(self, number: int) -> Path:
        return self.folder / f"data-{number:05d}.arrow"

    def _end_shard(self) -> None:
        if self._stream is not None:
            self._stream.end()
            self._shards.append(self._stream.length)
            self._stream = None

    def state(self) -> dict[str, Any]:
        """Where the writer stands, as JSON has it; nothing may wait to be flushed."""
        return {"rows": self.rows, "shards": self._shards, "open": self._stream.length if self._stream else 0}

    def written_keys(self) -> Iterator[str]:
        """The keys of all records that were flushed, read back."""
        import pyarrow as pa

        for number in range(len(self._shards) + (self._stream is not None)):
            # Mapped, so that nothing but the keys is read.
            with pa.memory_map(str(self._shard(number))) as source, pa.ipc.open_stream(source) as batches:
                for batch in batches:
                    yield from batch.column("key").to_pylist()

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Bring the folder back to the state: shards have their first names and lengths, and nothing else is there."""
        self.rows, self._shards = state["rows"], list(state["shards"])
        lengths = self._shards + [state["open"]] * bool(state["open"])
        wanted = {self._shard(number): length for number, length in enumerate(lengths)}
        for path in list(self.folder.iterdir()):
            first_name = path.with_name(path.name.split("-of-")[0].removesuffix(".arrow") + ".arrow")
            if first_name in wanted:
                path.rename(first_name)
            else:
                path.unlink()
        for path, length in wanted.items():
            cut(path, length)
        if state["open"]:
            self._stream = ArrowStream(self._shard(len(self._shards)), self.schema, state["open"])

    def abort(self) -> None:
        """Let go of the files."""
        if self._stream is not None:
            self._stream.abandon()
            self._stream = None

    def close(self) -> None:
        """Write what waits and the two JSON files that make the folder a `datasets` dataset."""
        import datasets

        self.flush()
        if not self._shards and self._stream is None:
            self._stream = ArrowStream(self._shard(0), self.schema)
        self._end_shard()
        names = []
        for number in range(len(self._shards)):
            final = self.folder / f"data-{number:05d}-of-{len(self._shards):05d}.arrow"
            self._shard(number).rename(final)
            names.append(final.name)
            self.hashes.append(hash_file(final))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": hashlib.sha256("".join(self.hashes).encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        write_json(self.folder / "state.json", state)
        datasets.DatasetInfo(features=self.features).write_to_directory(str(self.folder))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document with a stable layout."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
