"""`softclip data export`: a corpus as other tools read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.termination import termination_as_interrupt
from softclip_cli.console import guarded


@guarded
def export(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A folder that `softclip data prepare` made.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="webdataset (tars) or parquet (the Hub's layout).")],
    split: Annotated[
        list[str] | None, typer.Option("--split", metavar="NAME", help="Only this split. Repeatable; else all.")
    ] = None,
    each_caption: Annotated[
        bool,
        typer.Option(
            "--each-caption", help="Tars: a sample for each caption of an image, for trainers that read one a sample."
        ),
    ] = False,
    shard_size: Annotated[int, typer.Option("--shard-size", metavar="MB", help="Largest size of a file.")] = 256,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write a corpus for other tools: WebDataset tars, which open_clip trains on, or Parquet, which the Hub shows.

    The same corpus gives the same bytes.

    [bold]Examples[/bold]

    softclip data export corpus tars --to webdataset

    softclip data export corpus hub --to parquet --split train --split val
    """
    from softclip_cli.data.corpus import Corpus
    from softclip_cli.data.export import export as write

    with termination_as_interrupt(), console.counting("writing") as progress:
        document = write(
            Corpus.open(corpus),
            out,
            to,
            splits=split or (),
            each_caption=each_caption,
            shard_bytes=shard_size << 20,
            overwrite=overwrite,
            progress=progress,
        )
    console.emit({"out": str(out), **document}, as_json, lambda: _show_exported(out, document))


def _show_exported(out: Path, document: dict[str, Any]) -> None:
    splits: dict[str, dict[str, Any]] = document["splits"]
    rows = [
        (
            name,
            f"{split['rows']:,}",
            f"{split.get('samples', split['rows']):,}",
            split["files"],
            f"{split['bytes'] / 1e6:,.1f}",
        )
        for name, split in splits.items()
    ]
    console.table(f"{document['to']} in {out}", ["split", ">images", ">samples", ">files", ">MB"], rows)
    converted = sum(split.get("converted", 0) for split in splits.values())
    if converted:
        console.out.print(f"images of kinds that open_clip does not read, now PNG: {converted:,}")
    bare = sum(split.get("without_caption", 0) for split in splits.values())
    if bare:
        console.out.print(f"images without a caption, which have no .txt: {bare:,}")
    name, first = next(iter(splits.items()))
    if document["to"] == "parquet":
        console.out.print(f"next: softclip train --data {out}   ·   datasets.load_dataset({str(out)!r})", markup=False)
    else:
        last = f"{first['files'] - 1:05d}"
        tars = f"{out}/{name}/{{00000..{last}}}.tar" if first["files"] > 1 else f"{out}/{name}/00000.tar"
        console.out.print(f"next: softclip train --data '{tars}'   ·   open_clip: --train-data '{tars}'", markup=False)
