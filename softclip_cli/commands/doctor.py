"""`softclip doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from softclip_cli import console
from softclip_cli.console import guarded

SIGNS = {
    "ok": "[green]ok[/green]     ",
    "warning": "[yellow]warning[/yellow]",
    "problem": "[bold red]problem[/bold red]",
}


@guarded
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Check this machine: packages, devices, precision, memory, disk. Exits with 5 if something would stop training."""
    from rich.markup import escape

    from softclip_cli.errors import HostError
    from softclip_cli.reports.health import as_document, examine, stops_training

    console.note("checking (packages are imported in processes of their own) ...")
    checks = examine()
    width = max(len(check.name) for check in checks)

    def render() -> None:
        for check in checks:
            console.out.print(f"{SIGNS[check.status]} {escape(check.name.ljust(width))}  {escape(check.message)}")
            if check.remedy:
                console.out.print(f"        {' ' * width}  → {escape(check.remedy)}")

    console.emit(as_document(checks), as_json, render)
    if stops_training(checks):
        raise SystemExit(HostError.exit_code)
    console.note("ready to train")
