"""A process that prepares corpora in children and lets them die: python killed_prepare.py SOURCE, then a job a line.

A job is `{"out": FOLDER, "die_at": N, "options": {...}}`: the child kills itself (SIGKILL) when it touches the disk for the
N-th time: before a file is opened, renamed, cut or removed, or in the middle of a write. 0: it lives. The answer to each job
is a line with the child's exit status, how often it touched the disk, and how often before its last durable point.

The children are forked from a process that has imported everything, which makes ten deaths cheap.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  before the fork
import pyarrow.parquet  # noqa: F401

from softclip_cli.data import arrow_stream, corpus, dropped, first_pass, prepare, split_writer
from softclip_cli.data.workplace import Workplace
from softclip_cli.errors import DataError

TOUCHES = {"open", "os.rename", "os.truncate", "os.remove", "os.rmdir", "os.mkdir"}

# So small that a little source makes many batches, durable points and shards.
corpus.BATCH_BYTES, first_pass.POINT_RECORDS, split_writer.SHARD_BYTES, dropped.BATCH = 9000, 25, 60_000, 16


class Death:
    """Counts touches of the disk, and kills the process at one of them."""

    def __init__(self, folder: str, at: int) -> None:
        self.folder, self.at, self.count = folder, at, 0
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and str(arguments[0]).startswith(self.folder):
            self.touch()

    def touch(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class TornStream(arrow_stream.ArrowStream):
    """Half of a batch reaches the disk before the process may die."""

    death: Death

    def write(self, batch: Any) -> None:
        whole = batch.serialize().to_pybytes()
        self._file.write(whole[: len(whole) // 2])
        self._file.flush()
        self.death.touch()
        self._file.write(whole[len(whole) // 2 :])
        self.length += len(whole)


def child(source: str, out: str, die_at: int, options: dict[str, Any], answer: int) -> None:
    """Prepare, unless death comes first."""
    death = Death(str(Path(out).parent), die_at)
    save, points = Workplace.save, []

    def noted(place: Workplace, progress: dict[str, Any]) -> None:
        save(place, progress)
        points.append(death.count)

    Workplace.save = noted  # type: ignore[method-assign]
    TornStream.death = death
    split_writer.ArrowStream = dropped.ArrowStream = TornStream  # type: ignore[misc]
    chosen = prepare.PrepareOptions(
        caption_columns=("a", "b"), split_fractions={"val": 0.2}, max_dropped=1, workers=1, **options
    )
    status = 0
    try:
        prepare.prepare(source, Path(out), chosen)
    except DataError as error:
        status = 4 if "already holds a corpus" in error.what else 3
    os.write(answer, f"{death.count} {points[-1] if points else 0}".encode())
    os._exit(status)


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(sys.argv[1], job["out"], job["die_at"], job.get("options", {}), writing)
        os.close(writing)
        _, status = os.waitpid(pid, 0)
        counts = os.read(reading, 100) or b"0 0"
        os.close(reading)
        print(json.dumps([os.waitstatus_to_exitcode(status), *map(int, counts.split())]), flush=True)


if __name__ == "__main__":
    main()
