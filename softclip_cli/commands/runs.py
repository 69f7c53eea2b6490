"""`softclip runs`: list, show and compare training runs, and write their model cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.console import guarded

if TYPE_CHECKING:
    from softclip_cli.reports.tables import MetricRow
    from softclip_cli.runs import Run

app = typer.Typer(no_args_is_help=True, help="List, show and compare training runs; write their model cards.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]
Everything = Annotated[bool, typer.Option("--all", help="Show every metric, not only the main ones.")]


@app.command("list")
@guarded
def list_command(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the runs in runs/ (or $SOFTCLIP_RUNS), the newest first."""
    from softclip_cli.runs import list_runs, runs_dir

    entries = [_entry(run) for run in list_runs()]

    def render() -> None:
        if not entries:
            console.note(
                f"no runs in {runs_dir()}/ yet: softclip train makes one ($SOFTCLIP_RUNS names another folder)"
            )
            return
        columns = ("name", "state", "objective", "model", "corpus", ">steps", "best", ">age")
        console.table("", columns, [_cells(entry) for entry in entries])

    console.emit(entries, as_json, render)


@app.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run in runs/, or the path of a run folder.")],
    everything: Everything = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show one run: what was run, how far it came, its checkpoints and its results."""
    from softclip_cli.reports.facts import run_facts
    from softclip_cli.reports.run_diff import last_evaluations, shown_metrics
    from softclip_cli.reports.tables import metric_rows
    from softclip_cli.runs import find_run

    run = find_run(name)
    facts = run_facts(run)
    rows = metric_rows({run.name: run.evals or last_evaluations(run)})
    document = {
        **_entry(run),
        "facts": {fact.label: fact.value for fact in facts},
        "config": run.config,
        "data": run.data,
        "env": run.env,
        "status": run.status,
        "checkpoints": {"steps": run.steps, "best": run.best},
        "metrics": [row.as_dict([run.name]) for row in rows],
    }

    def render() -> None:
        console.table(run.name, ("", ""), [(fact.label, fact.value) for fact in facts])
        steps = ", ".join(f"{step:,}" + (" (best)" if step == run.best.get("step") else "") for step in run.steps)
        console.out.print(f"checkpoints: {steps or 'none'}", markup=False)
        _print_metrics(["value"], shown_metrics(rows, everything), len(rows))

    console.emit(document, as_json, render)


@app.command()
@guarded
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A run: name or folder.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another run: name or folder.")],
    everything: Everything = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what differs between two runs: settings, data, batch, precision, versions and results."""
    from softclip_cli.reports.run_diff import diff_runs, final_metrics, run_names, shown_metrics
    from softclip_cli.runs import find_run

    runs = (find_run(first), find_run(second))
    document = diff_runs(*runs)
    names = run_names(*runs)

    def render() -> None:
        columns = ("", *(f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)))
        rows = [
            (("  " if row["same"] else "≠ ") + row["name"], *map(_plain, row["values"])) for row in document["decisive"]
        ]
        console.table("what decides whether A and B are comparable (≠: differs)", columns, rows)
        for section in ("settings", "versions", "environment"):
            if document[section]:
                different = [(row["name"], *map(_plain, row["values"])) for row in document[section]]
                console.table(f"different {section}", columns, different)
            else:
                console.out.print(f"{section}: the same", markup=False)
        metrics = final_metrics(*runs)
        _print_metrics(["A", "B"], shown_metrics(metrics, everything), len(metrics))

    console.emit(document, as_json, render)


@app.command()
@guarded
def card(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A run in runs/, or the path of a run folder.")],
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="The model's licence as the Hub names it, such as mit. Stays in the card."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over what was changed by hand in softclip's part of the card.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's model card (README.md) anew, from what its folder says now; evaluations do so by themselves."""
    from softclip_cli.reports.model_card import write_model_card
    from softclip_cli.runs import find_run

    run = find_run(name)
    path = write_model_card(run, license_name=license_name, overwrite=overwrite)
    document = {"run": run.name, "card": str(path), "evaluations": len(run.evals)}
    console.emit(document, as_json, lambda: console.out.print(f"model card: {path}", markup=False))


def _entry(run: Run) -> dict[str, Any]:
    """One run as `softclip runs list --json` tells it; a damaged run is told as such."""
    from softclip_cli.errors import ModelError
    from softclip_cli.reports.facts import best_metric

    try:
        best = best_metric(run)
        updated = run.updated
        return {
            "name": run.name,
            "path": str(run.path),
            "state": run.state,
            "silent_for": run.silent_for,
            "objective": run.objective,
            "model": run.model,
            "corpus": run.corpus,
            "step": run.status.get("step"),
            "steps": run.status.get("steps"),
            "best": None if best is None else {"metric": best[0], "value": best[1]},
            "updated": None if updated is None else updated.isoformat(),
        }
    except ModelError as error:
        return {"name": run.name, "path": str(run.path), "state": "damaged", "problem": f"{error.what}: {error.why}"}


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    from datetime import UTC, datetime

    from softclip_cli.reports.facts import ago, number
    from softclip_cli.runs import parse_time

    if "problem" in entry:
        return (entry["name"], f"damaged: {entry['problem']}", "", "", "", "", "", "")
    state = f"{entry['state']}, silent" if entry["silent_for"] else entry["state"]
    best = entry["best"]
    updated = parse_time(entry["updated"])
    age = ago((datetime.now(UTC) - updated).total_seconds()) if updated else ""
    step, last = number(entry["step"]), number(entry["steps"])
    steps = step if step == last else f"{step}/{last}"
    shown = "" if best is None else f"{best['metric']} {best['value']:.4g}"
    return (entry["name"], state, entry["objective"], entry["model"], entry["corpus"], steps, shown, age)


def _print_metrics(names: list[str], rows: list[MetricRow], count: int) -> None:
    from softclip_cli.reports.tables import text_table

    if not rows:
        console.out.print(
            "no evaluation yet: softclip eval, softclip probe and softclip retrieve make them", markup=False
        )
        return
    columns, lines = text_table(rows, names)
    explained = "; *: better, the intervals do not overlap" if any(row.better is not None for row in rows) else ""
    console.table(f"results, with 95 % intervals{explained}", columns, lines)
    for remark in dict.fromkeys(row.note for row in rows if row.note):
        console.note(f"not all numbers are comparable: {remark}")
    if count > len(rows):
        more = count - len(rows)
        console.note(f"{more} more {'metric' if more == 1 else 'metrics'}: --all")


def _plain(value: Any) -> str:
    from softclip_cli.reports.facts import number, short_hash

    if isinstance(value, str) and len(value) == 64:  # a fingerprint
        return short_hash(value)
    return "–" if value is None else number(value)
