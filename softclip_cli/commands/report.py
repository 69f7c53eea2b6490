"""`softclip report`: runs as one HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from softclip_cli import console
from softclip_cli.console import guarded


@guarded
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs: names in runs/ or run folders. The first is the baseline."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where to write. Left out: into the run's folder, or ./report.html for several runs.",
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=0, max=16, help="Retrieval queries with pictures a direction.")
    ] = 4,
    no_examples: Annotated[bool, typer.Option("--no-examples", help="No pictures from the data on the page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Draw one self-contained HTML page of one or several runs: curves, tables, mistakes, examples, environment."""
    import shlex

    from softclip_cli.reports.run_page import write_report
    from softclip_cli.runs import find_run

    found = [find_run(name) for name in runs]
    command = shlex.join(["softclip", *sys.argv[1:]]) if len(sys.argv) > 1 else ""
    page = write_report(out, found, command=command, queries=0 if no_examples else examples)
    document = {"page": str(page), "runs": [str(run.path) for run in found], "bytes": page.stat().st_size}
    console.emit(document, as_json, lambda: console.out.print(str(page), markup=False))
