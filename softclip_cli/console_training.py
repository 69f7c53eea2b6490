"""The training view on stderr: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from softclip_cli import console
from softclip_cli.console_profile import profile_table


class TrainingView:
    """Shows what the trainer reports. Use as a context manager and as the trainer's `report`."""

    def __init__(self) -> None:
        self.live = console.err.is_terminal
        self.quiet = bool(int(os.environ.get("RANK", "0")))  # under torchrun the first process speaks
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console.err,
        )
        self.tasks: dict[str, Any] = {}
        self.said: set[str] = set()
        self.plain = console.PlainCounter()
        self.profile: dict[str, Any] | None = None

    def __enter__(self) -> TrainingView:
        if self.live and not self.quiet:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.progress.stop()

    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        """One report of the trainer."""
        if not self.quiet:
            getattr(self, f"_{kind}")(facts)

    def _say(self, text: str) -> None:
        console.note(text)

    def _note(self, facts: dict[str, Any]) -> None:
        self._say(facts["text"])

    def _warning(self, facts: dict[str, Any]) -> None:
        console.warn(facts["text"])

    def _bar(self, name: str, done: int, total: int, text: str = "") -> None:
        if not self.live:
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, facts=text)
        self.progress.update(self.tasks[name], completed=done, total=total, facts=text)

    def _progress(self, facts: dict[str, Any]) -> None:
        self._bar(facts["what"], facts["done"], facts["total"])
        if self.live:
            return
        if facts["done"] == facts["total"] and facts["what"] not in self.said:
            self.said.add(facts["what"])
            self._say(f"{facts['what']}: {facts['total']} done")
        else:
            self.plain(facts["what"], facts["done"], facts["total"])

    def _start(self, facts: dict[str, Any]) -> None:
        self.total = facts["steps"]
        self.objective = facts["objective"]
        self._say(
            f"training {facts['model']} with {facts['objective']}: {facts['pairs']} pairs, batch {facts['batch_size']}, "
            f"{facts['steps']} steps ({facts['epochs']} epochs), {facts['trainable']:,} trainable parameters → {facts['path']}"
        )
        self._bar(self.objective, facts["first_step"], self.total)

    def _metrics(self, facts: dict[str, Any]) -> None:
        text = (
            f"loss {facts['loss']:.3f} (chance {facts['chance']:.2f})  lr {facts['lr']:.1e}  scale {facts['logit_scale']:.1f}  "
            f"{facts['samples_per_second']:.0f} pairs/s  data wait {facts['data_wait']:.0%}"
        )
        if facts.get("soft_share"):
            text += f"  soft rows {facts['soft_share']:.0%}"
        self._bar(self.objective, facts["step"], self.total, text)
        if not self.live:
            self._say(f"step {facts['step']}/{self.total}  {text}")

    def _evaluation(self, facts: dict[str, Any]) -> None:
        shown = "  ".join(f"{k} {v:.2f}" for k, v in facts.items() if isinstance(v, float))
        self._say(f"step {facts['step']}: {facts['eval']}  {shown}{'  (best so far)' if facts['best'] else ''}")

    def _profile(self, facts: dict[str, Any]) -> None:
        self.profile = facts
        console.err.print(profile_table(facts), soft_wrap=False)

    def _checkpoint(self, facts: dict[str, Any]) -> None:
        """Checkpoints are silent: the run folder shows them."""
