"""The table of `softclip train --profile`: where a step's time goes, on one screen."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

BAR = 24
ALWAYS = ("data wait", "host to device", "other")  # worth seeing even when they take no time


def profile_table(facts: dict[str, Any]) -> RenderableType:
    """The parts of a step with their share, and the most expensive operators.

    Args:
        facts: of `training.profile.Profile`.
    """
    steps = f"{facts['steps']} steps from step {facts['first_step']} on, {facts['device']}"
    title = Text(f"a step takes {_ms(facts['step_ms'])} ms ({steps})", style="bold")
    parts = _grid("part of the step", ("ms", "share"), "")
    for name, part in facts["phases"].items():
        if part["share"] >= 0.001 or name in ALWAYS:
            bar = "█" * round(BAR * max(part["share"], 0))
            parts.add_row(name, _ms(part["ms"]), f"{part['share']:.1%}", Text(bar, style="cyan"))
    found: list[RenderableType] = [title, parts]
    if facts["operators"]:
        operators = _grid("operator", ("ms", "share", "calls"))
        for row in facts["operators"]:
            operators.add_row(
                escape(row["name"].removeprefix("aten::")), _ms(row["ms"]), f"{row['share']:.1%}", f"{row['calls']:,}"
            )
        found += [Text(""), operators]
    if facts["trace"]:
        found.append(
            Text(f"trace of {facts['traced']} more: {facts['trace']} (open in ui.perfetto.dev)", overflow="fold")
        )
    return Group(*found)


def _grid(first: str, numbers: tuple[str, ...], *more: str) -> Table:
    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(first, overflow="ellipsis", no_wrap=True, max_width=46)
    for name in numbers:
        grid.add_column(name, justify="right", no_wrap=True)
    for name in more:
        grid.add_column(name, no_wrap=True)
    return grid


def _ms(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
