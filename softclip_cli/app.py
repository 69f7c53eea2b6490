"""The Typer app: mounts the commands. Nothing heavy is imported here, so that `--help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from softclip_cli import __version__

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


def main() -> None:
    """The console script."""
    app()
