"""`ordered_map` on Ray: the same work in the tasks of a cluster, results in order, memory bounded.

Plain tasks, not a Ray Data set: its sources are read by remote tasks and its blocks have no place in the order of the whole,
while here one process reads the source, must know how far the results are (the durable points of `prepare`), and writes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from softclip_cli.data.ordered_map import AHEAD, Item, Result
from softclip_cli.errors import HostError

MAX_IN_FLIGHT = 128  # chunks: with those of `prepare` about a gigabyte, however large the cluster
TRIES = 3  # of an item alone: a node may go away; a decoder that crashes does so each time


def ray_ordered_map(
    function: Callable[[list[Item]], Sequence[Result]],
    chunks: Iterable[list[Item]],
    workers: int | None,
    on_crash: Callable[[Item], Result],
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, result) for every item of every chunk, in order.

    Args:
        function: from a list of items to as many results; importable on the cluster, where softclip must be installed.
        chunks: read only as far ahead as keeps the cluster busy.
        workers: chunks at work at once; None for as many as the cluster has cores. Of a cluster of our own, its cores.
        on_crash: the result for an item whose worker died.

    Raises:
        HostError: Ray is not installed, or the cluster at RAY_ADDRESS cannot be reached.
    """
    with _cluster(workers) as ray:
        cores = int(ray.cluster_resources().get("CPU", 1))
        most = min(AHEAD * (workers or cores), MAX_IN_FLIGHT)
        task = ray.remote(max_retries=0)(_run)
        work = ray.put(function)
        pending: deque[tuple[list[Item], Any]] = deque()
        supply = iter(chunks)
        try:
            while True:
                while len(pending) < most and (chunk := next(supply, None)) is not None:
                    pending.append((chunk, task.remote(work, chunk)))
                if not pending:
                    return
                chunk, reference = pending.popleft()
                try:
                    results = list(ray.get(reference))
                except (ray.exceptions.RayTaskError, KeyboardInterrupt):
                    raise  # an error of the function itself
                except ray.exceptions.RayError:
                    results = [_alone(ray, task, work, item, on_crash) for item in chunk]
                yield from zip(chunk, results, strict=True)
        finally:
            for _, reference in pending:
                ray.cancel(reference, force=True)


def _run(function: Callable[[list[Item]], Sequence[Result]], chunk: list[Item]) -> list[Result]:
    return list(function(chunk))


def _alone(ray: Any, task: Any, work: Any, item: Item, on_crash: Callable[[Item], Result]) -> Result:
    """The result of one item in a task of its own."""
    for _ in range(TRIES):
        try:
            return ray.get(task.remote(work, [item]))[0]
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError:
            continue
    return on_crash(item)


@contextmanager
def _cluster(workers: int | None) -> Iterator[Any]:
    """Ray, connected: to what this process uses already, to the cluster at RAY_ADDRESS, or to one that is started here."""
    try:
        import ray
    except ImportError as error:
        raise HostError("--engine ray needs Ray", str(error), "pip install 'softclip[ray]', or leave it out") from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds where it cannot start or connect
        raise HostError(
            f"Ray at {address} cannot be reached" if address else "Ray cannot be started on this machine",
            f"{type(error).__name__}: {error}",
            "check RAY_ADDRESS, or run without --engine ray",
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in its place
    try:
        yield ray
    finally:
        ray.shutdown()
