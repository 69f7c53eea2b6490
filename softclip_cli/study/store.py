"""The folder of a study: one file a finished cell, written whole or not at all, and the table that they make together.

results/noise/
  study.toml        the study as it was run last      cells/KEY.json     one result a run
  failed/KEY.json   why a run failed                  heads/             weights of rows that teach others
  runs/KEY          folders of whole runs             results.parquet    all results, a row each
  lock              held while a study runs here
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.errors import DataError, HostError, UsageError
from softclip_cli.study.plan import Cell
from softclip_cli.training.run_folder import json_text, replace_text

if TYPE_CHECKING:
    import pandas as pd

TABLE, LOCK = "results.parquet", "lock"


class Store:
    """Results on the disk.

    Args:
        path: the study's folder; made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, name: str = "") -> Path:
        """A part of it, made if it is not there.

        Raises:
            HostError: the disk refuses.
        """
        place = self.path / name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{place} cannot be made", str(error), "name another folder: --out DIR") from error
        return place

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            UsageError: it is not empty and no study's.
        """
        there = self.path.is_dir() and any(part.name != LOCK for part in self.path.iterdir())
        if self.path.is_file() or (there and not (self.path / "study.toml").is_file()):
            raise UsageError(
                f"{self.path} is not a study's folder", "it holds something else", "name a new folder: --out DIR"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running a study here: two of them would write into the same runs.

        Raises:
            UsageError: one does already.
        """
        import filelock

        lock = filelock.FileLock(self.folder() / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UsageError(
                f"another process runs a study in {self.path}",
                f"it holds {self.path / LOCK}",
                "wait for it or stop it, or name another folder: --out DIR",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def weights(self, key: str | None) -> Path:
        """Where the projections of a cell are kept that teaches others."""
        return self.path / "heads" / f"{key}.safetensors"

    def result(self, key: str) -> dict[str, Any] | None:
        """A finished cell's result; None where there is none, or not a whole one."""
        try:
            document = json.loads((self.path / "cells" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) and "metrics" in document else None

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell that need not be run again."""
        return None if cell.keep and not self.weights(cell.key).is_file() else self.result(cell.key)

    def add(self, cell: Cell, document: dict[str, Any]) -> None:
        """Keep a result."""
        self._write("cells", cell, document)
        (self.path / "failed" / f"{cell.key}.json").unlink(missing_ok=True)

    def add_failure(self, cell: Cell, why: str, detail: str = "") -> None:
        """Keep why a cell failed; it is tried again by the next run of the study."""
        self._write("failed", cell, {"error": why, "detail": detail})

    def _write(self, folder: str, cell: Cell, document: dict[str, Any]) -> None:
        whole = {"key": cell.key, **cell.labels(), **document, "settings": cell.settings.model_dump(mode="json")}
        path = self.folder(folder) / f"{cell.key}.json"
        try:
            replace_text(path, json_text(whole))
        except OSError as error:
            raise HostError(
                f"{path} could not be written", str(error), "make room, then give the same command again"
            ) from error

    def merge(self, cells: Iterable[Cell]) -> Path:
        """Write the table of all results of these cells, a row for each and for each moment ("last" step, "best" epoch)."""
        import pandas as pd

        rows = []
        for cell in cells:
            document = self.result(cell.key)
            if document is None:
                continue
            facts = {key: value for key, value in document.items() if key in FACTS}
            for when, metrics in document["metrics"].items():
                curve = json.dumps(document["curve"]) if document["curve"] else ""
                rows.append({"key": cell.key, **cell.labels(), "when": when, **facts, "curve": curve, **metrics})
        table = (
            pd.DataFrame(rows).drop_duplicates(["key", "objective", "stage", "trial", "noise", "data", "when"])
            if rows
            else pd.DataFrame(columns=["key"])
        )
        path = self.folder() / TABLE
        part = path.with_suffix(".partial")
        table.to_parquet(part, index=False)
        part.replace(path)
        return path


FACTS = ("steps", "samples", "pairs", "seconds", "cpu_seconds", "whole_seconds", "best_epoch")


def read_table(path: Path) -> pd.DataFrame:
    """The results of a study: of its folder, or of the Parquet file itself.

    Raises:
        DataError: there are none.
    """
    import pandas as pd

    file = path / TABLE if path.is_dir() else path
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} holds no results", str(error).splitlines()[0], "softclip study run STUDY.toml makes them"
        ) from None
    if not len(table):
        raise DataError(f"{file} holds no results yet", "no run has finished", "softclip study run STUDY.toml")
    return table
