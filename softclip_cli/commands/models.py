"""`softclip models`: the common model registry."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.console import guarded

app = typer.Typer(no_args_is_help=True, help="List the models that a --model option takes, and look at one.")


@app.command("list")
@guarded
def list_models(
    pattern: Annotated[str, typer.Argument(help="Show only names that match, with * and ?: 'ViT-B*'.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Architectures, their published weights, and your own runs."""
    from fnmatch import fnmatch

    from softclip_cli import runs
    from softclip_cli.registry import own_architectures, working_imports

    with working_imports():
        import open_clip
    rows: list[dict[str, Any]] = [
        {"reference": name, "kind": "softclip architecture", "weights": []} for name in own_architectures()
    ]
    rows += [
        {"reference": name, "kind": "open_clip architecture", "weights": open_clip.list_pretrained_tags_by_model(name)}
        for name in open_clip.list_models()
    ]
    rows += [{"reference": f"run:{run.name}", "kind": f"run, {run.state}", "weights": []} for run in runs.list_runs()]
    rows = [row for row in rows if fnmatch(row["reference"].lower(), pattern.lower())]

    def render() -> None:
        shown = [(row["reference"], row["kind"], ", ".join(row["weights"])) for row in rows]
        console.table("", ("reference", "kind", "weights: reference@NAME"), shown)
        console.note(
            "also: ARCH@FILE, hf-hub:ORG/NAME, timm:NAME[@FILE]+hf:NAME, a run or checkpoint folder (docs/models.md)"
        )

    console.emit(rows, as_json, render)


@app.command()
@guarded
def show(
    reference: Annotated[
        str | None, typer.Argument(metavar="REF", help="A model reference; left out: the newest finished run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Load a model and show its towers, sizes and preprocessing."""
    from softclip_cli.registry import open_model

    facts = open_model(reference).summary()

    def render() -> None:
        for line in facts["notes"]:
            console.note(line)
        rows = [(k.replace("_", " "), f"{v:,}" if isinstance(v, int) else v) for k, v in facts.items() if k != "notes"]
        console.table("", ("", ""), rows)

    console.emit(facts, as_json, render)
