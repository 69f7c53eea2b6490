"""`ordered_map` on Ray Data: the same work on a cluster, results in order, memory bounded.

A data set usually lists its source when it is made and lets remote tasks read it. Here one process reads (split lists, limits, the
position of each result) and writes in the source's order. So the data set's source is a queue that this process fills, a few
chunks ahead; Ray Data places the work, moves the data, and repeats what a lost machine took along.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from softclip_cli.data.ordered_map import Item, Result, isolated
from softclip_cli.errors import HostError

AHEAD = 8  # chunks in flight a core: Ray Data looks at what is ready in turns, so each takes its time on the way
MAX_IN_FLIGHT = 128  # chunks: with those of `prepare` about a gigabyte, however large the cluster
# A row is a chunk and must not wait for others to fill a block; blocks come back in order.
CONTEXT = {"target_max_block_size": 1, "enable_progress_bars": False, "print_on_execution_start": False}


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
        on_crash: the result for an item whose decoding killed its process; importable, too.

    Raises:
        HostError: Ray is not installed, or the cluster at RAY_ADDRESS cannot be reached.
    """
    with _cluster(workers) as ray:
        from ray.util.queue import Queue

        cores = int(ray.cluster_resources().get("CPU", 1))
        most = min(AHEAD * (workers or cores), MAX_IN_FLIGHT)
        queue = Queue()
        pending: deque[list[Item]] = deque()
        supply = iter(chunks)

        def send() -> None:
            if (chunk := next(supply, None)) is None:
                queue.put(None)
            else:
                pending.append(chunk)
                queue.put(pickle.dumps(chunk))

        try:
            for _ in range(most):
                send()
            for results in _mapped(queue, partial(_run, function, on_crash), workers):
                if isinstance(results, Exception):
                    raise results
                yield from zip(pending.popleft(), results, strict=True)
                send()
        finally:
            queue.shutdown(force=True)


def _mapped(queue: Any, work: Callable[[pa.Table], pa.Table], workers: int | None) -> Iterator[Any]:
    """What the work makes of each chunk in the queue, in order, until the queue says None."""
    from ray.data import DataContext, TaskPoolStrategy, read_datasource

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in CONTEXT}
    ordered = context.execution_options.preserve_order
    try:
        for name, value in CONTEXT.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = True
        source = read_datasource(_queue_source(queue), override_num_blocks=1, num_cpus=0)
        done = source.map_batches(
            work, batch_size=None, batch_format="pyarrow", num_cpus=1, compute=TaskPoolStrategy(workers)
        )
    finally:  # a data set keeps the context that it was made in
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = ordered
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for results in batch["results"]:
            yield pickle.loads(results.as_py())


def _queue_source(queue: Any) -> Any:
    """A Ray Data source of one task that hands on what comes out of a queue, a row a chunk."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[pa.Table]:
        while (chunk := queue.get()) is not None:
            yield pa.table({"chunk": [chunk]})

    class QueueSource(Datasource):
        """Named in Ray's own dashboard."""

        def estimate_inmemory_data_size(self) -> None:
            """Unknown: it has no end yet."""

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            """One: there is one queue."""
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    return QueueSource()


def _run(
    function: Callable[[list[Item]], Sequence[Result]], on_crash: Callable[[Item], Result], table: pa.Table
) -> pa.Table:
    """On the cluster: the results of one chunk, or the error that the function raised, as a row."""
    found: Sequence[Result] | Exception
    try:
        found = isolated(function, pickle.loads(table["chunk"][0].as_py()), on_crash)
    except Exception as error:  # Ray Data would print it, wrap it, and end; this process knows what to say
        found = error
    return pa.table({"results": [pickle.dumps(found)]})


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
