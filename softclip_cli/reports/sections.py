"""What stands on a page, made from runs and evaluation documents: the verdict, the tables and the plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from softclip_cli.reports import plots
from softclip_cli.reports.facts import LINE_KEYS, headline
from softclip_cli.reports.metrics import MAIN, RECALL, TASKS, metric_facts
from softclip_cli.reports.plots import Plot, is_number
from softclip_cli.reports.tables import Cell, Document, MetricRow, metric_rows, says_more
from softclip_cli.runs import Run

SHOWN_CLASSES = 60  # of a set with more classes, those with the lowest and the highest accuracy are shown
# What tells how soft targets are and whether the space collapses (see objectives/diagnostics.py), with what it means.
ALIGNMENT = {
    "alpha": "weight of the soft targets",
    "soft_share": "share of pairs with a soft target",
    "own_weight": "what the targets give to the own pair",
    "target_entropy": "entropy of the targets, nats",
    "agreement": "share of pairs whose soft target peaks where the model does",
    "image_cosine": "mean cosine of different images",
    "text_cosine": "mean cosine of different texts",
}
USUAL = ("loss", "chance", *LINE_KEYS)  # columns of metrics.jsonl that are no diagnostics


@dataclass(frozen=True)
class ResultGroup:
    """The rows of one evaluation, under one heading."""

    task: str
    dataset: str
    size: str
    note: str
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class ClassTable:
    """Accuracy a class: rows of (class name, one share a model or None)."""

    title: str
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    left_out: int = 0


def result_groups(rows: Sequence[MetricRow]) -> list[ResultGroup]:
    """Group the rows of each evaluation, for headings inside one table; neighbours of one same row are joined."""
    groups: list[ResultGroup] = []
    for _, members in groupby(rows, key=lambda row: (row.task, row.dataset, row.split, row.variant, row.note)):
        group = tuple(members)
        first = group[0]
        split = f", {first.split}" if says_more(first.split, first.dataset, first.task) else ""
        variant = f", {first.variant}" if first.variant else ""
        size = f"n = {first.size:,}" if isinstance(first.size, int) else ""
        task = TASKS.get(first.task, first.task)
        groups.append(ResultGroup(task, f"{first.dataset}{split}{variant}", size, first.note, group))
    joined = []
    for _, neighbours in groupby(groups, key=lambda one: (one.task, one.size, one.note, _only_metric(one) or id(one))):
        joined.append(_join(list(neighbours)))
    return joined


def _join(groups: Sequence[ResultGroup]) -> ResultGroup:
    """Several groups of one and the same metric as one group of datasets; the level of chance goes where it fits."""
    first = groups[0]
    chances = {row.chance for group in groups for row in group.rows if row.chance is not None}
    size = first.size
    if len(chances) == 1:
        size = ", ".join(filter(None, [size, _chance_text(chances.pop())]))
        chances = set()
    if len(groups) == 1:
        return replace(first, size=size)
    corpora = {group.dataset.partition(":")[0] for group in groups if ":" in group.dataset}
    common = f"{corpora.pop()}:" if len(corpora) == 1 and all(":" in group.dataset for group in groups) else ""
    rows = []
    for group in groups:
        row = group.rows[0]
        told = f" ({_chance_text(row.chance)})" if chances and row.chance is not None else ""
        rows.append(replace(row, label=group.dataset.removeprefix(common) + told))
    what = f"{common.rstrip(':')}, {first.rows[0].label}" if common else first.rows[0].label
    return ResultGroup(first.task, what, size, first.note, tuple(rows))


def _chance_text(chance: float) -> str:
    return f"chance {chance * 100:.3g}\N{NO-BREAK SPACE}%"


def _only_metric(group: ResultGroup) -> str:
    return group.rows[0].metric if len(group.rows) == 1 else ""


def verdict(rows: Sequence[MetricRow], names: Sequence[str]) -> str:
    """In one or two sentences, who is better in how many of the rows, by intervals that do not overlap."""
    compared = [row for row in rows if sum(cell is not None for cell in row.cells) > 1]
    if len(names) < 2 or not compared:
        return ""
    wins = [(name, sum(row.better == index for row in compared)) for index, name in enumerate(names)]
    known = [row for row in compared if all(cell is None or cell.low is not None for cell in row.cells)]
    undecided = len(compared) - sum(count for _, count in wins)
    leading = ", ".join(
        f"{name} is better in {count}" for name, count in sorted(wins, key=lambda win: -win[1]) if count
    )
    if not leading:
        sentence = (
            f"In none of the {len(compared)} main numbers is one model better beyond doubt: all intervals overlap."
        )
    elif undecided:
        rest = "in the other one" if undecided == 1 else f"in the other {undecided}"
        sentence = f"Of the {len(compared)} main numbers, {leading} (95 % intervals that do not overlap); "
        sentence += f"{rest} they do overlap."
    else:
        sentence = f"Of the {len(compared)} main numbers, {leading} (95 % intervals that do not overlap)."
    if len(known) < len(compared):
        sentence += f" {len(compared) - len(known)} of them come without an interval and are not judged."
    return sentence


def forest(row: MetricRow) -> list[dict[str, float]] | None:
    """Places of the values and intervals on a line from 0 to 100 %, for drawing; None off that scale."""
    if row.unit != "%":
        return None
    marks = []
    for index, cell in enumerate(row.cells):
        if cell is not None:
            ends = [cell.value if end is None else end for end in (cell.low, cell.high)]
            low, high = (min(max(end * 100, 0.0), 100.0) for end in ends)
            marks.append({"series": index, "at": min(max(cell.value * 100, 0.0), 100.0), "low": low, "high": high})
    return marks


def training_plots(names: Sequence[str], runs: Sequence[Run]) -> list[Plot]:
    """The loss with its chance line, and each evaluation made during training."""
    curves = {name: run.training for name, run in zip(names, runs, strict=True) if run.training}
    found: list[Plot] = [plots.loss_plot("loss", curves)] if curves else []
    evaluations = {name: run.evaluations for name, run in zip(names, runs, strict=True)}
    for evaluation in dict.fromkeys(key for by_name in evaluations.values() for key in by_name):
        lines = {name: by_name[evaluation] for name, by_name in evaluations.items() if evaluation in by_name}
        for metric in shown_metrics(next(iter(lines.values()))[-1]):
            points = {
                name: [(float(line["step"]), float(line[metric])) for line in of_run if is_number(line.get(metric))]
                for name, of_run in lines.items()
            }
            values = [value for of_run in points.values() for _, value in of_run]
            label, unit, _ = metric_facts(metric, values)
            name = f"eval-{len(found)}"
            found.append(
                plots.line_plot(name, f"{evaluation}: {label}", label, points, percent=unit == "%", order=names)
            )
    return found


def shown_metrics(line: Mapping[str, Any]) -> list[str]:
    """Which metrics of an evaluation made during training are drawn: the main ones, else one; at most 4."""
    main = [name for name in line if is_number(line[name]) and (name in MAIN or RECALL.fullmatch(name))]
    chosen = headline(line)
    return (main or ([chosen[0]] if chosen else []))[:4]


def diagnostic_plots(names: Sequence[str], runs: Sequence[Run], limit: int = 12) -> list[Plot]:
    """Everything else that the training lines carry: learning rate, logit scale, speed, accuracy in the batch."""
    return _curves(names, runs, lambda key: key not in USUAL and key not in ALIGNMENT, "diagnostic", limit)


def alignment_plots(names: Sequence[str], runs: Sequence[Run]) -> list[Plot]:
    """How soft the targets were, who agreed with whom, and whether the space collapsed, over the steps."""
    return _curves(names, runs, ALIGNMENT.__contains__, "alignment", len(ALIGNMENT))


def _curves(
    names: Sequence[str], runs: Sequence[Run], wanted: Callable[[str], bool], prefix: str, limit: int
) -> list[Plot]:
    lines = {name: run.training for name, run in zip(names, runs, strict=True)}
    keys = dict.fromkeys(
        key for of_run in lines.values() for line in of_run for key, value in line.items() if is_number(value)
    )
    found: list[Plot] = []
    for key in [key for key in keys if wanted(key)][:limit]:
        curves = {}
        for name, of_run in lines.items():
            points = [(float(line["step"]), float(line[key])) for line in of_run if is_number(line.get(key))]
            thin = max(len(points) // plots.POINTS, 1)
            if points:
                curves[name] = points[::thin]
        label = key.replace("_", " ")
        title = f"{label}: {ALIGNMENT[key]}" if key in ALIGNMENT else label
        found.append(plots.line_plot(f"{prefix}-{len(found)}", title, label, curves, markers=False, order=names))
    return found


def shift_plot(names: Sequence[str], documents: Mapping[str, Sequence[Document]]) -> Plot | None:
    """Bars of zero-shot accuracy, the unshifted set first, then each shift; None where no shift was evaluated.

    The unshifted set is the zero-shot evaluation over the same classes of the same corpus.
    """
    rows = rows_for(names, documents)
    shifted = _main_metric([row for row in rows if row.task == "shift"])
    if not shifted:
        return None
    everything = [document for name in names for document in documents[name]]
    wanted = next(_classes(one) for one in everything if one["task"] == "shift")
    plain = {_name(one) for one in everything if one["task"] == "zeroshot" and wanted and _classes(one) == wanted}
    unshifted = [
        row for row in rows if row.task == "zeroshot" and row.metric == shifted[0].metric and row.dataset in plain
    ]
    groups: dict[str, Sequence[Cell | None]] = {}
    for row in [*unshifted[:1], *shifted]:
        groups[_shift_label(row, shifted)] = row.cells
    return plots.bar_plot("shift", "Zero-shot under distribution shift", f"{shifted[0].label} (%)", names, groups)


def ratings_plots(names: Sequence[str], documents: Mapping[str, Sequence[Document]]) -> list[Plot]:
    """Kendall's τ with human ratings, of the scores and of soft targets, one plot a set of ratings."""
    rows = [row for row in rows_for(names, documents) if row.task == "alignment" and row.metric.endswith("kendall_tau")]
    found = []
    for place, dataset in enumerate(dict.fromkeys(row.dataset for row in rows)):
        groups = {row.label.partition(", ")[2] or "cosine": row.cells for row in rows if row.dataset == dataset}
        title = f"Agreement with human ratings: {dataset}"
        found.append(plots.bar_plot(f"ratings-{place}", title, "Kendall τ", names, groups, percent=False))
    return found


def _main_metric(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Of each evaluation the row of the headline metric; without a known one, all of them (one a shift)."""
    shares = [row for row in rows if row.unit == "%"]
    for metric in ("top1", "accuracy", "mean_per_class"):
        chosen = [row for row in shares if row.metric == metric]
        if chosen:
            return chosen
    return shares


def _name(document: Document) -> str:
    return str((document.get("dataset") or {}).get("name", ""))


def _classes(document: Document) -> tuple[str, frozenset[str]] | None:
    """The corpus and the class names of an evaluation, where its document has them."""
    classes = frozenset(per_class(document))
    return (_name(document).partition(":")[0], classes) if classes else None


def _shift_label(row: MetricRow, shifted: Sequence[MetricRow]) -> str:
    if row.task == "zeroshot":
        return "no shift"
    if len({other.dataset for other in shifted}) > 1:
        return row.dataset.rpartition(":")[2]
    if len({other.split for other in shifted}) > 1:
        return row.split
    return row.label


def class_tables(names: Sequence[str], documents: Mapping[str, Sequence[Document]]) -> list[ClassTable]:
    """Accuracy a class of every evaluation whose documents carry `details.per_class`."""
    found: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for name in names:
        for document in documents[name]:
            classes = per_class(document)
            if classes:
                dataset = document.get("dataset") or {}
                key = (str(document["task"]), str(dataset.get("name", "")), str(dataset.get("split") or ""))
                found.setdefault(key, {})[name] = classes
    tables = []
    for (task, dataset, split), by_model in found.items():
        labels = list(dict.fromkeys(label for classes in by_model.values() for label in classes))
        rows = [(label, tuple(by_model.get(name, {}).get(label) for name in names)) for label in labels]
        rows.sort(key=lambda row: (_mean(row[1]), row[0]))
        half = SHOWN_CLASSES // 2
        shown = rows if len(rows) <= SHOWN_CLASSES else rows[:half] + rows[-half:]
        heading = f"{TASKS.get(task, task)}: {dataset}" + (f", {split}" if says_more(split, dataset) else "")
        tables.append(ClassTable(heading, tuple(shown), len(rows) - len(shown)))
    return tables


def per_class(document: Document) -> dict[str, float]:
    """Class name → accuracy in [0, 1], from `details.per_class`: a mapping or a list of named entries; else empty."""
    entries: Any = (document.get("details") or {}).get("per_class")
    if isinstance(entries, Mapping):
        pairs = list(entries.items())
    elif isinstance(entries, list):
        pairs = [
            (entry.get("name", entry.get("class", place)), entry)
            for place, entry in enumerate(entries)
            if isinstance(entry, Mapping)
        ]
    else:
        return {}
    accuracies = {}
    for label, entry in pairs:
        if isinstance(entry, Mapping):
            entry = next(
                (entry[key] for key in ("accuracy", "top1", "recall", "value") if is_number(entry.get(key))), None
            )
        if is_number(entry):
            accuracies[str(label)] = float(entry)
    return accuracies


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0


def rows_for(names: Sequence[str], documents: Mapping[str, Sequence[Document]]) -> list[MetricRow]:
    """The side-by-side rows of these models, in this order."""
    return metric_rows({name: documents[name] for name in names})
