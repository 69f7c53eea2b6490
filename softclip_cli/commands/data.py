"""`softclip data`: corpora in, checked and clean; one module a subcommand."""

from __future__ import annotations

import typer

from softclip_cli.commands import data_check, data_download, data_export, data_inspect, data_prepare, generate

app = typer.Typer(
    name="data",
    help="Prepare, inspect, export and generate corpora of images with captions.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(data_prepare.prepare)
app.command()(data_inspect.inspect)
app.command()(data_check.check)
app.command()(data_download.download)
app.command()(data_export.export)
app.command()(generate.generate)
