"""What ends a run before its last step: a signal, its time, or too much of the data damaged; agreed on by all processes."""

from __future__ import annotations

import re
import time
from enum import IntEnum

UNITS = {"d": 86400, "h": 3600, "m": 60, "min": 60, "s": 1}
IN_UNITS = re.compile(r"(?:\d+(?:\.\d+)?(?:d|h|min|m|s))+")
IN_COLONS = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d{2})")
MIN_REPLACED = 10  # damaged images below which a share says nothing


class Stop(IntEnum):
    """Why all processes stop after the same step; of several reasons the largest counts."""

    NO = 0
    TIME = 1
    SIGNAL = 2
    DATA = 3


def parse_duration(text: str) -> float:
    """Seconds of "30m", "2h", "90s", "1h30m", "1:30:00", or the "29:58" and "1-12:00:00" that Slurm writes.

    Raises:
        ValueError: it is none of these, or no time at all.
    """
    word = text.strip().lower()
    seconds = 0.0
    if IN_UNITS.fullmatch(word):
        seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)(d|h|min|m|s)", word))
    elif match := IN_COLONS.fullmatch(word):
        days, hours, minutes, last = (int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
        seconds = 86400.0 * days + 3600 * hours + 60 * minutes + last
    else:
        example = f"{word}m, {word}s" if word.isdigit() else "30m, 2h, 90s, 1:30:00"
        raise ValueError(f"{text!r} is no duration: write for example {example}")
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time at all")
    return seconds


class TimeLimit:
    """Counts from the moment it is made, on a clock that nobody sets.

    Args:
        text: a duration, as `parse_duration` takes it; empty: no limit.
    """

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.seconds = parse_duration(text) if text else None
        self._began = time.monotonic()

    def over(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and time.monotonic() - self._began >= self.seconds


def too_many_replaced(replaced: int, seen: int, share: float) -> bool:
    """Whether so many of the images seen could not be decoded that the run should not go on.

    Args:
        replaced: different images that were replaced.
        seen: different images asked for.
        share: largest share of them that may be replaced; a few (`MIN_REPLACED`) always may.
    """
    return replaced > MIN_REPLACED and replaced > share * seen
