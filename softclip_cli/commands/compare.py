"""`softclip compare`: models side by side, with intervals of the differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.console import guarded

if TYPE_CHECKING:
    from softclip_cli.reports.comparison import Comparison
    from softclip_cli.reports.gates import Judgement


@guarded
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="Runs, result files (JSON), or folders of result files. The first is the baseline.",
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="KIND[:DATASET]", help="Only these evaluations. Repeatable. [default: all]"),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", metavar="NAME,...", help="Only these metrics. Repeatable. [default: the main ones]"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every metric, not only the main ones.")] = False,
    each_run: Annotated[
        bool, typer.Option("--each-run", help="Do not join runs that differ by their seed only.")
    ] = False,
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-below",
            metavar="[TASK/]METRIC=VALUE",
            help="Exit with 6 where a model (but the baseline, if there are several) is below VALUE. Repeatable.",
        ),
    ] = None,
    fail_drop: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-drop",
            metavar="[TASK/]METRIC=VALUE",
            help="Exit with 6 where a model is worse than the baseline by more than VALUE, beyond noise. Repeatable.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Compare evaluated models on the same items: differences to the first, their intervals, and which are noise.

    Example: softclip compare clip psd --fail-drop zeroshot/top1=0.01
    """
    from softclip_cli.reports.comparison import compare as compare_subjects
    from softclip_cli.reports.comparison_table import as_document, selection
    from softclip_cli.reports.gates import judge, parse_gate, require_passed
    from softclip_cli.reports.subjects import open_subjects

    gates = [parse_gate("--fail-below", text) for text in fail_below or []]
    gates += [parse_gate("--fail-drop", text) for text in fail_drop or []]
    subjects = open_subjects(models, join=not each_run)
    chosen = selection(subjects, tasks or [], metrics or [], everything, gates)
    comparison = compare_subjects(subjects, chosen)
    judged = judge(gates, comparison)
    document = {**as_document(comparison), "gates": [one.as_dict() for one in judged]}
    console.emit(document, as_json, lambda: _render(comparison, judged, document))
    require_passed(judged)


def _render(comparison: Comparison, judged: list[Judgement], document: dict[str, Any]) -> None:
    from softclip_cli.reports.comparison_table import remarks, seeds_table, single_table, text_table

    if len(comparison.models) == 1:
        console.table(comparison.models[0].name, *single_table(comparison))
    elif not comparison.rows:
        console.out.print("the models share no evaluation: softclip eval, probe and retrieve make them", markup=False)
    else:
        console.table(f"differences to {comparison.models[0].name}, with 95 % intervals", *text_table(comparison))
        seeds = seeds_table(comparison)
        if seeds is not None:
            console.table("over seeds, with 95 % t intervals", *seeds)
    for line in remarks(comparison):
        console.note(line)
    for one in judged:
        console.note(f"{'passed' if one.passed else 'FAILED'}: {one.gate.text}: {one.model} on {one.task}: {one.why}")
