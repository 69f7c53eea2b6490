"""The prepared corpus: a `datasets` Arrow folder of encoded images with their captions, and `corpus.json` beside it.

    CORPUS/
      corpus.json         where it came from, counts, what was dropped and why, class names, fingerprint
      dataset_dict.json   so that `datasets.load_from_disk(CORPUS)` reads it as it is
      train/  test/ ...   one memory-mapped Arrow dataset a split

Images stay encoded: `datasets` cannot skip a bad image inside its own decoding, so softclip decodes the bytes itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli import __version__
from softclip_cli.errors import DataError, nearest

if TYPE_CHECKING:
    import datasets

FORMAT = 1
BATCH_BYTES = 32 << 20  # one Arrow record batch: small enough to bound memory, large enough to write fast
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
    """Writes the records of one split as Arrow shards of bounded size, in order, in bounded memory."""

    def __init__(self, folder: Path, features: datasets.Features) -> None:
        self.folder, self.features = folder, features
        self.schema = features.arrow_schema
        self.rows = 0
        self.hashes: list[str] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in features}
        self._pending = 0
        self._sink: Any = None
        self._stream: Any = None
        self._shard_bytes = 0
        self._shards: list[Path] = []
        folder.mkdir(parents=True)

    def write(self, record: Record) -> None:
        """Append one record."""
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
        self._pending += len(record.image) + 64 * len(record.captions)
        self.rows += 1
        if self._pending >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._columns["key"]:
            return
        if self._stream is None:
            path = self.folder / f"data-{len(self._shards):05d}.arrow"
            self._sink = pa.OSFile(str(path), "wb")
            self._stream = pa.ipc.new_stream(self._sink, self.schema)
            self._shards.append(path)
        arrays = [pa.array(self._columns[field.name], field.type) for field in self.schema]
        self._stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        self._shard_bytes += self._pending
        self._columns = {name: [] for name in self._columns}
        self._pending = 0
        if self._shard_bytes >= SHARD_BYTES:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._sink.close()
            self._stream = self._sink = None
            self._shard_bytes = 0

    def abort(self) -> None:
        """Let go of the files, whose content is then worth nothing."""
        if self._sink is not None:
            self._sink.close()
        self._stream = self._sink = None

    def close(self) -> None:
        """Write what is pending and the two JSON files that make the folder a `datasets` dataset."""
        import datasets
        import pyarrow as pa

        self._flush()
        if not self._shards:
            path = self.folder / "data-00000.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, self.schema):
                pass
            self._shards.append(path)
        self._end_shard()
        names = []
        for number, path in enumerate(self._shards):
            final = self.folder / f"data-{number:05d}-of-{len(self._shards):05d}.arrow"
            path.rename(final)
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


class CorpusWriter:
    """Writes a corpus beside its final place and renames it when it is whole: there is never half a corpus.

    Use as a context manager; on an exception the unfinished folder is removed.

    Args:
        out: the folder to make. An existing corpus is replaced only with `overwrite`; any other folder never.
        overwrite: replace an existing corpus.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        self.out = Path(out)
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            if not (self.out / "corpus.json").is_file():
                raise DataError(
                    f"{self.out} exists and is not a corpus",
                    "softclip never replaces a folder that it did not make",
                    "name another output folder, or remove this one",
                )
            if not overwrite:
                raise DataError(f"{self.out} already holds a corpus", hint="name another folder, or add --overwrite")
        self.info: dict[str, Any] = {"format": FORMAT, "softclip": __version__, "splits": {}}
        self._work = self.out.with_name(f".{self.out.name}.{os.getpid()}.partial")
        self._hashes: dict[str, list[str]] = {}
        self._open: dict[str, SplitWriter] = {}

    def __enter__(self) -> CorpusWriter:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()
        return self

    @property
    def folder(self) -> Path:
        """Where the corpus is being written: further files that belong in it go here, and are renamed with it."""
        return self._work

    def open_split(self, name: str, features: datasets.Features | None = None) -> SplitWriter:
        """Open a split for writing, beside others that may be open; end it by `close_split`."""
        self._open[name] = SplitWriter(self._work / name, features if features is not None else features_for())
        return self._open[name]

    def close_split(self, name: str) -> None:
        """End a split. The order in which splits end is the order in which the corpus lists them."""
        writer = self._open.pop(name)
        writer.close()
        self.info["splits"][name] = {"rows": writer.rows}
        self._hashes[name] = writer.hashes

    @contextmanager
    def split(self, name: str, features: datasets.Features | None = None) -> Iterator[SplitWriter]:
        """Open one split for writing; close it by leaving the `with` block."""
        yield self.open_split(name, features)
        self.close_split(name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            for writer in self._open.values():
                writer.abort()
            shutil.rmtree(self._work, ignore_errors=True)
            return
        self.info["fingerprint"] = hashlib.sha256(json.dumps(self._hashes, sort_keys=True).encode()).hexdigest()
        write_json(self._work / "dataset_dict.json", {"splits": list(self.info["splits"])})
        write_json(self._work / "corpus.json", self.info)
        if self.out.exists():
            old = self.out.with_name(f".{self.out.name}.{os.getpid()}.{time.time_ns()}.old")
            self.out.rename(old)
            self._work.rename(self.out)
            shutil.rmtree(old)
        else:
            self._work.rename(self.out)


@dataclass
class Corpus:
    """A prepared corpus on disk, opened for reading.

    Attributes:
        path: its folder.
        info: the content of `corpus.json`; `info["splits"][NAME]["rows"]` counts, `info["fingerprint"]` identifies.
    """

    path: Path
    info: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Corpus:
        """Open the corpus folder at `path`.

        Raises:
            DataError: the folder is missing, is not a corpus, or is of a newer format.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(
                f"no corpus at {path}",
                "the folder does not exist",
                "make one: softclip data prepare SOURCE " + str(path),
            )
        try:
            info = json.loads((path / "corpus.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{path} is not a prepared corpus",
                "it holds no corpus.json",
                f"prepare it first: softclip data prepare {path} OUT",
            ) from None
        except ValueError as error:
            raise DataError(f"{path / 'corpus.json'} is damaged", str(error), "prepare the corpus again") from None
        if not isinstance(info, dict) or not isinstance(info.get("splits"), dict) or "fingerprint" not in info:
            raise DataError(
                f"{path} is not a prepared corpus",
                "its corpus.json was not written by softclip",
                f"prepare it first: softclip data prepare {path} OUT",
            )
        if info.get("format", 0) > FORMAT:
            raise DataError(
                f"{path} was written by a newer softclip ({info.get('softclip')})",
                f"its format is {info['format']}, this version reads up to {FORMAT}",
                "upgrade: pip install -U softclip",
            )
        return cls(path, info)

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in the order they were written."""
        return list(self.info["splits"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all data; two corpora with the same fingerprint hold the same bytes."""
        return self.info["fingerprint"]

    def split(self, name: str) -> datasets.Dataset:
        """One split as a memory-mapped `datasets.Dataset` whose `image` column stays encoded: `{"bytes", "path"}`."""
        import datasets

        if name not in self.info["splits"]:
            raise DataError(
                f"{self.path} has no split {name!r}",
                "it has " + ", ".join(self.splits),
                nearest(name, self.splits) or f"choose one of them: --split {self.splits[0]}",
            )
        try:
            loaded = datasets.load_from_disk(str(self.path / name))
        except Exception as error:  # `datasets` and Arrow raise many kinds for a damaged folder
            raise DataError(
                f"split {name!r} of {self.path} cannot be read",
                f"{type(error).__name__}: {error}",
                "prepare the corpus again",
            ) from error
        return loaded.cast_column("image", datasets.Image(decode=False))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document with a stable layout."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
