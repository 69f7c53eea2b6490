"""A comparison as text: the table, what is to be said under it, and its JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from softclip_cli.errors import UsageError, nearest
from softclip_cli.evaluation.paired import Difference
from softclip_cli.reports.comparison import (
    ALPHA,
    NOT_COMPARABLE,
    PAIRED,
    STORED,
    UNPAIRED,
    Chosen,
    Comparison,
    Row,
    main_metric,
)
from softclip_cli.reports.gates import Gate
from softclip_cli.reports.metrics import TASKS, metric_facts
from softclip_cli.reports.subjects import Subject
from softclip_cli.reports.tables import says_more

Table = tuple[list[str], list[list[str]]]


def selection(
    subjects: Sequence[Subject], tasks: Sequence[str], metrics: Sequence[str], everything: bool, gates: Sequence[Gate]
) -> Chosen:
    """Which metrics stand in the table: those asked for, and those that a gate speaks of.

    Args:
        subjects: whose documents say what there is.
        tasks: `KIND` or `KIND:DATASET`; empty for all.
        metrics: names, several with commas between; empty for the main ones.
        everything: all metrics.
        gates: see `gates.Gate`.

    Raises:
        UsageError: a task or metric that none of the documents has.
    """
    documents = [one for subject in subjects for member in subject.members for one in member.documents]
    kinds = {str(one["task"]) for one in documents}
    kinds |= {f"{one['task']}:{(one.get('dataset') or {}).get('name', '')}" for one in documents}
    names = {name for one in documents for name in one["metrics"]}
    wanted = [name.strip() for text in metrics for name in text.split(",") if name.strip()]
    for option, given, known in (("--task", tasks, kinds), ("--metrics", wanted, names)):
        unknown = next((one for one in given if one not in known), None)
        if unknown is not None:
            raise UsageError(
                f"no document has {option} {unknown!r}",
                "there are: " + ", ".join(sorted(known)[:20]) + (" ..." if len(known) > 20 else ""),
                nearest(unknown, known),
            )

    def chosen(task: str, dataset: str, metric: str) -> bool:
        if any(gate.covers(task, dataset, metric) for gate in gates):
            return True
        there = not tasks or task in tasks or f"{task}:{dataset}" in tasks
        return there and (metric in wanted if wanted else everything or main_metric(task, dataset, metric))

    return chosen


def evaluation_name(row: Row) -> str:
    """The evaluation of a row, in words."""
    split = f", {row.split}" if says_more(row.split, row.dataset, row.task) else ""
    return f"{row.task} {row.dataset}{split}" + (f", {row.variant}" if row.variant else "")


def by_evaluation(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, Row]]]]:
    """The rows under headings, as (heading, [(label, row)]); sets of one task with one same metric share a heading."""
    groups = [list(group) for _, group in groupby(rows, key=evaluation_name)]

    def only(group: list[Row]) -> tuple[str, str, str]:
        labels = {row.label for row in group}
        corpus = group[0].dataset.rpartition(":")[0]
        return (
            (group[0].task, labels.pop(), corpus)
            if len(labels) == 1 and corpus
            else (evaluation_name(group[0]), "", "")
        )

    found = []
    for (_, label, corpus), neighbours in groupby(groups, key=only):
        members = list(neighbours)
        first = members[0][0]
        task = TASKS.get(first.task, first.task)
        if len(members) == 1:
            name = evaluation_name(first).removeprefix(f"{first.task} ")
            found.append((f"{task}: {name}", [(row.label, row) for row in members[0]]))
            continue
        named = [(row.dataset.rpartition(":")[2], row) for group in members for row in group]
        found.append((f"{task}: {corpus}, {label}", named))
    return found


def shown(row: Row, value: float | None, *, sign: bool = False) -> str:
    """A number of a row in its shown scale."""
    if value is None:
        return "–"
    digits = 1 if row.unit == "points" else 2 if row.unit == "%" else 3
    return f"{value * row.scale:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def with_interval(row: Row, found: Difference | None, *, sign: bool = True) -> str:
    """A value with its interval: `+1.20 [+0.31, +2.05]`."""
    if found is None:
        return ""
    text = shown(row, found.value, sign=sign)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{shown(row, found.low, sign=sign)}, {shown(row, found.high, sign=sign)}]"


def p_text(p: float | None) -> str:
    """A p value for a table."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def text_table(comparison: Comparison) -> Table:
    """The differences as columns and lines for `console.table`."""
    several = len(comparison.models) > 2
    exact = any(row.mcnemar for row in comparison.rows)
    columns = ["evaluation", "metric", *(["model"] if several else []), ">baseline", ">model" if several else ">value"]
    columns += [">difference", ">p (Holm)", *([">McNemar p"] if exact else []), "verdict"]
    lines, before = [], ("", "")
    for row in comparison.rows:
        name = evaluation_name(row)
        mark = (
            ""
            if row.method in (PAIRED, "") or row.verdict == NOT_COMPARABLE
            else " †"
            if row.method == UNPAIRED
            else " ‡"
        )
        lines.append(
            [
                "" if name == before[0] else name,
                "" if (name, row.label) == before else row.label + (" (%)" if row.unit == "%" else ""),
                *([row.model] if several else []),
                shown(row, row.first),
                shown(row, row.second),
                "" if row.items is None else with_interval(row, row.items) + mark,
                p_text(row.holm),
                *([p_text(row.mcnemar[2]) if row.mcnemar else ""] if exact else []),
                row.verdict,
            ]
        )
        before = (name, row.label)
    return columns, lines


def seeds_table(comparison: Comparison) -> Table | None:
    """Means over seeds with their intervals; None where no model has several seeds."""
    rows = [row for row in comparison.rows if row.seeds is not None]
    if not rows:
        return None
    lines, before = [], ""
    for row in rows:
        assert row.seeds is not None
        name, apart = evaluation_name(row), row.seeds.difference
        first, second = (with_interval(row, one, sign=False) for one in (row.seeds.first, row.seeds.second))
        p = "" if apart is None else f"{p_text(apart.p)}, {row.seeds.test}"
        lines.append(
            ["" if name == before else name, row.label, row.model, first, second, with_interval(row, apart), p]
        )
        before = name
    return ["evaluation", "metric", "model", ">baseline", ">mean", ">difference", ">p"], lines


def single_table(comparison: Comparison) -> Table:
    """The values of a single model, for gates without a baseline."""
    lines = []
    for one in comparison.values:
        if main_metric(one.task, one.dataset, one.metric):
            label, unit, _ = metric_facts(one.metric, [one.value], {"%": "share"}.get(one.unit, one.unit))
            value = f"{one.value * 100:.2f} %" if unit == "%" else f"{one.value:.1f}"
            lines.append([f"{one.task} {one.dataset}", label, value])
    return ["evaluation", "metric", ">value"], lines


def remarks(comparison: Comparison) -> list[str]:
    """What has to be said under the table."""
    rows = comparison.rows
    lines = []
    tested = sum(row.p is not None for row in rows)
    if tested:
        lines.append(
            f"verdict: p < {ALPHA} after Holm's correction over {tested} {'comparison' if tested == 1 else 'comparisons'};"
            " intervals are of each row by itself"
        )
    if any(row.method == PAIRED for row in rows):
        lines.append(f"paired bootstrap over items, the same {comparison.draws:,} resamples for all models")
    if any(row.method == UNPAIRED for row in rows):
        lines.append(
            "†: not paired (a document has no outcomes of single items: evaluate again to get them);"
            " as from independent samples, which is careful for models on the same items"
        )
    if any(row.method == STORED for row in rows):
        lines.append("‡: paired by the resamples that the evaluations kept, p by the normal law")
    if any(row.seeds and row.seeds.difference for row in rows):
        lines.append(
            "where there are seeds on both sides, a difference must stand over items and over seeds (the larger p)"
        )
    elif any(row.seeds for row in rows):
        lines.append("several seeds on one side only: the verdicts hold for these runs, not for other seeds")
    elif tested:
        lines.append("one run a model: the verdicts hold for these runs; another training seed can move a number too")
    sizes = {one.name: len(one.members) for one in comparison.models}
    partly = [
        f"{evaluation_name(row)}: {there} of {sizes[name]} runs of {name}"
        for row in rows
        for name, there in zip((comparison.models[0].name, row.model), row.runs, strict=True)
        if there < sizes[name]
    ]
    lines += [f"not evaluated for every seed: {one}" for one in dict.fromkeys(partly)]
    for reason in dict.fromkeys(
        f"{evaluation_name(row)}: {row.model}: {row.reason}" for row in rows if row.verdict == NOT_COMPARABLE
    ):
        lines.append(f"not comparable: {reason}")
    return lines


def as_document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one JSON document, numbers in the documents' scale."""
    return {
        "format": 1,
        "baseline": comparison.models[0].name,
        "models": [
            {"name": one.name, "members": [member.name for member in one.members], "seeds": list(one.seeds)}
            for one in comparison.models
        ],
        "method": {"draws": comparison.draws, "alpha": ALPHA, "correction": "Holm", "interval": "percentile, 95 %"},
        "rows": [_row(row) for row in comparison.rows],
        "remarks": remarks(comparison),
    }


def _row(row: Row) -> dict[str, Any]:
    entry = asdict(row)
    for name in ("label", "unit", "scale"):
        del entry[name]
    if row.mcnemar is not None:
        only_first, only_second, p = row.mcnemar
        entry["mcnemar"] = {"only_baseline": only_first, "only_model": only_second, "p": p}
    entry["baseline"], entry["value"] = entry.pop("first"), entry.pop("second")
    entry["difference"], entry["p_holm"] = entry.pop("items"), entry.pop("holm")
    return entry
