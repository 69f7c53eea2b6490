"""Running a function over chunks of work in processes: results in order, memory bounded, a crash costs one item."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

from softclip_cli.errors import HostError

Item = TypeVar("Item")
Result = TypeVar("Result")
_beside: list[ProcessPoolExecutor] = []  # of `isolated`: none or one
AHEAD = 2  # chunks in flight a worker: enough to keep it busy, few enough to bound memory


def ordered_map(
    function: Callable[[list[Item]], Sequence[Result]],
    chunks: Iterable[list[Item]],
    workers: int,
    on_crash: Callable[[Item], Result],
    preload: Sequence[str] = (),
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, result) for every item of every chunk, in order.

    Args:
        function: from a list of items to as many results; must be importable by a worker. With one worker it runs here.
        chunks: read only as far ahead as keeps the workers busy.
        workers: processes.
        on_crash: the result for an item whose worker died (a decoder that crashes, or is killed for its memory).
        preload: modules that the function needs and that take long to import: once for all workers, whose memory they share.

    Raises:
        HostError: worker processes cannot be started on this machine.
    """
    if workers <= 1:
        for chunk in chunks:
            yield from zip(chunk, function(chunk), strict=True)
        return
    _preload(preload)
    pool = _pool(workers)
    pending: deque[tuple[list[Item], Future[Sequence[Result]]]] = deque()
    supply = iter(chunks)
    try:
        while True:
            while len(pending) < AHEAD * workers:
                try:
                    chunk = next(supply)
                except StopIteration:
                    break
                try:
                    pending.append((chunk, pool.submit(function, chunk)))
                except BrokenProcessPool as error:  # noticed here first; the head of the queue will say the same
                    failed: Future[Sequence[Result]] = Future()
                    failed.set_exception(error)
                    pending.append((chunk, failed))
            if not pending:
                return
            chunk, future = pending.popleft()
            try:
                results = list(future.result())
            except BrokenProcessPool:
                # One of the chunks in flight did it: this one is tried item by item, the others again.
                pool.shutdown(wait=False, cancel_futures=True)
                results = [_alone(function, item, on_crash) for item in chunk]
                pool = _pool(workers)
                pending = deque((waiting, pool.submit(function, waiting)) for waiting, _ in pending)
            yield from zip(chunk, results, strict=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(
    function: Callable[[list[Item]], Sequence[Result]], item: Item, on_crash: Callable[[Item], Result]
) -> Result:
    """The result of one item in a process of its own."""
    with _pool(1) as pool:
        try:
            return pool.submit(function, [item]).result()[0]
        except BrokenProcessPool:
            pass
    with _pool(1) as pool:
        try:
            pool.submit(function, []).result()
        except BrokenProcessPool as error:
            raise HostError(
                "worker processes cannot be started", str(error), "run with --workers 1, and check the free memory"
            ) from error
    return on_crash(item)


def isolated(
    function: Callable[[list[Item]], Sequence[Result]], chunk: list[Item], on_crash: Callable[[Item], Result]
) -> list[Result]:
    """The results of one chunk, computed in a process beside this one, which is kept for the next chunk.

    Raises:
        HostError: worker processes cannot be started on this machine.
    """
    if not _beside:
        _beside.append(_pool(1))
    try:
        return list(_beside[0].submit(function, chunk).result())
    except BrokenProcessPool:
        _beside.pop().shutdown(wait=False)
        return [_alone(function, item, on_crash) for item in chunk]


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not fork: the parent has threads (Arrow's), whose locks a forked child would inherit locked.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        _start_fork_server()
    else:
        context = multiprocessing.get_context("spawn")  # type: ignore[assignment]
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _preload(modules: Sequence[str]) -> None:
    """Name what the server imports before it forks; without effect where it runs already."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(["softclip_cli.data.clean", *modules])


def _start_fork_server() -> None:
    """Start the server that forks workers so that an interruption makes neither it nor a half-started worker speak.

    Ctrl-C goes to every process of the terminal: started with it blocked, the server and what it forks never see it, not even
    in the moment before they would ignore it; the parent ends them. And a worker that is still starting when the parent
    leaves finds its queues gone and would print a traceback that says nothing: what workers have to say comes back as results.
    """
    resource_tracker.ensure_running()  # starting it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        forkserver.ensure_running()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which stops the workers in order, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "torch" in sys.modules:  # the other workers have the other cores
        sys.modules["torch"].set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
