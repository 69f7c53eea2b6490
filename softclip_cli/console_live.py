"""The live view of a training: bars for what goes on, and a few lines that show how the run does. As wide as the terminal, never wider."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "   "
REMEMBERED = 200  # losses that the little curve is drawn from
SLOW_DATA = 0.2  # a share of the time that is worth noticing


class LiveView:
    """Bars and facts in one block at the bottom of the terminal.

    Args:
        console: that it is drawn on.
    """

    def __init__(self, console: Console) -> None:
        self.facts = Facts()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self.live = Live(self, console=console, refresh_per_second=4, transient=False)
        self.tasks: dict[str, Any] = {}

    def __rich__(self) -> Group:
        return Group(self.progress.get_renderable(), self.facts)

    def bar(self, name: str, done: int, total: int) -> None:
        """Move a bar, or begin one."""
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, completed=done)
        self.progress.update(self.tasks[name], completed=done, total=total)

    def drop(self, name: str) -> None:
        """Take a bar away: what it showed is done."""
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))


class Facts:
    """The last line of metrics and the last evaluation, in lines of whole items: what does not fit is left out, nothing wraps."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.evaluation = ""
        self.losses: deque[float] = deque(maxlen=REMEMBERED)

    def hear_metrics(self, facts: dict[str, Any]) -> None:
        """Take in a line of metrics."""
        self.metrics = facts
        self.losses.append(facts["loss"])

    def hear_evaluation(self, facts: dict[str, Any]) -> None:
        """Take in an evaluation."""
        when = "best so far" if facts["best"] else f"step {facts['step']:,}"
        self.evaluation = f"{facts['eval']} {facts['metric']} {facts[facts['metric']]:.2f} ({when})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.metrics:
            for line in self.lines(options.max_width):
                line.truncate(options.max_width)
                yield line

    def lines(self, width: int) -> list[Text]:
        """Three lines of at most `width` columns; the first matters most, and in each the first item."""
        facts = self.metrics
        loss = Text(f"loss {facts['loss']:.3f}", style="bold").append(
            f"  chance {facts['chance']:.2f}", style="not bold dim"
        )
        room = width - loss.cell_len - len(GAP)
        if room >= 8 and len(self.losses) > 1:
            loss.append(GAP + sparkline(self.losses, min(room, 48)), style="not bold cyan")
        waits = facts["data_wait"]
        speed = [
            Text(f"{facts['samples_per_second']:,.0f} pairs/s"),
            Text(f"data wait {waits:.0%}", style="yellow" if waits >= SLOW_DATA else ""),
            *(Text(text) for text in memory(facts)),
        ]
        state = [Text(f"lr {facts['lr']:.1e}"), Text(f"scale {facts['logit_scale']:.1f}")]
        if facts.get("soft_share"):
            state.append(Text(f"soft rows {facts['soft_share']:.0%}"))
        if self.evaluation:
            state.append(Text(self.evaluation))
        return [loss, fitted(speed, width), fitted(state, width)]


def memory(facts: dict[str, Any]) -> list[str]:
    """Memory for people: of the process, and of the device where there is one."""
    names = (("memory", "memory"), ("device_memory", "device"))
    return [f"{shown} {facts[name] / 1024:.1f} GiB" for name, shown in names if name in facts]


def fitted(items: Iterable[Text], width: int) -> Text:
    """As many of the items as fit into `width` columns, from the first on."""
    line = Text()
    for item in items:
        if line.cell_len + (len(GAP) if line else 0) + item.cell_len <= width:
            line = Text.assemble(line, GAP if line else "", item)
    return line


def sparkline(values: Iterable[float], width: int) -> str:
    """A curve of one line: the mean of equal stretches, from the lowest block to the highest."""
    known = list(values)
    count = min(width, len(known))
    edges = [round(i * len(known) / count) for i in range(count + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if not high > low:  # also where a value is no number
        return BLOCKS[0] * count
    return "".join(BLOCKS[min(7, int(8 * (value - low) / (high - low)))] for value in means)
