"""`softclip data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.console import guarded


@guarded
def check(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A folder that `softclip data prepare` made.")],
    model: Annotated[str, typer.Option("--model", metavar="REF", help="The model that it is to train.")] = "tiny",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=2, help="Pairs a step. Left out: 256, on a CPU 64.")
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="The split to train on.")] = "train",
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.05, help="For each of about ten measurements.")
    ] = 3.0,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=0, help="Decoding processes. Left out: as training would choose."),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Measure reading, decoding and the training step, and say whether the data will starve the trainer, and what to do.

    Measured for about half a minute, on this machine, as it is used at the moment.
    The first epoch is what is measured: images that training would keep in memory are decoded anew.

    Example: softclip data check corpus --model ViT-B-32 --batch-size 512
    """
    from softclip_cli.config import build
    from softclip_cli.data.corpus import Corpus
    from softclip_cli.training.data_check import check_data
    from softclip_cli.training.device import choose_device
    from softclip_cli.training.settings import TrainSettings

    opened = Corpus.open(corpus)
    if batch_size is None:
        batch_size = 64 if choose_device(device).type == "cpu" else 256
    data: dict[str, Any] = {"corpus": str(corpus), "split": split, "batch_size": batch_size, "workers": workers}
    settings = build(TrainSettings, {"model": {"reference": model}, "data": data, "device": device})
    document = check_data(
        opened, settings, seconds=seconds, progress=lambda what: console.note(f"measuring: {what} ...")
    )
    console.emit(document, as_json, lambda: show(document))


def show(document: dict[str, Any]) -> None:
    """The rates, one below the other, and the verdict."""
    image, reading, workers = document["image"], document["reading"], document["workers"]
    rows = [
        (f"read, {name}", _rate(found), f"{found['bytes_per_second'] / 1e6:,.0f} MB/s, {_whence(found)}")
        for name, found in (("random order", reading["random"]), ("in order", reading["sequential"]))
    ]
    rows.append(("decode and crop, one core", f"{document['decoding']['samples_per_second_and_core']:,.0f}", ""))
    for entry in document["loading"]:
        count = entry["workers"]
        title = (
            f"whole batches, {count} process{'' if count == 1 else 'es'}"
            if count
            else "whole batches, in the trainer's process"
        )
        chosen = f"what training would use: {workers['reason']}" if count == workers["count"] else ""
        rows.append((title, _rate(entry), chosen))
    rows.append(("training step, never waiting", _rate(document["step"]), ""))
    rows.append(("training with this data", _rate(document["training"]), f"{workers['count']} decoding processes"))
    console.table(
        f"{document['corpus']}, {document['split']}: {document['images']:,} images, typically {image['width']}×{image['height']}, "
        f"{image['bytes'] / 1e3:,.0f} kB",
        ["", ">samples/s", ""],
        rows,
    )
    console.out.print(
        f"{document['model']} at {document['image_size']} px, batch {document['batch_size']}, {document['device']}, "
        f"{document['precision']}, {document['cores']} cores"
    )
    verdict = document["verdict"]
    console.out.print(f"[bold {'red' if verdict['starves'] else 'green'}]{verdict['text']}[/]")
    for line in verdict["advice"]:
        console.out.print(f"  → {line}", markup=False)


def _rate(entry: dict[str, Any]) -> str:
    return f"{entry['samples_per_second']:,.0f}"


def _whence(reading: dict[str, Any]) -> str:
    share = reading["from_storage"]
    if share is None:
        return "perhaps from memory"
    return f"{share:.0%} from the disk" if share > 0.05 else "from memory: the disk was not measured"
