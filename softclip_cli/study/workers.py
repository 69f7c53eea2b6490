"""Worker processes that run cells: each with its own memory, its share of the cores, and a pipe to the process that hands out the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.errors import SoftclipError
from softclip_cli.study.plan import Cell
from softclip_cli.study.store import Store
from softclip_cli.training.run_folder import Report

if TYPE_CHECKING:
    from softclip_cli.study.bench import Bench

READY = "ready"  # in the place of a cell: compute the features of these
SECONDS_BETWEEN_REPORTS = 1.0


@dataclass(frozen=True)
class Done:
    """What a worker says of a task: `error` is empty where all went well; `code` is its exit code otherwise."""

    task: Any
    error: str = ""
    detail: str = ""
    seconds: float = 0.0
    code: int = 1


def perform(bench: Bench, store: Store, task: Cell | tuple[str, list[Cell]]) -> Done:
    """Run a cell and keep its result, or why there is none; or make the features ready."""
    began = time.perf_counter()
    try:
        if isinstance(task, tuple):
            bench.ready(task[1])
            return Done(task, seconds=time.perf_counter() - began)
        document = bench.run(task)
        seconds = time.perf_counter() - began
        store.add(task, {**document, "whole_seconds": round(seconds, 3)})
        return Done(task, seconds=seconds)
    except SoftclipError as error:
        why, code = error.what, error.exit_code
        detail = "\n".join(part for part in (error.why, error.hint) if part)
    except Exception as error:  # one cell's, whatever it is: the others go on, and the reason is kept
        why, detail, code = f"{type(error).__name__}: {error}", traceback.format_exc(), 1
    if not isinstance(task, tuple):
        store.add_failure(task, why, detail)
    return Done(task, why, detail, time.perf_counter() - began, code)


def _work(connection: Connection, path: Path, keep_runs: bool, threads: int) -> None:
    """A worker's life: take a task, perform it, say so; until the other end is closed."""
    import torch

    from softclip_cli.study.bench import Bench

    torch.set_num_threads(threads)
    store, spoke = Store(path), 0.0

    def report(kind: str, facts: dict[str, Any]) -> None:
        nonlocal spoke
        if kind == "warning" or (kind == "progress" and time.monotonic() - spoke > SECONDS_BETWEEN_REPORTS):
            spoke = time.monotonic()
            connection.send((kind, facts))

    bench = Bench(store, keep_runs, report)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            connection.send(("done", perform(bench, store, task)))


class Worker:
    """One process, and what it is doing.

    Attributes:
        task: what it was given and has not finished; None while it waits.
    """

    def __init__(self, path: Path, keep_runs: bool, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, path, keep_runs, threads), daemon=False)
        with _threads(threads), _deaf():
            self.process.start()
        other.close()
        self.task: Any = None

    def give(self, task: Any) -> None:
        """Hand it a task."""
        self.task = task
        with suppress(BrokenPipeError):  # it is dead, which `Workers.results` will find
            self.connection.send(task)

    def stop(self) -> None:
        """End it, whatever it does: what it had finished is on the disk."""
        self.connection.close()
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Workers:
    """Several of them.

    Args:
        count: of processes.
        path: the study's folder.
        keep_runs: keep checkpoints of whole runs.
        threads: of each.
        report: told of warnings and progress.
    """

    def __init__(self, count: int, path: Path, keep_runs: bool, threads: int, report: Report) -> None:
        self.report, self._make = report, (path, keep_runs, threads)
        self.all = [Worker(*self._make) for _ in range(count)]

    @property
    def idle(self) -> list[Worker]:
        """Those that wait for a task."""
        return [worker for worker in self.all if worker.task is None]

    def results(self) -> Iterator[Done]:
        """Wait until something was finished, and tell it; a worker that died is replaced, its task a failure."""
        busy = {worker.connection: worker for worker in self.all if worker.task is not None}
        ready: Any = wait(list(busy))
        for connection in ready:
            worker = busy[connection]
            try:
                kind, said = connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join(5)
                yield Done(
                    worker.task, f"its process died (exit code {worker.process.exitcode})", "killed, or out of memory"
                )
                self.all[self.all.index(worker)] = Worker(*self._make)
                continue
            if kind == "done":
                worker.task = None
                yield said
            else:
                self.report(kind, said)

    def stop(self) -> None:
        """End all."""
        for worker in self.all:
            worker.stop()


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C from their first moment: the one that hands out the work decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Environment of a process whose libraries shall take so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
