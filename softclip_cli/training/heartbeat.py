"""Signs of life between processes: where one is missing, the others end within bounded time and say who it is.

Each process writes a line about itself into the store that the processes met by, every second, from a thread of its own: a long
evaluation, a checkpoint or the preparation of data is not taken for death. Each listens to the process that follows it. There are
three ways to notice that one is missing, and whoever notices asks for the lines of all:

- a message fails because the other end is gone (a killed process, at once);
- a message is not answered within the time limit (a process that runs but does not come: an endless loop, a hung file system);
- no sign of life while no step is done (a stopped process, a dead machine, a cut network), whatever the main thread waits for.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import softclip_cli
from softclip_cli.errors import Interrupted, SoftclipError, TrainingError
from softclip_cli.training.distributed import World, attempt, time_limit

PERIOD = 1.0  # seconds between signs of life
SILENT = 4  # signs missed in a row while looking who is missing
LOOK = 7.0  # seconds that this takes at most
GRACE = 10.0  # seconds that the main thread has to leave by itself
LOST = "lost"  # the end of one that left because another is missing
PACKAGE = str(Path(softclip_cli.__file__).parent)
MESSAGES = str(Path(dist.__file__).parent)

End = Callable[[SoftclipError], None]


@dataclass
class Sign:
    """What a process says about itself.

    Attributes:
        rank, host, pid: who it is.
        step: the step that it is at.
        place: the line of softclip that its main thread is at.
        beat: counts the signs.
        end: why it left the run; empty while it is there.
    """

    rank: int
    host: str = "?"
    pid: int = 0
    step: int = 0
    place: str = ""
    beat: int = 0
    end: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"


class Heartbeat:
    """This process's signs of life, and what it knows of the others. In a world of one it does nothing.

    Args:
        world: this process among all.
        connect: opens a connection to the store.
        end: ends the whole process with an error, called from another thread while the main one waits for a message that will
            not come; None: nobody can, and the main thread waits until its message's time limit.

    Attributes:
        step: where this process is; the trainer counts it.
        run: the run folder, for the command to resume it.
        before_end: called before `end`, with the message.
    """

    def __init__(self, world: World | None = None, connect: Callable[[], Any] | None = None, end: End | None = None):
        self.world, self.connect, self.end = world or World(), connect, end
        self.step = 0
        self.run: Path | None = None
        self.before_end: Callable[[str], None] = lambda message: None
        self.own = Sign(self.world.rank, socket.gethostname(), os.getpid())
        self.seen = [Sign(rank) for rank in range(self.world.size)]
        self.missed = [0] * self.world.size  # signs, in a row
        self.exchanges = 0
        self._next = (self.world.rank + 1) % self.world.size
        self._ask_all, self._looking = True, False  # once, so that everyone is known by host and pid
        self._leaving, self._main = threading.Event(), threading.get_ident()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._exchange_all, self._judge)]

    def start(self) -> None:
        """Begin to give signs, and hear once from everyone: who dies at once is to be named, too."""
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + LOOK
        while self._ask_all and time.monotonic() < deadline:
            time.sleep(PERIOD / 20)

    def stop(self, why: str, failed: bool) -> None:
        """Say why this process leaves, and be silent."""
        self.own.end = self.own.end or why
        if failed and self.world.first and not agent_keeps_store():
            self._look()  # the others ask this process what happened
        self._leaving.set()
        self._threads[0].join(2 * PERIOD)

    # Talking with the store: in a thread, for it may never answer.

    def _exchange_all(self) -> None:
        store = None
        leaving = False
        while not leaving:
            leaving = self._leaving.wait(PERIOD / 10 if self._ask_all and not self._looking else PERIOD)
            try:
                store = store or self.connect()  # type: ignore[misc]
                self._exchange(store)
            except RuntimeError:  # what torch raises when a store cannot be reached
                store = None

    def _exchange(self, store: Any) -> None:
        own = self.own
        own.beat, own.step, own.place = own.beat + 1, self.step, place_of(self._main)
        store.set(str(own.rank), json.dumps(asdict(own)))
        ranks = range(self.world.size) if self._ask_all else [self._next]
        keys = [str(rank) for rank in ranks]
        if not store.check(keys):  # at the very beginning; asking for what is not there would wait
            keys = [key for key in keys if store.check([key])]
        found = dict(zip(keys, store.multi_get(keys), strict=True)) if keys else {}
        for rank in ranks:
            sign = Sign(**json.loads(found[str(rank)])) if str(rank) in found else self.seen[rank]
            # Counted in signs missed, not in seconds: when a whole job is suspended and continued nobody is silent.
            self.missed[rank] = 0 if sign.beat != self.seen[rank].beat else self.missed[rank] + 1
            self.seen[rank] = sign
        self._ask_all = self._looking or not all(sign.beat for sign in self.seen)
        self.exchanges += 1

    # Judging.

    def _judge(self) -> None:
        limit = silence_limit() / PERIOD
        exchanges = step = unanswered = 0
        while not self._leaving.wait(PERIOD):
            unanswered = 0 if self.exchanges != exchanges else unanswered + 1
            exchanges = self.exchanges
            if self.step != step:  # a step needs everyone, so everyone is there
                step, unanswered, self.missed[self._next] = self.step, 0, 0
            silent = self.missed[self._next] >= limit and not self.seen[self._next].end
            if (silent or unanswered >= limit) and not self.own.end:
                answered = self._look()
                if self.own.end or (answered and self.missed[self._next] < SILENT):
                    self._looking = False  # the main thread is at it, or the other was only slow
                    continue
                self.own.end = LOST
                error = self._accuse(answered, "")
                if not self._leaving.wait(GRACE) and self.end is not None:
                    with suppress(SoftclipError):  # whatever the disk says, the end comes
                        self.before_end(str(error))
                    self.end(error)
                return

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, a message that fails becomes an error that says which process is missing.

        Raises:
            TrainingError: a process is missing.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world.size == 1 or not is_of_a_message(error):
                raise
            raise self.verdict(str(error).partition("\n")[0]) from error

    def verdict(self, message: str = "") -> TrainingError:
        """Look for some seconds who still gives signs of life and who left by himself, and say who is missing.

        Args:
            message: what the failed message said.
        """
        self.own.end = LOST
        return self._accuse(self._look(), message)

    def _look(self) -> bool:
        """Listen to all others until each has left or is silent; whether the store answers."""
        began, deadline = self.exchanges, time.monotonic() + LOOK
        self.missed = [0] * self.world.size
        self._ask_all = self._looking = True
        while time.monotonic() < deadline:
            time.sleep(PERIOD / 5)
            settled = all(sign.end or self.missed[sign.rank] >= SILENT for sign in self._others())
            if settled and self.exchanges > began + 1:
                break
        return self.exchanges > began

    def _others(self) -> list[Sign]:
        return [sign for sign in self.seen if sign.rank != self.own.rank]

    def _accuse(self, answered: bool, message: str) -> TrainingError:
        others = self._others()
        failed = [sign for sign in others if sign.end.startswith("failed")]
        left = [sign for sign in others if sign.end and sign.end != LOST and sign not in failed]
        silent = [sign for sign in others if not sign.end and self.missed[sign.rank] >= SILENT]
        absent = [sign for sign in others if not sign.end and sign not in silent]
        if not answered:
            where = "torchrun's agent" if agent_keeps_store() else str(self.seen[0])
            return self._error(
                f"{where}, at {os.environ.get('MASTER_ADDR')}, cannot be reached; this is step {self.step}",
                "it was killed or stopped, or its machine or the network is gone",
                others,  # nobody can be asked: each speaks for itself
            )
        for accused, what, why in (
            (failed, "failed", failed[0].end if failed else ""),
            (left, "left the run", left[0].end if left else ""),
            (
                silent,
                "no sign of life from",
                "killed (for want of memory?) or stopped, or the machine or network is gone",
            ),
            (absent, "still waiting for", f"alive, but not ready for a message within {time_limit():.0f} s"),
        ):
            if accused:
                names = ", ".join(str(sign) for sign in accused[:8]) + (", …" if len(accused) > 8 else "")
                seen = accused[0]
                place = f", in {seen.place}" if seen.place and not seen.end else ""
                text = f"{names} {what}" if accused in (failed, left) else f"{what} {names}"
                return self._error(text, f"{why}; last seen at step {seen.step}{place}", accused)
        return self._error(
            f"all {self.world.size} processes are alive at step {self.step}, but a message between them failed",
            message[:200] or "a connection broke",
            [],
        )

    def _error(self, what: str, why: str, accused: list[Sign]) -> TrainingError:
        speaker = min((sign.rank for sign in self.seen if sign not in accused), default=self.own.rank)
        if self.own.rank != speaker:
            return TrainingError(what)  # one process says the rest
        command = f"torchrun ... -m softclip_cli train --resume {self.run}" if self.run else "start it again"
        return TrainingError(what, why, f"when that is solved, go on from the last checkpoint: {command}")


@contextmanager
def watching(world: World, end: End | None = None) -> Iterator[Heartbeat]:
    """Give signs of life, and listen to the others', while inside.

    Args:
        world: joined before.
        end: see `Heartbeat`.
    """
    if world.size == 1:
        yield Heartbeat()
        return
    heartbeat = Heartbeat(world, connect_store, end)
    heartbeat.start()
    why, failed = "finished", True
    try:
        yield heartbeat
        failed = False
    except Interrupted as error:
        why = error.what
        raise
    except BaseException as error:
        why = f"failed: {error.what if isinstance(error, SoftclipError) else f'{type(error).__name__}: {error}'}"
        raise
    finally:
        heartbeat.stop(why, failed)


def connect_store() -> Any:
    """A connection of our own to the store that the processes met by: torchrun's agent keeps it, or the first process."""
    limit = timedelta(seconds=silence_limit())
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=limit)
    return dist.PrefixStore(f"{attempt()}/signs", store)


def agent_keeps_store() -> bool:
    """Whether torchrun itself keeps the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def silence_limit() -> float:
    """Seconds without a sign of life after which a process is missing: a fifth of the time limit, but not below ten."""
    return min(time_limit(), max(10.0, time_limit() / 5))


def is_of_a_message(error: BaseException) -> bool:
    """Whether an error comes from talking with other processes. gloo raises plain RuntimeErrors: where, is what tells."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    inside = trace is not None and trace.tb_frame.f_code.co_filename.startswith(MESSAGES)
    return isinstance(error, dist.DistError) or inside


def place_of(thread: int) -> str:
    """The line of softclip that a thread is at: `data/batches.py:120 in view`."""
    frame = sys._current_frames().get(thread)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return ""
    name = Path(frame.f_code.co_filename).relative_to(PACKAGE)
    return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
