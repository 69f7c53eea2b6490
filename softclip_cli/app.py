"""The Typer app: mounts the commands. Nothing heavy is imported here, so that `--help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from softclip_cli import __version__
from softclip_cli.commands import (
    alignment,
    audit,
    compare,
    composition,
    data,
    datasets,
    demo,
    doctor,
    evaluate,
    export,
    models,
    objectives,
    probe,
    recipes,
    report,
    retrieve,
    robustness,
    runs,
    study,
    suite,
    train,
)

app = typer.Typer(
    name="softclip",
    help="Train CLIP-style models on noisy image-text pairs with soft targets, and evaluate them.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def print_version(wanted: bool) -> None:
    """Print the version and leave, when `--version` is given."""
    if wanted:
        typer.echo(f"softclip {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Train CLIP-style models on noisy image-text pairs with soft targets, and evaluate them."""


app.command()(demo.demo)
app.command()(train.train)
app.command()(export.export)
evaluate.app.command()(alignment.alignment)
evaluate.app.command()(robustness.robustness)
evaluate.app.command()(composition.composition)
evaluate.app.command()(suite.suite)
app.add_typer(evaluate.app, name="eval")
app.command()(probe.probe)
app.command()(retrieve.retrieve)
app.command()(audit.audit)
app.add_typer(data.app, name="data")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
app.add_typer(objectives.app, name="objectives")
app.add_typer(recipes.app, name="recipes")
app.add_typer(runs.app, name="runs")
app.add_typer(study.app, name="study")
app.command()(report.report)
app.command()(compare.compare)
app.command()(doctor.doctor)


def main() -> None:
    """The console script."""
    app()
