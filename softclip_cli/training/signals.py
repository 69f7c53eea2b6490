"""Ctrl-C, SIGTERM and SIGUSR1: asked politely, a run finishes its step, saves, and then stops (or goes on)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Wishes:
    """What was asked for since the last look.

    Attributes:
        stop: name of the signal that asks to save and stop, or empty.
        save: whether a checkpoint was asked for.
    """

    stop: str = ""
    save: bool = False


@contextmanager
def listening() -> Iterator[Wishes]:
    """Turn signals into wishes; a second Ctrl-C interrupts at once. Outside the main thread nothing is caught."""
    wishes = Wishes()
    if threading.current_thread() is not threading.main_thread():
        yield wishes
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if wishes.stop:
            raise KeyboardInterrupt
        wishes.stop = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

    def save(number: int, frame: FrameType | None) -> None:
        wishes.save = True

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = save
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield wishes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
