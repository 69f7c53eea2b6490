"""The training view on stderr: a live block on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from softclip_cli import console
from softclip_cli.console_live import LiveView, memory
from softclip_cli.console_profile import profile_table


def wants_live() -> bool:
    """Whether stderr is a terminal that can redraw lines and whose user wants it: neither TERM=dumb nor NO_COLOR."""
    return console.err.is_terminal and not console.err.is_dumb_terminal and not os.environ.get("NO_COLOR")


class TrainingView:
    """Shows what the trainer reports. Use as a context manager and as the trainer's `report`."""

    def __init__(self) -> None:
        self.quiet = bool(int(os.environ.get("RANK", "0")))  # under torchrun the first process speaks
        self.view = LiveView(console.err) if wants_live() and not self.quiet else None
        self.said: set[str] = set()
        self.plain = console.PlainCounter()
        self.profile: dict[str, Any] | None = None

    def __enter__(self) -> TrainingView:
        if self.view is not None:
            self.view.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.view is not None:
            self.view.live.stop()

    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        """One report of the trainer. What says its rank concerns that process alone, and is said by it."""
        if not self.quiet or "rank" in facts:
            getattr(self, f"_{kind}")(facts)

    def _say(self, text: str) -> None:
        console.note(text)

    def _note(self, facts: dict[str, Any]) -> None:
        self._say(facts["text"])

    def _warning(self, facts: dict[str, Any]) -> None:
        console.warn(facts["text"])

    def _progress(self, facts: dict[str, Any]) -> None:
        what, done, total = facts["what"], facts["done"], facts["total"]
        if self.view is not None:
            if done == total:
                self.view.drop(what)
            else:
                self.view.bar(what, done, total)
        elif done == total and what not in self.said:
            self.said.add(what)
            self._say(f"{what}: {total} done")
        else:
            self.plain(what, done, total)

    def _start(self, facts: dict[str, Any]) -> None:
        self.total = facts["steps"]
        self.objective = facts["objective"]
        self._say(
            f"training {facts['model']} with {facts['objective']}: {facts['pairs']} pairs, batch {facts['batch_size']}, "
            f"{facts['steps']} steps ({facts['epochs']} epochs), {facts['trainable']:,} trainable parameters → {facts['path']}"
        )
        if self.view is not None:
            self.view.bar(self.objective, facts["first_step"], self.total)

    def _metrics(self, facts: dict[str, Any]) -> None:
        if self.view is not None:
            self.view.facts.hear_metrics(facts)
            self.view.bar(self.objective, facts["step"], self.total)
            return
        text = (
            f"loss {facts['loss']:.3f} (chance {facts['chance']:.2f})  lr {facts['lr']:.1e}  scale {facts['logit_scale']:.1f}  "
            f"{facts['samples_per_second']:.0f} pairs/s  data wait {facts['data_wait']:.0%}"
        )
        if facts.get("soft_share"):
            text += f"  soft rows {facts['soft_share']:.0%}"
        self._say("  ".join([f"step {facts['step']}/{self.total}  {text}", *memory(facts)]))

    def _evaluation(self, facts: dict[str, Any]) -> None:
        if self.view is not None:
            self.view.facts.hear_evaluation(facts)
        shown = "  ".join(f"{k} {v:.2f}" for k, v in facts.items() if isinstance(v, float))
        self._say(f"step {facts['step']}: {facts['eval']}  {shown}{'  (best so far)' if facts['best'] else ''}")

    def _profile(self, facts: dict[str, Any]) -> None:
        self.profile = facts
        console.err.print(profile_table(facts), soft_wrap=False)

    def _checkpoint(self, facts: dict[str, Any]) -> None:
        """Checkpoints are silent: the run folder shows them."""

    def _end(self, facts: dict[str, Any]) -> None:
        """What comes of it is said by the command."""
