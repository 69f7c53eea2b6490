"""`softclip demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from softclip_cli import console
from softclip_cli.console import guarded


@guarded
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the corpus, the two runs and the page.")
    ] = Path("runs/demo"),
    pairs: Annotated[int, typer.Option("--pairs", min=1000, help="Training pairs to draw.")] = 10_000,
    noise: Annotated[float, typer.Option("--noise", min=0, max=1, help="Share of them with bad captions.")] = 0.3,
    steps: Annotated[int, typer.Option("--steps", min=10, help="Steps of each training.")] = 700,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Pairs a step.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of corpus and trainings.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """See it work: train clip and softclip on the same noisy pairs, evaluate both, and draw one page. A few minutes on a laptop."""
    import time

    from softclip_cli.console_training import TrainingView
    from softclip_cli.demo import DemoOptions
    from softclip_cli.demo import demo as run
    from softclip_cli.reports.tables import main_rows, metric_rows, text_table

    began = time.perf_counter()
    options = DemoOptions(out, pairs=pairs, noise=noise, steps=steps, batch_size=batch_size, seed=seed)
    with TrainingView() as view:
        made = run(options, view, console.note, tuple(sys.argv))
    seconds = time.perf_counter() - began
    document = {
        "page": str(made.page),
        "runs": {name: str(found.path) for name, found in made.runs.items()},
        "evaluations": made.documents,
        "seconds": round(seconds, 1),
    }

    def render() -> None:
        header, rows = text_table(main_rows(metric_rows(made.documents)), list(made.runs))
        console.table(f"clip and softclip on the same {pairs:,} pairs, {noise:.0%} of them noisy", header, rows)
        console.out.print(f"page: {made.page}", markup=False)

    console.emit(document, as_json, render)
    console.note(
        f"done in {seconds / 60:.1f} minutes · next: softclip retrieve --model {made.runs['softclip'].path} · docs/quickstart.md"
    )
