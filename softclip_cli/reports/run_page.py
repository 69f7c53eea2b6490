"""`softclip report`: any runs as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from softclip_cli.reports.compare_page import write_demo_page
from softclip_cli.runs import Run

QUERIES = 4


def write_report(out: Path | None, runs: Sequence[Run], *, command: str = "", queries: int = QUERIES) -> Path:
    """Write the page of these runs: what was run, curves, tables, accuracy a class, settings and environment.

    Args:
        out: the file; None writes `report.html` into the folder of a single run, else into the current folder.
        runs: at least one; the first is the one that others are compared with.
        command: the command that made the page.
        queries: retrieval examples with pictures in each direction; 0 leaves them out.

    Raises:
        UsageError: no run was given.
        ModelError: a damaged file in a run folder.
    """
    if out is None:
        out = runs[0].path / "report.html" if len(runs) == 1 else Path("report.html")
    elif out.is_dir():
        out = out / "report.html"
    title = f"Run {runs[0].name}" if len(runs) == 1 else ""
    return write_demo_page(out, runs, title=title, command=command, queries=queries)
