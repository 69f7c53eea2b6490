"""`softclip objectives`: what can be minimised, and what is known of it."""

from __future__ import annotations

from typing import Annotated

import typer

from softclip_cli import console
from softclip_cli.console import guarded

app = typer.Typer(
    name="objectives",
    help="The training objectives: list them, or explain one with its formula, its choices and where they come from.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]


@app.command("list")
@guarded
def list_objectives(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the objectives: what each is, who teaches, and when to use it."""
    from softclip_cli.objectives.catalogue import list_presets

    rows = list_presets()

    def render() -> None:
        columns = ["name", "teacher", "rule", "mix", "what it is"]
        console.table(
            "Objectives", columns, ([row[key] for key in ("name", "teacher", "rule", "mix", "title")] for row in rows)
        )
        console.note("softclip objectives show NAME explains one; softclip train --objective NAME uses it")

    console.emit({"objectives": rows}, as_json, render)


@app.command("show")
@guarded
def show_objective(
    name: Annotated[str, typer.Argument(help="The objective, for example psd.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Explain an objective: formula, every choice with its default, and whether paper, code or we settled it."""
    from softclip_cli.objectives.catalogue import describe_preset

    document = describe_preset(name)

    def render() -> None:
        lines = [
            f"{document['name']}: {document['title']}",
            "",
            f"  formula    {document['formula']}",
            f"  use it     {document['when']}",
            f"  reference  {document['reference']}",
            "",
            "Choices, each with its source (change one with --set SETTING=VALUE):",
        ]
        for item in document["choices"]:
            lines += [f"  {item['setting']} = {_text(item['value'])}  [{item['mark']}]", f"      {item['help']}"]
        known = {item["mark"]: item["meaning"] for item in document["choices"]}
        lines += ["", *(f"  [{mark}] {meaning}" for mark, meaning in known.items())]
        console.out.print("\n".join(lines), markup=False)

    console.emit(document, as_json, render)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
