"""`softclip data generate`: draw a corpus to train and evaluate on, with noise whose truth is known."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from softclip_cli.console import counting, emit, guarded, out, table


@guarded
def generate(
    folder: Annotated[Path, Argument(metavar="OUT", help="The folder to make.", show_default=False)],
    pairs: Annotated[int, Option(help="Training images to draw, each with five captions.")] = 10_000,
    noise: Annotated[
        float,
        Option(help="Share of training pairs with bad captions: of these 60 % mismatched, 20 % vague, 20 % partial."),
    ] = 0.3,
    seed: Annotated[int, Option(help="The same seed and options give the same bytes.")] = 0,
    image_size: Annotated[int, Option(help="Side of the pictures in pixels.")] = 64,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a corpus that is already there.")] = False,
    workers: Annotated[
        int | None, Option("--workers", "-j", help="Processes that draw.", show_default="one a core")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print the result as one JSON document.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Draw a corpus of simple scenes ("a red star on the left") with captions, some of them wrong on purpose.

    It needs no download: training pairs with noise whose truth is stored with every pair, a clean validation split, and
    evaluation splits for zero-shot classification, linear probe, retrieval, distribution shift and composition.
    """
    from softclip_cli.data.generated.generate import generate_corpus

    started = time.perf_counter()
    with counting("drawing") as progress:
        corpus = generate_corpus(
            folder,
            pairs=pairs,
            noise=noise,
            seed=seed,
            image_size=image_size,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        )
    document = {
        "corpus": str(folder),
        "splits": {name: split["rows"] for name, split in corpus.info["splits"].items()},
        "noise": corpus.info["noise"],
        "classes": {name: len(classes) for name, classes in corpus.info["classes"].items()},
        "fingerprint": corpus.fingerprint,
        "seconds": round(time.perf_counter() - started, 2),
    }

    def render() -> None:
        table("", ["split", ">images"], [(name, split["rows"]) for name, split in corpus.info["splits"].items()])
        counts = ", ".join(f"{count} {name}" for name, count in corpus.info["noise"].items())
        out.print(f"training pairs: {counts}")
        out.print(
            f"corpus: {folder}, fingerprint {corpus.fingerprint[:16]}, made in {document['seconds']} s", markup=False
        )

    emit(document, as_json, render)
