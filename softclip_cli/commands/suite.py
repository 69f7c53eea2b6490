"""`softclip eval suite`: models on a list of datasets, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluation_options import (
    BatchOption,
    CacheOption,
    DebugOption,
    JsonOption,
    NoCacheOption,
    PrecisionOption,
    RootOption,
    WorkersOption,
    embed_options,
)
from softclip_cli.commands.evaluation_output import interval, renew_cards, shown
from softclip_cli.console import guarded

if TYPE_CHECKING:
    from softclip_cli.evaluation.suite import Outcome, Settings, Unit
    from softclip_cli.evaluation.suite_tasks import Tasks
    from softclip_cli.training.distributed import World

TITLES = {
    "top1": "top-1",
    "mean_per_class": "mean per class",
    "map11": "mAP (11 points)",
    "hit1": "flat hit@1",
    "image_to_text_r1": "R@1 image→text",
    "text_to_image_r1": "R@1 text→image",
}


@guarded
def suite(
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            metavar="NAME|A,B|FILE",
            help="clip27, imagenet-shifts, retrieval; datasets with commas; or a TOML file with datasets = [...].",
        ),
    ],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="REF", help="Which model. Repeatable. [default: newest finished run]"),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", metavar="A,B", help="zeroshot, probe, retrieval. [default: all that fit a dataset]"),
    ] = None,
    data_root: RootOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the results. [default: evals/ of the model's run, if it is a run's, else ./suite]",
        ),
    ] = None,
    resume: Annotated[
        str, typer.Option("--resume", metavar="auto|never", help="Keep the results that are there, or make them again.")
    ] = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="A dataset that is not on this machine is an error.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the shares that a probe holds out.")] = 0,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar="D", help="auto, cpu, cuda, mps; several share the work: cuda:0,cuda:1."),
    ] = "auto",
    precision: PrecisionOption = "fp32",
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Evaluate models on a list of datasets: zero-shot, linear probe and retrieval, in one table. Goes on where it stopped.

    Example: softclip eval suite --tasks clip27 --model run:A --model run:B
    """
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation.solver_arrays import allow_dispatch
    from softclip_cli.evaluation.suite_tasks import parse_protocols, parse_tasks

    if resume not in ("auto", "never"):
        raise UsageError(f"unusable --resume {resume!r}", "a suite takes auto or never", "--resume auto")
    wanted = parse_tasks(tasks)
    protocols = parse_protocols(protocol) if protocol is not None else wanted.protocols
    allow_dispatch()
    from softclip_cli.evaluation.suite import Settings, units_of
    from softclip_cli.training.distributed import joined, patient_gathering

    options = embed_options(batch_size, workers, precision, cache, no_cache)
    settings = Settings(protocols, data_root, out, resume == "auto", options, seed)
    units = units_of(list(dict.fromkeys(models)) if models else [None], wanted.datasets)
    with joined(device) as world, patient_gathering(world) as gather:
        outcomes = _run(units[world.rank :: world.size], settings, device, world)
        outcomes = [outcome for part in gather(outcomes) for outcome in part]
    if world.first:
        _report(wanted, sorted(outcomes, key=lambda outcome: outcome.unit.number), strict, as_json, debug)


def _run(units: Sequence[Unit], settings: Settings, device: str, world: World) -> list[Outcome]:
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation.suite import run_units
    from softclip_cli.evaluation.suite_workers import in_processes
    from softclip_cli.training.device import choose_device

    devices = [choose_device(name.strip()) for name in device.split(",")]
    if len(devices) > 1 and world.size > 1:
        raise UsageError(
            "several devices do not go with torchrun", "each of its processes has a device of its own", "--device auto"
        )
    if len(devices) > 1:
        return in_processes(units, settings, [str(one) for one in devices], console.note)
    who = f"rank {world.rank}: " if world.size > 1 else ""
    with console.counting(f"{who}embedding or fitting") as progress:
        return list(
            run_units(units, settings, devices[0], say=lambda text: console.note(f"{who}{text}"), progress=progress)
        )


def _report(wanted: Tasks, outcomes: Sequence[Outcome], strict: bool, as_json: bool, debug: bool) -> None:
    """The table, then what is missing, left out or failed, each together; and the exit code."""
    from softclip_cli.errors import DataError, SoftclipError

    by_state: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_state.setdefault(outcome.state, []).append(outcome)
    results = [outcome for outcome in outcomes if outcome.document is not None]
    missing = list(dict.fromkeys(outcome.unit.dataset for outcome in by_state.get("missing", [])))
    failed, left_out = by_state.get("failed", []), by_state.get("left out", [])
    document = {
        "suite": wanted.name,
        "datasets": list(wanted.datasets),
        "results": [outcome.document for outcome in results],
        "files": [outcome.file for outcome in results],
        "kept": len(by_state.get("kept", [])),
        "missing": missing,
        "not_in_catalogue": list(wanted.unknown),
        "left_out": [_told(outcome) for outcome in left_out],
        "failed": [_told(outcome) for outcome in failed],
    }
    console.emit(document, as_json, lambda: render(results))
    renew_cards(Path(outcome.file) for outcome in results)
    kept = document["kept"]
    if kept:
        console.note(f"{kept} of {len(results)} results were there already (--resume never makes them again)")
    for reason in dict.fromkeys(
        f"left out: {outcome.unit.dataset}{f', {outcome.protocol}' if outcome.protocol else ''}: {outcome.what}"
        for outcome in left_out
    ):
        console.note(reason)
    if wanted.unknown:
        console.note(f"in {wanted.name}, but not in the catalogue: {', '.join(wanted.unknown)}")
    if missing and results:
        console.warn(
            f"{len(missing)} of {len(wanted.datasets)} datasets are not on this machine: {', '.join(missing)}"
            " (softclip datasets show NAME tells where to get one)"
        )
    for outcome in failed:
        where = f"{outcome.unit.model or 'newest run'}, {outcome.unit.dataset}, {outcome.protocol}".rstrip(", ")
        bug = outcome.exit_code == 1 and not debug
        why = outcome.why.strip().splitlines()[-1] if bug and outcome.why else outcome.why
        console.fail(SoftclipError(f"{where}: {outcome.what}", why, outcome.hint))
    if failed:
        raise typer.Exit(failed[0].exit_code)
    if missing and (strict or not results):
        first = by_state["missing"][0]
        raise DataError(
            f"{len(missing)} of {len(wanted.datasets)} datasets are not on this machine: {', '.join(missing)}"
            if len(missing) > 1
            else first.what,
            first.why,
            first.hint,
        )


def _told(outcome: Outcome) -> dict[str, Any]:
    return {
        "model": outcome.unit.model,
        "dataset": outcome.unit.dataset,
        "protocol": outcome.protocol,
        "what": outcome.what,
        "why": outcome.why,
    }


def headline_metrics(document: dict[str, Any]) -> list[str]:
    """The metrics that stand for a result in the table: the catalogue's, or the usual ones of its task."""
    from softclip_cli.evaluation.catalogue import catalogue

    metrics = document["metrics"]
    if document["task"] == "retrieval":
        return ["image_to_text_r1", "text_to_image_r1"]
    entry = catalogue().get(document["dataset"]["name"])
    usual = ["top1", "map11", "hit1"]
    if entry is not None and entry.metric == "hit_at_k":
        usual = ["hit1"]
    elif entry is not None:
        usual = [entry.metric, *usual]
    return [next(name for name in usual if name in metrics)]


def render(results: Sequence[Outcome]) -> None:
    """A row a dataset, protocol and metric; a column a model; below, the means over what all models have."""
    if not results:
        return
    models = list(dict.fromkeys(outcome.unit.model for outcome in results))
    names = {outcome.unit.model: str(_document(outcome)["model"]["name"]) for outcome in results}
    if len(set(names.values())) < len(names):
        names = {model: model or names[model] for model in names}
    table: dict[tuple[str, str, str], dict[str | None, dict[str, Any]]] = {}
    for outcome in results:
        document = _document(outcome)
        for metric in headline_metrics(document):
            row = table.setdefault((outcome.unit.dataset, outcome.protocol, metric), {})
            row[outcome.unit.model] = document["metrics"][metric]
    columns = ["dataset", "protocol", "metric"]
    for model in models:
        columns += [f">{names[model]}", ">95 % interval" + " " * models.index(model)]
    rows = []
    for (dataset, protocol, metric), cells in table.items():
        line = [dataset, protocol, TITLES.get(metric, metric)]
        for model in models:
            line += [shown(cells[model]), interval(cells[model])] if model in cells else ["", ""]
        rows.append(line)
    for protocol in dict.fromkeys(key[1] for key in table):
        whole = [cells for key, cells in table.items() if key[1] == protocol and len(cells) == len(models)]
        if protocol == "retrieval" or len(whole) < 2:
            continue
        line = [f"mean of {len(whole)}", protocol, ""]
        for model in models:
            line += [f"{100 * sum(cells[model]['value'] for cells in whole) / len(whole):.2f} %", ""]
        rows.append(line)
    console.table("", columns, rows)


def _document(outcome: Outcome) -> dict[str, Any]:
    assert outcome.document is not None
    return outcome.document
