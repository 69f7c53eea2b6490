"""The errors that a user can meet: each says what happened, why, and what to try, and carries an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SoftclipError(Exception):
    """An error that is the user's to solve, never a bug.

    Args:
        what: what went wrong, naming the file, option or value.
        why: the cause, as far as it is known.
        hint: what to try next.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.hint = what, why, hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.hint) if part)


class UsageError(SoftclipError):
    """A wrong option, value or configuration."""

    exit_code = 2


class DataError(SoftclipError):
    """A corpus, dataset or image that is missing or unusable."""

    exit_code = 3


class ModelError(SoftclipError):
    """A model reference or checkpoint that cannot be used."""

    exit_code = 4


class HostError(SoftclipError):
    """This machine lacks something: a package, a device, space on the disk."""

    exit_code = 5


class TrainingError(SoftclipError):
    """Training itself failed, for example by a loss that is not a number."""

    exit_code = 6


class CheckFailed(SoftclipError):
    """A model does not keep a limit that was set for it (`softclip compare --fail-below`): with failed training, no good model."""

    exit_code = 6


class Interrupted(SoftclipError):
    """Stopped by Ctrl-C or SIGTERM, after everything worth keeping was saved."""

    exit_code = 130


def nearest(word: str, choices: Iterable[str], count: int = 3) -> str:
    """The choices that look most like `word`, as a phrase for a hint; empty when nothing is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=count, cutoff=0.5)
    return "Did you mean " + ", ".join(repr(by_lower[name]) for name in close) + "?" if close else ""
