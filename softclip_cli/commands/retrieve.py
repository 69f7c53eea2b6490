"""`softclip retrieve`: image-text retrieval in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluation_options import (
    BatchOption,
    CacheOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    NoCacheOption,
    OutOption,
    PrecisionOption,
    RootOption,
    WorkersOption,
    embed_options,
    take_model,
)
from softclip_cli.commands.evaluation_output import finish, headline, interval, show_table, shown
from softclip_cli.console import guarded


@guarded
def retrieve(
    split: Annotated[
        str,
        typer.Option(
            "--split",
            "--dataset",
            metavar="NAME|FOLDER",
            help="Test set: coco-5k, flickr30k-1k, flickr8k, a folder with captions, or CORPUS or CORPUS:SPLIT.",
        ),
    ],
    model: ModelOption = None,
    data_root: RootOption = None,
    out: OutOption = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--save-embeddings",
            metavar="DIR",
            help="Write the embeddings into a new folder besides: .npy arrays, and tables of keys and texts.",
        ),
    ] = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find captions by image and images by caption: R@1, R@5, R@10 and the median rank, both ways.

    Example: softclip retrieve --split coco-5k
    """
    from softclip_cli.evaluation.locate_captions import retrieval_set
    from softclip_cli.evaluation.retrieval import embed_pairs, retrieval
    from softclip_cli.evaluation.saved_embeddings import require_free, save_embeddings

    if embeddings is not None:
        require_free(embeddings)
    data = retrieval_set(split, root=data_root)
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    taken = take_model(model, device)
    with console.counting("embedding images, then texts") as progress:
        embedded = embed_pairs(taken, data, options=options, progress=progress)
        document = retrieval(taken, data, options=options, embedded=embedded)
    finish(document, out, as_json, render)
    if embeddings is not None:
        facts = {name: document[name] for name in ("dataset", "model", "versions")}
        console.note(f"embeddings: {save_embeddings(embedded, data, embeddings, facts)}")


def render(document: dict[str, Any]) -> None:
    """Both directions side by side."""
    metrics = document["metrics"]
    rows = []
    for name, title in (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10"), ("median_rank", "median rank")):
        entries = [metrics[f"{direction}_{name}"] for direction in ("image_to_text", "text_to_image")]
        rows.append((title, *(cell for entry in entries for cell in (shown(entry), interval(entry)))))
    rows.append(("rsum (all six added)", shown(metrics["rsum"]), interval(metrics["rsum"]), "", ""))
    columns = ("metric", ">image→text", ">95 % interval", ">text→image", ">95 % interval ")
    show_table(headline(document), columns, rows)
    repeated = document["details"]["repeated_texts"]
    if repeated:
        console.note(f"{repeated:,} texts repeat another one; equal scores count as if in random order")
