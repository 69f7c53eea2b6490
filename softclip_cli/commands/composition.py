"""`softclip eval composition`: does the model tell a true caption from one that a small edit made false?"""

from __future__ import annotations

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
from softclip_cli.commands.evaluation_output import finish, interval, show_table, shown
from softclip_cli.console import guarded


@guarded
def composition(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            metavar="NAME|FOLDER",
            help="sugarcrepe, winoground, a folder of their files, or a corpus with hard negatives (the generated one).",
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="NAME", help="One of SugarCrepe's kinds of edit, such as swap_att. [default: all]"
        ),
    ] = None,
    model: ModelOption = None,
    data_root: RootOption = None,
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
    """Score true captions against captions that a small edit made false: SugarCrepe, Winoground, or a corpus's own.

    Example: softclip eval composition --dataset sugarcrepe
    """
    from softclip_cli.evaluation.composition import composition as evaluate
    from softclip_cli.evaluation.locate_captions import composition_set
    from softclip_cli.evaluation.pairs import paired_composition
    from softclip_cli.evaluation.sets import CompositionSet

    data = composition_set(dataset, split=split, root=data_root)
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    taken = take_model(model, device)
    with console.counting("embedding images, then texts") as progress:
        if isinstance(data, CompositionSet):
            document = evaluate(taken, data, options=options, progress=progress)
        else:
            document = paired_composition(taken, data, options=options, progress=progress)
    finish(document, out, as_json, render)


def render(document: dict[str, Any]) -> None:
    """One row a kind of edit, or Winoground's three scores."""
    metrics, details, data = document["metrics"], document["details"], document["dataset"]
    rows: list[tuple[str, ...]] = []
    columns: tuple[str, ...]
    if "group_score" in metrics:
        for tag in ("", *details["tags"]):
            for name, chance in details["chance"].items():
                entry = metrics[f"{name}_{tag}" if tag else name]
                words = (tag or "all", name.replace("_", " "))
                rows.append((*words, shown(entry), interval(entry), f"{100 * chance:.2f} %", f"{entry['n']:,}"))
        columns = ("examples", "score", ">value", ">95 % interval", ">chance", ">pairs")
    else:
        chance = f"{100 * details['chance']:.2f} %"
        for edit in details["edits"]:
            entry = metrics[f"accuracy_{edit}"]
            rows.append((edit, shown(entry), interval(entry), "", f"{entry['n']:,}"))
        for key, title in (("accuracy", "all"), ("mean_per_edit", "mean over edits")):
            if key in metrics:
                entry = metrics[key]
                rows.append(
                    (title, shown(entry), interval(entry), chance if key == "accuracy" else "", f"{entry['n']:,}")
                )
        columns = ("edit", ">true caption wins", ">95 % interval", ">chance", ">captions")
    show_table(f"{document['model']['name']} on {data['name']}, split {data['split']}", columns, rows)
    console.note(document["protocol"]["hit"])
