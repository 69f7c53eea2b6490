"""The options that the evaluation commands share, and what is made of them: how to embed, and the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softclip_cli import console

if TYPE_CHECKING:
    from softclip_cli.evaluation.embed import EmbedOptions
    from softclip_cli.model import Model

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="REF",
        help="Which model: a run, a checkpoint folder, ViT-B-32@WEIGHTS, ... [default: newest finished run]",
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="NAME|FOLDER",
        help="A name of `softclip datasets list`, a folder of class folders, or a corpus (CORPUS or CORPUS:TASK).",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="DIR", help="Folder that holds the datasets. [default: $SOFTCLIP_DATA, else ./data]"
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the result here. [default: evals/ of the model's run, if it is a run's]"
    ),
]
ClassNamesOption = Annotated[
    Path | None,
    typer.Option(
        "--classnames",
        metavar="FILE",
        help="Class names to use instead: one a line in label order, or FOLDER<TAB>NAME.",
    ),
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option(
        "--templates",
        metavar="FILE",
        help="Prompts to use instead, one a line, with {} for the class: a photo of a {}.",
    ),
]
SinglePromptOption = Annotated[bool, typer.Option("--single-prompt", help="Only the single prompt, no ensemble.")]
OutFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Write the results into this folder. [default: evals/ of the model's run]"
    ),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", min=1, help="Images a batch; does not change the result.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=0, help="Processes that decode images. [default: chosen]")
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", metavar="P", help="Arithmetic of the model: fp32 or bf16. Scores are fp32 always.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Where image features are kept for the next evaluation. [default: ~/.cache/softclip]",
    ),
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Compute all features anew and keep none.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]


def embed_options(
    batch_size: int | None, workers: int | None, precision: str, cache: Path | None, no_cache: bool
) -> EmbedOptions:
    """The embedding options of a command; the cache is opened unless it is unwanted."""
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation.cache import FeatureCache
    from softclip_cli.evaluation.embed import EmbedOptions

    if cache is not None and no_cache:
        raise UsageError("--cache and --no-cache exclude each other", hint="leave one away")
    return EmbedOptions(batch_size, workers, precision, None if no_cache else FeatureCache(cache))


def take_model(reference: str | None, device: str) -> Model:
    """Open the model, and say which one it is."""
    from softclip_cli.registry import open_model
    from softclip_cli.training.device import choose_device

    model = open_model(reference, device=choose_device(device))
    newest = "newest run " if reference is None else ""
    told = next((line for line in model.notes if line.startswith("model: ")), f"model: {model.name}")
    console.note(f"{told.replace('model: run ', f'model: {newest}') if newest else told} on {model.device}")
    return model
