"""`softclip recipes`: named settings of whole runs."""

from __future__ import annotations

from typing import Annotated

import typer

from softclip_cli import console
from softclip_cli.console import guarded

app = typer.Typer(
    name="recipes",
    help="Recipes, the settings of whole runs from papers and their code: list them, or print one to use or to copy.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]


@app.command("list")
@guarded
def list_recipes(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the recipes: what each trains, and on what."""
    from softclip_cli import recipes

    found = {name: recipes.facts(name) for name in recipes.names()}

    def render() -> None:
        console.table("Recipes", ["name", "what it is"], ((name, facts.title) for name, facts in found.items()))
        console.note(
            "softclip recipes show NAME prints one; softclip train --recipe NAME --smoke tries it, without data"
        )

    console.emit({"recipes": [{"name": name, **facts.model_dump()} for name, facts in found.items()]}, as_json, render)


@app.command("show")
@guarded
def show_recipe(
    name: Annotated[str, typer.Argument(help="The recipe, for example psd-vit-b32-cc12m.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print a recipe as TOML, every value with its source; sent to a file, it is one for softclip train --config."""
    from softclip_cli import recipes

    document = {"name": name, **recipes.facts(name).model_dump(), "settings": recipes.read(name)}
    console.emit(document, as_json, lambda: typer.echo(recipes.text(name), nl=False))
