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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli import __version__
from softclip_cli.data.arrow_stream import sync_folder
from softclip_cli.data.split_writer import Record, SplitWriter, features_for, hash_file, write_json
from softclip_cli.errors import DataError, nearest

if TYPE_CHECKING:
    import datasets

__all__ = ["Corpus", "CorpusBuilder", "CorpusWriter", "Record", "features_for", "hash_file"]

FORMAT = 1
BATCH_BYTES = (
    32 << 20
)  # of records that wait, over all splits: small enough to bound memory, large enough to write fast


class CorpusBuilder:
    """Writes a corpus into a folder: splits side by side, then `finish`. The folder is the caller's to make and to move.

    Args:
        folder: an empty folder, or one from which `state` was taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: dict[str, Any] = {"format": FORMAT, "softclip": __version__, "splits": {}}
        self._hashes: dict[str, list[str]] = {}
        self._open: dict[str, SplitWriter] = {}
        self._waiting = 0

    def open_split(
        self, name: str, features: datasets.Features | None = None, state: Mapping[str, Any] | None = None
    ) -> SplitWriter:
        """Open a split for writing, beside others that may be open; end it by `close_split`.

        Args:
            name: of the split.
            features: its columns, if they are more than the usual ones.
            state: what its writer's `state` gave after a `flush`, to go on from there.
        """
        columns = features if features is not None else features_for()
        self._open[name] = SplitWriter(self.folder / name, columns, self._make_room, state)
        return self._open[name]

    def restore(self, features: datasets.Features, states: Mapping[str, Mapping[str, Any]]) -> dict[str, SplitWriter]:
        """Open splits where their writers' `state` says, all after one flush; whatever else is in the folder goes."""
        for entry in list(self.folder.iterdir()):
            if entry.name not in states:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return {name: self.open_split(name, features, state) for name, state in states.items()}

    @property
    def full(self) -> bool:
        """Whether so much waits in memory that the next record makes a flush."""
        return self._waiting >= BATCH_BYTES

    def _make_room(self, size: int) -> None:
        if self.full:
            self.flush()
        self._waiting += size

    def flush(self) -> None:
        """Write the records that wait, of all splits: so memory is bounded whatever the number of splits."""
        for writer in self._open.values():
            writer.flush()
        self._waiting = 0

    def sync(self) -> None:
        """Return once everything that was flushed is on the disk."""
        for writer in self._open.values():
            writer.sync()
            sync_folder(writer.folder)
        sync_folder(self.folder)

    def close_split(self, name: str) -> None:
        """End a split. The order in which splits end is the order in which the corpus lists them."""
        self.flush()
        writer = self._open.pop(name)
        writer.close()
        self.info["splits"][name] = {"rows": writer.rows}
        self._hashes[name] = writer.hashes

    @contextmanager
    def split(self, name: str, features: datasets.Features | None = None) -> Iterator[SplitWriter]:
        """Open one split for writing; close it by leaving the `with` block."""
        yield self.open_split(name, features)
        self.close_split(name)

    def abort(self) -> None:
        """Let go of the files."""
        for writer in self._open.values():
            writer.abort()
        self._open = {}

    def finish(self) -> None:
        """Write `corpus.json` and what else makes the folder a corpus, once all splits are closed."""
        self.info["fingerprint"] = hashlib.sha256(json.dumps(self._hashes, sort_keys=True).encode()).hexdigest()
        write_json(self.folder / "dataset_dict.json", {"splits": list(self.info["splits"])})
        write_json(self.folder / "corpus.json", self.info)


class CorpusWriter(CorpusBuilder):
    """Writes a corpus beside its final place and renames it when it is whole: there is never half a corpus.

    Use as a context manager; on an exception the unfinished folder is removed.

    Args:
        out: the folder to make. An existing corpus is replaced only with `overwrite`; any other folder never.
        overwrite: replace an existing corpus.
    """

    def __init__(self, out: Path, *, overwrite: bool = False) -> None:
        self.out = Path(out)
        check_output(self.out, overwrite)
        super().__init__(self.out.with_name(f".{self.out.name}.{os.getpid()}.partial"))

    def __enter__(self) -> CorpusWriter:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            self.abort()
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        self.finish()
        if self.out.exists():
            old = self.out.with_name(f".{self.out.name}.{os.getpid()}.{time.time_ns()}.old")
            self.out.rename(old)
            self.folder.rename(self.out)
            shutil.rmtree(old)
        else:
            self.folder.rename(self.out)


def check_output(out: Path, overwrite: bool, *, what: str = "corpus", mark: str = "corpus.json") -> None:
    """Refuse an output folder that holds something.

    Args:
        out: the folder.
        overwrite: whether one that softclip made may be replaced.
        what: is made, for messages.
        mark: the file by which softclip knows what it made.

    Raises:
        DataError: it holds one that may not be overwritten, or something else.
    """
    article = "an" if what[0] in "aeiou" else "a"
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / mark).is_file():
            raise DataError(
                f"{out} exists and is not {article} {what}",
                "softclip never replaces a folder that it did not make",
                "name another output folder, or remove this one",
            )
        if not overwrite:
            raise DataError(f"{out} already holds {article} {what}", hint="name another folder, or add --overwrite")


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
