"""`softclip data download`: a list of web addresses in, tars that `softclip data prepare` reads out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.termination import termination_as_interrupt
from softclip_cli.console import guarded


@guarded
def download(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="LIST",
            help="A .tsv (CC3M, CC12M), .csv (Open Images), .jsonl or .parquet of addresses and captions.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the tars; an earlier run is gone on with.")],
    url_column: Annotated[str | None, typer.Option(metavar="NAME", help="Holds the addresses.")] = None,
    caption_column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Holds captions; give it once for each column.")
    ] = None,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Of a text list.")] = "utf-8",
    connections: Annotated[int, typer.Option(metavar="N", help="Addresses fetched at once; 16 of one server.")] = 64,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For one image.")] = 20.0,
    retries: Annotated[int, typer.Option(metavar="N", help="Further tries after what may pass.")] = 2,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also try again what failed in an earlier run, and may have passed.")
    ] = False,
    shard_size: Annotated[int, typer.Option(metavar="N", help="Addresses a tar.")] = 10_000,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many addresses of the list.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Fetch the images of a list of web addresses into tars, as img2dataset lays them out.

    What fails is counted by its cause. Stopped at any moment, the same command goes on from the last whole tar.
    Servers that say noai, noimageai, noindex or noimageindex are heeded.

    [bold]Examples[/bold]

    softclip data download Train_GCC-training.tsv cc3m-tars

    softclip data prepare cc3m-tars cc3m --short-side 256
    """
    from softclip_cli.data.download.fetch import FetchOptions
    from softclip_cli.data.download.run import DownloadOptions
    from softclip_cli.data.download.run import download as fetch_all

    options = DownloadOptions(
        url_column=url_column,
        caption_columns=tuple(caption_column or ()),
        encoding=encoding,
        shard_size=shard_size,
        limit=limit,
        retry_failed=retry_failed,
        fetch=FetchOptions(connections, timeout, retries),
    )
    with termination_as_interrupt(), console.counting("downloading") as progress:
        found = fetch_all(source, out, options, progress, console.note)
    console.emit(found, as_json, lambda: _show(found))


def _show(found: dict[str, Any]) -> None:
    share = found["downloaded"] / max(1, found["asked"])
    console.out.print(f"{found['downloaded']:,} of {found['asked']:,} addresses gave an image ({share:.1%})")
    if found["causes"]:
        console.table(
            "failed", ["cause", ">addresses"], [(cause, f"{count:,}") for cause, count in found["causes"].items()]
        )
    console.out.print(f"tars: {found['shards']:,} in {found['out']}, of which {found['before']:,} were there before")
    console.out.print(f"next: softclip data prepare {found['out']} CORPUS")
