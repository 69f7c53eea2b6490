"""Where a corpus grows until it is whole: a folder that outlives a killed process, and says how to go on from there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softclip_cli.data.arrow_stream import sync_folder
from softclip_cli.errors import DataError


class Workplace:
    """The folder `.NAME.partial` beside the output folder NAME.

        .NAME.partial/
          lock            held by the process that works here; the lock of a dead process is free
          progress.json   the last durable point: everything that it tells of is on the disk
          corpus/         the corpus, as far as it is written; renamed to NAME when it is whole
          old/            the corpus that NAME held, between the two renamings that replace it

    Args:
        out: the output folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.resolve() if out.name in ("", "..") else out.absolute()
        self.path = self.out.with_name(f".{self.out.name}.partial")
        self.corpus, self.old = self.path / "corpus", self.path / "old"
        self._progress = self.path / "progress.json"

    @contextmanager
    def locked(self) -> Iterator[Workplace]:
        """Make the folder if it is not there, and keep other processes out of it.

        Raises:
            DataError: another process works here.
        """
        import filelock

        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / "lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise DataError(
                f"another process is preparing {self.out}",
                f"it holds {self.path / 'lock'}",
                "wait for it, or name another output folder",
            ) from None
        try:
            if self.old.exists() and not self.out.exists():
                self.old.rename(self.out)  # killed between the two renamings
            yield self
        finally:
            lock.release()

    def read(self) -> dict[str, Any] | None:
        """The last durable point, or None where there is none."""
        try:
            return json.loads(self._progress.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    @property
    def saved(self) -> bool:
        """Whether there is a durable point."""
        return self._progress.is_file()

    def save(self, progress: dict[str, Any]) -> None:
        """Make a durable point: wholly or not at all, and after what it tells of, which the caller has synced."""
        new = self._progress.with_suffix(".new")
        with new.open("w", encoding="utf-8") as stream:
            json.dump(progress, stream)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self._progress)
        sync_folder(self.path)

    def restart(self) -> None:
        """Forget all that was done."""
        # First what says that the rest is worth something.
        self._progress.unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()
        self.corpus.mkdir()

    def publish(self) -> None:
        """Rename the whole corpus to its place; a corpus that is there gives way."""
        if self.out.exists():
            self.out.rename(self.old)
        self.corpus.rename(self.out)
        sync_folder(self.out.parent)
        self.remove()

    @property
    def published(self) -> bool:
        """Whether all was done but to remove this folder."""
        return self.saved and not self.corpus.exists() and (self.out / "corpus.json").is_file()

    def remove(self) -> None:
        """Remove the folder; last what says that everything was done."""
        for name in ("corpus", "old"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self._progress.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
