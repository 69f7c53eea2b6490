"""`softclip probe`: a linear classifier on frozen features."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluation_options import (
    BatchOption,
    CacheOption,
    DatasetOption,
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
from softclip_cli.commands.values import parse_counts
from softclip_cli.console import guarded


@guarded
def probe(
    dataset: DatasetOption,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="Split to test on. [default: the one that papers report]"),
    ] = None,
    train_split: Annotated[
        str | None,
        typer.Option(
            "--train-split",
            metavar="NAME",
            help="Split to fit on. [default: train; without splits, all but a fifth that is tested on]",
        ),
    ] = None,
    validation_split: Annotated[
        str | None,
        typer.Option(
            "--val-split",
            metavar="NAME",
            help="Split to choose the regularisation on. [default: the official one, else a fifth of train]",
        ),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            "--shots", metavar="K,...", help="Few-shot: fit on K images a class, mean over five draws: 1,2,4,8,16."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of held-out shares and of the first few-shot draw.")
    ] = 0,
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
    """Fit logistic regression on the image features before the projection, and test it: how good are the features?

    Example: softclip probe --dataset cifar10
    """
    from softclip_cli.evaluation.solver_arrays import allow_dispatch

    wanted = None if shots is None else parse_counts("--shots", shots)
    allow_dispatch()
    from softclip_cli.evaluation.few_shot import SEEDS
    from softclip_cli.evaluation.locate_probe import probe_sets
    from softclip_cli.evaluation.probe import probe as evaluate

    sets = probe_sets(
        dataset, split=split, train_split=train_split, validation_split=validation_split, root=data_root, seed=seed
    )
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    taken = take_model(model, device)
    with console.counting("embedding images, then fitting") as progress:
        document = evaluate(
            taken,
            sets.train,
            sets.test,
            validation=sets.validation,
            options=options,
            shots=wanted,
            seeds=[seed + number for number in range(len(SEEDS))],
            seed=seed,
            notes=sets.notes,
            progress=progress,
        )
    finish(document, out, as_json, render)


def render(document: dict[str, Any]) -> None:
    """Accuracy, and how the regularisation was chosen."""
    metrics, details, protocol = document["metrics"], document["details"], document["protocol"]
    titles = {"top1": "top-1", "mean_per_class": "mean per class"}
    several = protocol["shots"] if isinstance(protocol.get("shots"), list) else []
    for count in several:
        titles |= {f"{name}_shots_{count}": f"{words}, {count} a class" for name, words in list(titles.items())[:2]}
    found = [name for name in titles if name in metrics]
    rows = [(titles[name], shown(metrics[name]), interval(metrics[name])) for name in found]
    rows.append(("chance", f"{100 * details['chance']:.2f} %", ""))
    show_table(headline(document), ("metric", ">linear probe", ">95 % interval"), rows)
    console.note(f"fitted on {protocol['train']['size']:,} images of {protocol['train']['split']}")
    if "search" in details:
        console.note(
            f"C = {details['C']:.4g} (λ = {details['lambda']:.4g}), the best of {len(details['search'])} tried on "
            f"{protocol['validation']}: {100 * details['validation_accuracy']:.2f} % there"
        )
    else:
        console.note(
            f"{', '.join(map(str, several or [protocol['shots']]))} images a class, "
            f"mean over the draws {', '.join(map(str, protocol['seeds']))}"
        )
    console.note(f"scikit-learn with {details['fitted_with']}")
    if details["fits_without_convergence"]:
        console.note(
            f"{details['fits_without_convergence']} fits reached the limit of iterations before they converged"
        )
    if details["test_images_also_in_train"]:
        console.warn(f"{details['test_images_also_in_train']:,} test images are training images too")
