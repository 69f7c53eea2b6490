"""Marks in the training step, and the stopwatch that reads them: where the time of a step goes.

A mark is `with phase("loss"):`. Nobody listens in an ordinary step, and then a mark costs half a microsecond (torch's own
`record_function` costs 18 when no profiler runs). Who listens is one for the process, as with torch's profiler: marks lie in code that
does not know of any profile.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import record_function

DATA_WAIT = "data wait"
TO_DEVICE = "host to device"
IMAGE_TOWER = "forward: image tower"
TEXT_TOWER = "forward: text tower"
TEACHER = "teacher"
LOSS = "loss"
BACKWARD = "backward"
GRADIENTS = "gradients between processes"
OPTIMISER = "optimiser"
AVERAGE = "moving average"
OTHER = "other"
# In the order of a step, which is that of the table.
PHASES = (
    *(DATA_WAIT, TO_DEVICE, IMAGE_TOWER, TEXT_TOWER, TEACHER, LOSS, BACKWARD, GRADIENTS, OPTIMISER, AVERAGE),
    OTHER,
)

_listening: Stopwatch | None = None


class phase:
    """A part of the step, as a context manager. A mark inside another one belongs to the outer."""

    __slots__ = ("name", "watch")

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.watch = _listening
        if self.watch is not None:
            self.watch.enter(self.name)

    def __exit__(self, *_: object) -> None:
        if self.watch is not None:
            self.watch.leave()


class Stopwatch:
    """Adds up the time between marks, by name, over steps.

    On a GPU the times are those of the device: events are put into its stream at every mark, and read once at the end, so that measuring
    does not make the host wait. The wait for data is then what the device really stood still for. Elsewhere the clock is read.

    Args:
        device: that computes.
        annotate: also name the parts in the trace of torch's profiler.
    """

    def __init__(self, device: torch.device, annotate: bool = False) -> None:
        self.cuda, self.annotate, self.device = device.type == "cuda", annotate, device
        self.steps: list[tuple[Any, Any]] = []
        self.spans: list[tuple[str, Any, Any]] = []
        self._open: list[tuple[str, Any, Any]] = []
        self._began: Any = None

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def begin(self) -> None:
        """A step begins: listen."""
        global _listening
        self._began, _listening = self._now(), self

    def end(self) -> None:
        """The step is over: stop listening."""
        global _listening
        if _listening is self:
            self.steps.append((self._began, self._now()))
            _listening = None

    def cancel(self) -> None:
        """Stop listening, whatever has begun: the step failed."""
        global _listening
        if _listening is self:
            _listening = None

    def enter(self, name: str) -> None:
        """A part begins (see `phase`)."""
        note = record_function(name) if self.annotate and not self._open else None
        if note is not None:
            note.__enter__()
        self._open.append((name, self._now() if not self._open else None, note))

    def leave(self) -> None:
        """The part that began last ends."""
        name, began, note = self._open.pop()
        if not self._open:
            self.spans.append((name, began, self._now()))
        if note is not None:
            note.__exit__(None, None, None)

    def milliseconds(self) -> tuple[dict[str, float], float]:
        """Mean milliseconds a step by part, `other` included, and of the whole step. The parts add up to the whole."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        count = max(1, len(self.steps))
        whole = sum(self._between(*step) for step in self.steps) / count
        parts = dict.fromkeys(PHASES, 0.0)
        for name, began, ended in self.spans:
            parts[name] += self._between(began, ended) / count
        parts[OTHER] = whole - sum(parts.values())
        return parts, whole

    def _between(self, began: Any, ended: Any) -> float:
        return began.elapsed_time(ended) if self.cuda else (ended - began) * 1e3
