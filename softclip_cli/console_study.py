"""What a study says while it runs: a bar on a terminal, a line for each run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from softclip_cli import console
from softclip_cli.console import PlainCounter
from softclip_cli.resources import duration


class StudyView(AbstractContextManager["StudyView"]):
    """Draws a study's reports on stderr."""

    def __init__(self) -> None:
        self._bar = console.progress()
        self._task: Any = None
        self._spoken = PlainCounter()

    def __enter__(self) -> StudyView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        """Show one report."""
        if kind == "stage":
            left = facts["cells"] - facts["finished"]
            console.note(f"{facts['stage']}: {facts['cells']:,} runs, {facts['finished']:,} finished, {left:,} to run")
            self._show(facts["stage"], facts["finished"], facts["cells"])
        elif kind == "cell":
            said = facts["error"] and f"failed: {facts['error']}"
            if not said:
                value = "" if facts["value"] is None else f"{facts['metric']} {facts['value']:.2f}, "
                said = f"{value}{duration(facts['seconds'])}"
            left = f", {duration(facts['left'])} left" if facts["done"] < facts["total"] else ""
            console.note(f"[{facts['done']}/{facts['total']}{left}] {facts['name']}: {said}")
            self._show(facts["stage"], facts["done"], facts["total"])
        elif kind == "progress":
            self._show(facts["what"], facts["done"], facts["total"])
            if self._bar.disable:
                self._spoken(facts["what"], facts["done"], facts["total"])
        elif kind == "warning":
            console.warn(facts["text"])
        elif kind == "note":
            console.note(facts["text"])

    def _show(self, what: str, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task(what, total=total)
        self._bar.update(self._task, description=what, completed=done, total=total)
