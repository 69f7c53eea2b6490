"""`softclip eval alignment`: does the model agree with people who rated pairs?"""

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
from softclip_cli.commands.evaluation_output import finish, show_table
from softclip_cli.console import guarded


@guarded
def alignment(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            metavar="NAME|FILE",
            help="flickr8k-expert, flickr8k-cf, or a table of your own: image, caption, and a column of numbers a rater.",
        ),
    ],
    model: ModelOption = None,
    data_root: RootOption = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Folder of a table's images. [default: the table's own]"),
    ] = None,
    describes: Annotated[
        float | None,
        typer.Option(
            "--describes",
            metavar="X",
            help="From which median rating on a caption describes the image. [default: the catalogue's, or the highest]",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            metavar="NAME",
            help="Also judge the soft targets that this objective would make of the scores.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="One choice of it, such as objective.teacher_scale=2. Repeatable."),
    ] = None,
    out: OutOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare the model's scores with human ratings of image-text pairs: Kendall's τ, and AUROC for "describes it".

    Example: softclip eval alignment --dataset flickr8k-expert --objective psd
    """
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation.alignment import alignment as evaluate
    from softclip_cli.evaluation.locate_captions import rated_set

    if set_ and objective is None:
        raise UsageError("--set needs --objective", "it sets a choice of an objective", "add --objective psd")
    choice = None if objective is None else _choice(objective, set_ or [])
    data = rated_set(dataset, root=data_root, images=images, describes=describes)
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    taken = take_model(model, device)
    with console.counting("embedding images, then texts") as progress:
        document = evaluate(taken, data, objective=choice, options=options, progress=progress)
    finish(document, out, as_json, render)


def _choice(name: str, assignments: list[str]) -> Any:
    """The objective's choices. One with a frozen teacher gets the evaluated model for it."""
    from softclip_cli.config import build, parse_set
    from softclip_cli.objectives.assignment import check_assigns
    from softclip_cli.objectives.settings import presets, resolve
    from softclip_cli.training.settings import TrainSettings

    own: dict[str, Any] = {"name": name}
    if name in presets() and presets()[name].choices.get("teacher", ("",))[0] == "frozen":
        own["teacher_model"] = "the evaluated model"
    choice = resolve(build(TrainSettings, parse_set(assignments), {"objective": own}).objective)
    check_assigns(choice)
    return choice


def render(document: dict[str, Any]) -> None:
    """One row a kind of score."""
    metrics, protocol = document["metrics"], document["protocol"]
    kinds = [("cosine", "")]
    if "objective" in protocol:
        name = protocol["objective"]["name"]
        kinds += [("cosine, pairs with a target", "same_pairs_")] if "same_pairs_kendall_tau" in metrics else []
        kinds += [(f"target of {name}, image→text", "target_image_to_text_")]
        kinds += [(f"target of {name}, text→image", "target_text_to_image_")]
    rows = []
    for title, prefix in kinds:
        cells = []
        for key in ("kendall_tau", "auroc"):
            entry = metrics.get(prefix + key)
            cells += [f"{entry['value']:.3f}", f"{entry['low']:.3f} to {entry['high']:.3f}"] if entry else ["–", ""]
        rows.append((title, *cells))
    data = document["dataset"]
    columns = ("score", f">Kendall {protocol['kendall'].partition(' ')[0].replace('tau', 'τ')}", ">95 % interval")
    title = f"{document['model']['name']} on {data['name']}: {data['gallery']}"
    show_table(title, (*columns, ">AUROC", ">95 % interval "), rows)
    details = document["details"]
    console.note(f"describes: {protocol['describes']} ({details['described']:,} of {details['pairs']:,} pairs)")
