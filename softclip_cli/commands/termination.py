"""SIGTERM for commands that stop in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: workers are stopped, and what is done is kept for the next run."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Passed on as Ctrl-C, not turned into its exception: an event loop has its own way of taking that signal.
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
