"""Batches from decoding processes, of which some may die: the rest goes on from the batch that is missing."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from softclip_cli.errors import HostError, SoftclipError

Item = TypeVar("Item")
MAX_DEATHS = 3  # in a row; more are no accident
FORGIVEN = 100  # batches after which earlier deaths no longer count
SECONDS_TO_DIE = 1.0  # between a broken connection to a process and its exit status


def unheard(text: str) -> None:
    """A warning that nobody reads."""


def surviving(
    load: Callable[[int], Iterable[Item]], first: int, last: int, warn: Callable[[str], None] = unheard
) -> Iterator[Item]:
    """Yield the items `first` … `last` − 1 of a loader that starts anew, at the next item, when one of its processes is killed.

    Nothing is lost or seen twice, because an item is a function of its number.

    Args:
        load: number → items from there on, made by processes that it starts when it is iterated over.
        first, last: which items.
        warn: told of each death: which process, how and probably why.

    Raises:
        HostError: processes die again and again.
    """
    step, deaths, since = first, 0, first
    while step < last:
        before = set(multiprocessing.active_children())
        items = _iterate(load(step))
        workers = [process for process in multiprocessing.active_children() if process not in before]
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except SoftclipError:
                raise
            except Exception:
                dead = _dead(workers)
                if not dead:
                    raise
                del items  # ends the processes that are left
                deaths, since = (1 if step - since >= FORGIVEN else deaths + 1), step
                said = _describe(dead, step)
                if deaths > MAX_DEATHS:
                    raise HostError(
                        f"decoding processes died {deaths} times, the last time at step {step}: {said}",
                        _cause(dead),
                        f"fewer of them: --workers {len(workers) // 2} with --resume (0: the training process decodes)",
                    ) from None
                warn(f"{said} at step {step} and is replaced; no sample is lost. {_cause(dead)}")
                break
            yield item
            step += 1


def _iterate(loader: Iterable[Item]) -> Iterator[Item]:
    """Start the loader's processes, and take back the handler of SIGCHLD that torch installs with them.

    It raises wherever the main thread happens to be, be it in the middle of an optimiser's step. Without it a death is noticed when
    the batch is asked for, within five seconds.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if _of_torch(signal.getsignal(signal.SIGCHLD)):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None or _of_torch(before) else before)
    return items


def _of_torch(handler: Any) -> bool:
    return getattr(handler, "__module__", "").startswith("torch.utils.data")


def _dead(workers: list[Any]) -> list[Any]:
    """Those that ended otherwise than in order; they may need a moment to do so after what they were connected with broke."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while not (dead := [worker for worker in workers if worker.exitcode]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return dead


def _ending(worker: Any) -> str:
    if worker.exitcode > 0:
        return f"exit status {worker.exitcode}"
    try:
        return signal.Signals(-worker.exitcode).name
    except ValueError:
        return f"signal {-worker.exitcode}"


def _describe(dead: list[Any], step: int) -> str:
    names = " and ".join(f"{worker.pid} ({_ending(worker)})" for worker in dead)
    return f"decoding process{'es' if len(dead) > 1 else ''} {names} died"


def _cause(dead: list[Any]) -> str:
    """What most often ends a process in this way."""
    endings = {_ending(worker) for worker in dead}
    if "SIGBUS" in endings:
        free = shutil.disk_usage("/dev/shm").free >> 20
        return f"Shared memory is full: /dev/shm has {free:,} MB left (docker run --shm-size=8g)"
    if "SIGKILL" in endings:
        return (
            "Most often the system does that for want of memory: see dmesg, or the memory limit of the container or job"
        )
    if endings & {"SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"}:
        return "A library crashed, perhaps at a picture: softclip data prepare finds such pictures"
    return "It was ended from outside, or a library ended it"
