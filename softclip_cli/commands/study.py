"""`softclip study`: a grid of objectives, noise, data and seeds, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.termination import termination_as_interrupt
from softclip_cli.console import guarded
from softclip_cli.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from softclip_cli.study.settings import Study

app = typer.Typer(
    no_args_is_help=True, help="Run a grid of objectives, noise, data and seeds, and report what follows."
)

FileArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study's settings.", show_default=False)]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="CORPUS", help="Prepared corpus, in the place of the file's.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="One setting of the study, for example seeds=2. Repeatable."),
]
OnlyOption = Annotated[list[str] | None, typer.Option("--only", metavar="ROW", help="Only this row. Repeatable.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder of the results. Left out: results/NAME.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]


@app.command()
@guarded
def run(
    file: FileArgument,
    data: DataOption = None,
    out: OutOption = None,
    set_: SetOption = None,
    only: OnlyOption = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes, among which the cores are divided.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run and how long it takes, and stop.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run a study: what is finished already is not run again, so the same command goes on after any end."""
    study = _read(file, data, set_)
    folder = out or default_folder(study)
    if dry_run:
        _print_estimate(study, folder, workers, only or [], as_json)
        return
    from softclip_cli.console_study import StudyView
    from softclip_cli.study.runner import run_study

    with termination_as_interrupt(), StudyView() as view:
        outcome = run_study(study, folder, workers=workers, only=only or [], report=view)
    document = {
        "study": study.name,
        "out": str(folder),
        "table": str(outcome.table),
        "finished": outcome.finished,
        "ran": outcome.ran,
        "failed": outcome.failed,
        "chosen": [{**vars(at), "trial": trial, "choice": choice} for at, (trial, choice) in outcome.chosen.items()],
        "seconds": round(outcome.seconds, 1),
    }

    def render() -> None:
        rows = [
            ("results", outcome.table),
            ("finished", outcome.finished),
            ("run now", outcome.ran),
            ("failed", len(outcome.failed)),
        ]
        console.table(study.title or study.name, ("", ""), rows)
        console.note(f"next: softclip study report {folder}")

    console.emit(document, as_json, render)
    if outcome.failed:
        named = [f"{name}: {why}" for name, why in list(outcome.failed.items())[:10]]
        more = [f"... and {len(outcome.failed) - 10} more"] if len(outcome.failed) > 10 else []
        raise TrainingError(
            f"{len(outcome.failed)} runs of {study.name} failed; the others are finished",
            "\n       ".join([*named, *more]),
            f"{folder / 'failed'} says more of each; the same command tries them again",
        )


def default_folder(study: Study) -> Path:
    """Where a study's results are kept when nothing else is said."""
    return Path("results") / study.name


def _read(file: Path, data: str | None, assignments: list[str] | None) -> Study:
    from softclip_cli.config import parse_set
    from softclip_cli.study.settings import read_study

    over: dict[str, Any] = {"corpus": data} if data else {}
    study = read_study(file, parse_set(assignments or []), over)
    if not study.corpus and not study.generate:
        raise UsageError("the study names no corpus", f"{file} has neither corpus nor [generate]", "--data CORPUS")
    return study


def _print_estimate(study: Study, folder: Path, workers: int, only: list[str], as_json: bool) -> None:
    from softclip_cli.resources import duration
    from softclip_cli.study.runner import estimate

    found = estimate(study, folder, workers=workers, only=only)

    def render() -> None:
        how = "by the runs that are finished" if found.measured else "a guess: no run has finished"
        rows = [
            ("trials", found.trials),
            ("runs of the study", found.final),
            ("finished", found.finished),
            ("to run", len(found.pending)),
            (f"time on {workers} worker{'' if workers == 1 else 's'}", f"{duration(found.seconds)} ({how})"),
        ]
        console.table(study.title or study.name, ("", ""), rows)
        for name in found.pending:
            console.out.print(name, markup=False)

    console.emit({"study": study.name, "out": str(folder), "workers": workers, **asdict(found)}, as_json, render)


@app.command()
@guarded
def report(
    where: Annotated[
        Path, typer.Argument(metavar="STUDY.toml|DIR|FILE", help="A study file, or its results.", show_default=False)
    ],
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="What to report, such as test/rsum.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ROW", help="Row that the others are compared with.")
    ] = None,
    when: Annotated[
        str,
        typer.Option("--when", metavar="last|best", help="After the last step, or at the epoch that is best on val."),
    ] = "last",
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table as Markdown.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all numbers as CSV.")] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Draw noise, data and compute plots, PNG and SVG.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Means with intervals, and tests paired by seed against a baseline, corrected for their number."""
    from softclip_cli.study import report as reports

    if when not in ("last", "best"):
        raise UsageError(
            f"--when {when} is not known", "a run is reported at one of two moments", "--when last or --when best"
        )
    made = reports.open_report(where, metric=metric, baseline=baseline, when=when)
    written: list[Path] = []
    for path, text in ((markdown, reports.markdown), (csv, lambda report: reports.csv_text(report.lines))):
        if path is not None:
            _write(path, text(made))
            written.append(path)
    if plots is not None:
        written += reports.write_plots(made, plots)
    document = {
        "title": made.title,
        "metric": made.metric,
        "when": made.when,
        "baseline": made.baseline,
        "facts": made.facts,
        "lines": [{**line.as_dict(), "values": line.values} for line in made.lines],
        "files": [str(path) for path in written],
    }

    def render() -> None:
        console.table(made.title, reports.COLUMNS, [reports.cells(line, made) for line in made.lines])
        for fact in made.facts:
            console.note(fact)
        for path in written:
            console.note(f"wrote {path}")

    console.emit(document, as_json, render)


def _write(path: Path, text: str) -> None:
    from softclip_cli.errors import HostError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(f"{path} could not be written", str(error), "name another file") from error
