"""Evaluation documents of several models → rows of one table, for the terminal, Markdown and HTML alike.

Only numbers that may stand beside each other share a row: the same task, dataset, split and dataset fingerprint. A
model is called better only where its whole interval lies beyond the other's; everything else is left unmarked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softclip_cli.reports.differences import canonical, describe_differences, differing_settings, flatten, short
from softclip_cli.reports.metrics import MAIN, OUTCOMES, RECALL, TASKS, metric_facts

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One measured number: value, ends of the 95 % interval, sample size, unit (`share`, `points`, `rank`)."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One metric of one evaluation, for every model.

    Attributes:
        task, dataset, split, size: of the evaluation documents; `size` is the number of samples, None where unknown.
        variant: what sets this row apart from others of the same dataset (a protocol setting); mostly empty.
        metric: its name in the documents; `label` is for people.
        unit: `%` (a share, shown times 100), `points` or empty.
        scale: factor from the documents' numbers to the shown ones.
        higher_is_better: which way is better; None where neither is.
        cells: one a model, in the order asked for, in the documents' scale; None where a model was not evaluated.
        difference: last model minus first, in the shown scale; None unless both are there.
        better: index of the model whose interval lies wholly beyond those of all others; None where any overlap.
        note: what keeps the numbers from being comparable, such as protocols that differ; mostly empty.
        chance: what guessing gives, in the documents' scale, where the documents say it of this metric.
    """

    task: str
    dataset: str
    split: str
    size: int | None
    variant: str
    metric: str
    label: str
    unit: str
    scale: float
    higher_is_better: bool | None
    cells: tuple[Cell | None, ...]
    difference: float | None
    better: int | None
    note: str = ""
    chance: float | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is one of the metrics that stand for the evaluation, as against a refinement of them."""
        return self.metric in MAIN or bool(RECALL.fullmatch(self.metric))

    @property
    def digits(self) -> int:
        """Decimals that are shown."""
        return 1 if self.unit else 3 if self._largest() < 10 else 1

    def _largest(self) -> float:
        return max((abs(cell.value * self.scale) for cell in self.cells if cell), default=0.0)

    def number(self, value: float | None, signed: bool = False) -> str:
        """A number of this row as text, in the shown scale; `–` where there is none."""
        if value is None or not math.isfinite(value):
            return "–"
        return f"{value * self.scale:{'+' if signed else ''}.{self.digits}f}".replace("-", "−")

    def interval(self, index: int) -> str:
        """The 95 % interval of one model as text, `[50.1, 54.5]`; empty where unknown."""
        cell = self.cells[index]
        if cell is None or cell.low is None or cell.high is None:
            return ""
        return f"[{self.number(cell.low)}, {self.number(cell.high)}]"

    def text(self, index: int) -> str:
        """One model's cell as text: `52.3 [50.1, 54.5]`, with a star where this model is the better one."""
        cell = self.cells[index]
        if cell is None:
            return "–"
        star = " *" if self.better == index else ""
        return f"{self.number(cell.value)} {self.interval(index)}".strip() + star

    @property
    def difference_text(self) -> str:
        """The difference as text, with its sign; empty where there is none."""
        if self.difference is None:
            return ""
        return f"{self.difference:+.{self.digits}f}".replace("-", "−")

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """The row as a JSON object, numbers in the documents' scale (the difference too)."""
        values = {
            name: None if cell is None else {key: _finite(getattr(cell, key)) for key in ("value", "low", "high", "n")}
            for name, cell in zip(names, self.cells, strict=True)
        }
        return {
            "task": self.task,
            "dataset": self.dataset,
            "split": self.split,
            "variant": self.variant,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "values": values,
            "difference": None if self.difference is None else _finite(self.difference / self.scale),
            "better": None if self.better is None else names[self.better],
            "chance": self.chance,
            "note": self.note,
        }


def metric_rows(models: Mapping[str, Sequence[Document]]) -> list[MetricRow]:
    """The side-by-side table of all metrics.

    Args:
        models: name → its evaluation documents. Of two documents of one evaluation under one protocol the later counts.

    Returns:
        One row a metric and evaluation, by task, then dataset in the order of the documents.
    """
    evaluations: dict[tuple[str, str, str, str], list[dict[str, Document]]] = {}
    for documents in models.values():
        for document in documents:
            evaluations.setdefault(_evaluation(document), [])
    rows: list[MetricRow] = []
    for key, by_model in sorted(
        ((key, _by_model(models, key)) for key in evaluations), key=lambda item: _task_order(item[0][0])
    ):
        for variant, chosen, note in _comparable(by_model):
            rows.extend(_rows_of(key, variant, chosen, note, list(models)))
    return _name_versions(rows, evaluations)


def _evaluation(document: Document) -> tuple[str, str, str, str]:
    dataset = document.get("dataset") or {}
    return (
        str(document["task"]),
        str(dataset.get("name", "")),
        str(dataset.get("split") or ""),
        str(dataset.get("fingerprint") or ""),
    )


def _task_order(task: str) -> tuple[int, str]:
    known = list(TASKS)
    return (known.index(task) if task in known else len(known), task)


def _by_model(
    models: Mapping[str, Sequence[Document]], key: tuple[str, str, str, str]
) -> dict[str, dict[str, Document]]:
    """Name → protocol (as canonical JSON) → document."""
    return {
        name: {canonical(settings_of(one)): one for one in documents if _evaluation(one) == key}
        for name, documents in models.items()
    }


def _comparable(
    by_model: Mapping[str, Mapping[str, Document]],
) -> Iterator[tuple[str, dict[str, Document], str]]:
    """Split the documents of one evaluation into groups that may share rows: (variant, name → document, note)."""
    if all(len(documents) <= 1 for documents in by_model.values()):
        chosen = {name: next(iter(documents.values())) for name, documents in by_model.items() if documents}
        differing = describe_differences([settings_of(one) for one in chosen.values()])
        yield "", chosen, f"protocols differ: {differing}" if differing else ""
        return
    protocols = {protocol: one for documents in by_model.values() for protocol, one in documents.items()}
    varying = differing_settings([settings_of(one) for one in protocols.values()])
    for protocol, one in protocols.items():
        settings = settings_of(one)
        variant = ", ".join(f"{name} {short(settings[name])}" for name in varying if name in settings)
        yield variant, {name: found[protocol] for name, found in by_model.items() if protocol in found}, ""


def settings_of(document: Document) -> dict[str, Any]:
    """The protocol, flat, without what is an outcome of the evaluation."""
    return {name: value for name, value in flatten(document.get("protocol") or {}).items() if name not in OUTCOMES}


def _rows_of(
    key: tuple[str, str, str, str], variant: str, chosen: Mapping[str, Document], note: str, names: Sequence[str]
) -> Iterator[MetricRow]:
    task, dataset, split, _ = key
    sizes = [(one.get("dataset") or {}).get("size") for one in chosen.values()]
    metrics = dict.fromkeys(metric for one in chosen.values() for metric in one["metrics"])
    for metric in metrics:
        cells = tuple(cell_of((chosen[name]["metrics"] if name in chosen else {}).get(metric)) for name in names)
        if not any(cells):
            continue
        label, unit, higher = metric_facts(
            metric, [cell.value for cell in cells if cell], next(cell.unit for cell in cells if cell)
        )
        scale = 100.0 if unit == "%" or (metric == "rsum" and _rsum_is_of_shares(chosen.values())) else 1.0
        first, last = cells[0], cells[-1]
        difference = (last.value - first.value) * scale if first and last and len(cells) > 1 else None
        yield MetricRow(
            task=task,
            dataset=dataset,
            split=split,
            size=next((size for size in sizes if size is not None), None),
            variant=variant,
            metric=metric,
            label=label,
            unit=unit,
            scale=scale,
            higher_is_better=higher,
            cells=cells,
            difference=difference,
            better=None if higher is None else better_of(cells, higher),
            note=note,
            chance=next(filter(None, map(_chance, chosen.values())), None) if metric in ("top1", "accuracy") else None,
        )


def _chance(document: Document) -> float | None:
    chance = (document.get("details") or {}).get("chance")
    return float(chance) if isinstance(chance, int | float) else None


def main_rows(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """The rows of the main metrics; all rows of an evaluation that has none of them."""
    with_main = {(row.task, row.dataset, row.split, row.variant) for row in rows if row.is_main}
    return [row for row in rows if row.is_main or (row.task, row.dataset, row.split, row.variant) not in with_main]


def _name_versions(rows: list[MetricRow], evaluations: Iterable[tuple[str, str, str, str]]) -> list[MetricRow]:
    """Where one dataset's name stands for different data, put the beginning of its fingerprint into the note."""
    from dataclasses import replace

    seen: dict[tuple[str, str, str], set[str]] = {}
    for task, dataset, split, fingerprint in evaluations:
        seen.setdefault((task, dataset, split), set()).add(fingerprint)
    changed = "models were evaluated on different data of this name"
    return [
        replace(row, note="; ".join(filter(None, [row.note, changed])))
        if len(seen[row.task, row.dataset, row.split]) > 1
        else row
        for row in rows
    ]


def better_of(cells: Sequence[Cell | None], higher_is_better: bool = True) -> int | None:
    """Index of the cell whose interval lies wholly beyond those of all others; None where any overlap or are unknown.

    Two 95 % intervals that do not touch differ at about p < 0.01 when the samples are independent: a careful rule.
    """
    there = [(index, cell) for index, cell in enumerate(cells) if cell is not None]
    if len(there) < 2 or any(cell.low is None or cell.high is None for _, cell in there):
        return None
    for index, cell in there:
        others = [other for place, other in there if place != index]
        if higher_is_better and all(cell.low > other.high for other in others):  # type: ignore[operator]
            return index
        if not higher_is_better and all(cell.high < other.low for other in others):  # type: ignore[operator]
            return index
    return None


def cell_of(entry: Any) -> Cell | None:
    """One entry of a document's `metrics` (or a plain number) as a cell; None where it is no number."""
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        entry = {"value": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("value"), int | float):
        return None
    ends = [float(end) if isinstance(end := entry.get(name), int | float) else None for name in ("low", "high")]
    return Cell(float(entry["value"]), ends[0], ends[1], entry.get("n"), str(entry.get("unit") or ""))


def _rsum_is_of_shares(documents: Iterable[Document]) -> bool:
    """Whether rsum adds shares (at most 6) or percentages (at most 600): told by the recalls beside it."""
    for one in documents:
        recalls = [
            cell.value for name, entry in one["metrics"].items() if RECALL.fullmatch(name) and (cell := cell_of(entry))
        ]
        rsum = cell_of(one["metrics"].get("rsum"))
        if rsum is not None and recalls:
            return rsum.value < 10 * sum(recalls)
    return False


def _finite(value: float | None) -> float | None:
    """JSON has no word for what is no number."""
    return value if value is not None and math.isfinite(value) else None


def says_more(split: str, dataset: str, task: str = "") -> bool:
    """Whether a split's name adds to the dataset's: `val` does; `test`, or `shift-blur` of `corpus:blur`, does not."""
    return split not in ("", "test", dataset, task) and dataset.rpartition(":")[2] not in split


def text_table(rows: Sequence[MetricRow], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The rows for `console.table`.

    Returns:
        Column names (a leading `>` aligns to the right) and lines of text; with two models a last column has the
        difference, and a star marks a model that is better beyond overlapping intervals.
    """
    pair = len(names) == 2
    columns = ["evaluation", "metric", *(f">{name}" for name in names), *([">difference"] if pair else [])]
    lines, before = [], ""
    for row in rows:
        split = f", {row.split}" if says_more(row.split, row.dataset, row.task) else ""
        evaluation = f"{row.task} {row.dataset}{split}" + (f", {row.variant}" if row.variant else "")
        cells = [row.text(index) for index in range(len(names))]
        lines.append(
            ["" if evaluation == before else evaluation, row.label, *cells, *([row.difference_text] if pair else [])]
        )
        before = evaluation
    return columns, lines


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()) -> str:
    """A GitHub-flavoured Markdown table; the columns in `right` are aligned to the right."""
    aligned = set(right)
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("---:" if column in aligned else "---" for column in range(len(header))) + "|",
    ]
    for row in rows:
        cells = (" ".join(str("" if cell is None else cell).split()).replace("|", "\\|") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
