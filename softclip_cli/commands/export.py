"""`softclip export`: a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.termination import termination_as_interrupt
from softclip_cli.console import guarded

LOADED_BY = {
    "open_clip": "open_clip.create_model_and_transforms({name!r})",
    "hf": "transformers.CLIPModel.from_pretrained({path!r})",
    "onnx": "onnxruntime.InferenceSession({path!r} + '/image.onnx')",
}


@guarded
def export(
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="open_clip, hf (transformers) or onnx.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make.")],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="REF", help="A model reference; left out: the newest finished run."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write a model for open_clip, transformers or ONNX runtimes, with a model card.

    The folder appears only after the written model, loaded by the program that it is for, has given the embeddings of its source.

    [bold]Examples[/bold]

    softclip export --model run:NAME --to open_clip --out model

    softclip export --model run:NAME@ema --to onnx --out model-onnx
    """
    from softclip_cli.export import export as write

    with termination_as_interrupt():
        document = write(model, out, to, overwrite=overwrite, say=console.note)
    console.emit({"out": str(out), **document}, as_json, lambda: _show(out, document))


def _show(out: Path, document: dict[str, Any]) -> None:
    parity = document["parity"]
    parts = [(part, parity[part]) for part in ("image", "text")]
    parts += [
        (f"{part}, by the folder's own preprocessing", entry) for part, entry in parity["own_preprocessing"].items()
    ]
    rows = [(part, f"{entry['max_abs_difference']:.2g}", f"{entry['min_cosine']:.8f}") for part, entry in parts]
    console.out.print(f"{document['model']['name']} as {document['to']} in {out}", markup=False)
    console.table("", ["embeddings", ">largest difference", ">smallest cosine"], rows)
    console.note(f"compared on {parity['pairs']} pictures and captions; tolerance {parity['tolerance']:g}")
    how = LOADED_BY[document["to"]].format(path=str(out), name=f"local-dir:{out}")
    console.out.print(f"load it: {how}   ·   {out}/README.md tells more", markup=False)
