"""Models side by side on the same items: for every metric the difference to the first, and whether it is noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation import paired
from softclip_cli.evaluation.item_metrics import Items, averaged, item_metrics, stored_draws
from softclip_cli.evaluation.paired import Difference
from softclip_cli.reports.differences import canonical, describe_differences, differing_settings, short
from softclip_cli.reports.metrics import MAIN, RECALL, metric_facts
from softclip_cli.reports.subjects import Subject
from softclip_cli.reports.tables import Cell, Document, cell_of, settings_of

ALPHA = 0.05
PAIRED, STORED, UNPAIRED = "paired bootstrap", "paired bootstrap, stored draws", "unpaired"
BETTER, WORSE, NOISE, NOT_COMPARABLE, NOT_TESTED = "better", "worse", "noise", "not comparable", "not tested"


@dataclass(frozen=True)
class Seeds:
    """What several seeds say of a value: mean and interval on either side, and of their difference."""

    first: Difference
    second: Difference
    difference: Difference | None
    test: str = ""


@dataclass(frozen=True)
class Row:
    """One metric of one evaluation for one model against the baseline, in the documents' scale.

    Attributes:
        task, dataset, split, variant: the evaluation; `variant` tells several protocols of one dataset apart.
        metric, label, unit, scale, higher_is_better: as for `tables.MetricRow`.
        model: name of the model that is compared.
        first, second: the baseline's value and the model's (means over seeds); None where not evaluated.
        items: the difference with its interval over items.
        method: how that interval was made; empty without one.
        seeds: the same over seeds, where there are several.
        mcnemar: items that only the baseline hits, only the model hits, and the exact p value.
        p: of the row: the larger one of items and seeds, as a difference must stand against both.
        holm: `p` corrected over the table.
        verdict: "better", "worse", "noise", "not comparable" or "not tested".
        reason: why it is not comparable, or not paired.
        runs: how many runs (seeds) of the baseline and of the model have this evaluation.
    """

    task: str
    dataset: str
    split: str
    variant: str
    metric: str
    label: str
    unit: str
    scale: float
    higher_is_better: bool | None
    model: str
    first: float | None
    second: float | None
    items: Difference | None = None
    method: str = ""
    seeds: Seeds | None = None
    mcnemar: tuple[int, int, float] | None = None
    p: float | None = None
    holm: float | None = None
    verdict: str = NOT_TESTED
    reason: str = ""
    runs: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Value:
    """One measured value of one model (a mean over its seeds), for gates."""

    model: str
    task: str
    dataset: str
    split: str
    metric: str
    value: float
    higher_is_better: bool | None
    unit: str


@dataclass(frozen=True)
class Comparison:
    """The whole table; the first model is the baseline."""

    models: tuple[Subject, ...]
    rows: tuple[Row, ...]
    values: tuple[Value, ...]
    draws: int


Chosen = Callable[[str, str, str], bool]  # (task, dataset, metric) → whether it stands in the table


def compare(subjects: Sequence[Subject], chosen: Chosen | None = None, *, seed: int = 0) -> Comparison:
    """Compare models with the first one.

    Args:
        subjects: at least one.
        chosen: which metrics stand in the table; None: the main ones. The correction counts these.
        seed: of the resampling.

    Returns:
        One row a metric, evaluation and model but the first; by evaluation in the order of the first one's documents.

    Raises:
        DataError: damaged outcomes.
    """
    chosen = chosen or main_metric
    found = [_evaluations(subject) for subject in subjects]
    plans = [plan for plan in _plans(subjects, found) if chosen(plan.task, plan.dataset, plan.metric)]
    count = sum(plan.reason == "" and plan.higher is not None for plan in plans)
    draws = max(paired.DRAWS, 100 * count)  # so that the smallest p value stays small after the correction
    rows = _judged([*_tested(plans, draws, seed)])
    return Comparison(tuple(subjects), tuple(rows), tuple(_values(subjects, found)), draws)


def main_metric(task: str, dataset: str, metric: str) -> bool:
    """Whether a metric stands for its evaluation in the table that is shown by default."""
    return metric in MAIN or bool(RECALL.fullmatch(metric))


Key = tuple[str, str, str]


@dataclass(frozen=True)
class _Plan:
    """A row before it is tested: the documents of both sides, by place among the subject's members."""

    task: str
    dataset: str
    split: str
    variant: str
    metric: str
    model: str
    first: tuple[tuple[int | None, Document], ...]
    second: tuple[tuple[int | None, Document], ...]
    reason: str = ""

    @property
    def cells(self) -> tuple[list[Cell], list[Cell]]:
        """The measured numbers of either side."""
        sides = []
        for side in (self.first, self.second):
            sides.append([cell for _, one in side if (cell := cell_of(one["metrics"].get(self.metric))) is not None])
        return sides[0], sides[1]

    @property
    def higher(self) -> bool | None:
        """Which way is better."""
        return _facts(self.metric, [cell for side in self.cells for cell in side])[2]


def _evaluations(subject: Subject) -> dict[Key, dict[str, list[tuple[int | None, Document]]]]:
    """Evaluation → content and protocol (as text) → (seed, document) of each member; of equals the later one counts."""
    found: dict[Key, dict[str, dict[int, tuple[int | None, Document]]]] = {}
    for place, member in enumerate(subject.members):
        for document in member.documents:
            dataset = document.get("dataset") or {}
            key = (str(document["task"]), str(dataset.get("name", "")), str(dataset.get("split") or ""))
            same = canonical(comparable_facts(document))
            found.setdefault(key, {}).setdefault(same, {})[place] = (member.seed, document)
    return {key: {same: list(docs.values()) for same, docs in by.items()} for key, by in found.items()}


def comparable_facts(document: Document) -> dict[str, Any]:
    """What must agree for two documents to be compared: the data's content and size, and the protocol."""
    dataset = document.get("dataset") or {}
    facts = {"data": short(dataset.get("fingerprint"), 13), "images": dataset.get("size")}
    return {**facts, "fingerprint": dataset.get("fingerprint"), **settings_of(document)}


def _plans(
    subjects: Sequence[Subject], found: Sequence[Mapping[Key, Mapping[str, list[tuple[int | None, Document]]]]]
) -> Iterator[_Plan]:
    baseline, others = found[0], list(zip(subjects[1:], found[1:], strict=True))
    for key, variants in baseline.items():
        varying = differing_settings([comparable_facts(docs[0][1]) for docs in variants.values()])
        for same, first in variants.items():
            facts = comparable_facts(first[0][1])
            variant = ", ".join(f"{name} {short(facts.get(name))}" for name in varying if name != "fingerprint")
            for metric in first[0][1]["metrics"]:
                for subject, of_subject in others:
                    there = of_subject.get(key)
                    if not there:
                        continue
                    second = there.get(same)
                    reason = "" if second else _why_not(first[0][1], next(iter(there.values()))[0][1])
                    second = second or next(iter(there.values()))
                    if metric in second[0][1]["metrics"]:
                        yield _Plan(*key, variant, metric, subject.name, tuple(first), tuple(second), reason)


def _why_not(first: Document, second: Document) -> str:
    """In a phrase, what keeps two documents from being compared."""
    one, other = comparable_facts(first), comparable_facts(second)
    different_data = one.pop("fingerprint") != other.pop("fingerprint")
    parts = []
    if different_data:
        parts.append(f"different data of this name ({one['data']} / {other['data']})")
    for facts in (one, other):
        facts.pop("data")
    told = describe_differences([one, other])
    return "; ".join(filter(None, [*parts, f"different protocol: {told}" if told else ""]))


def _facts(metric: str, cells: Sequence[Cell]) -> tuple[str, str, bool | None]:
    unit = next((cell.unit for cell in cells), "")
    return metric_facts(metric, [cell.value for cell in cells], unit)


def _tested(plans: Sequence[_Plan], draws: int, seed: int) -> Iterator[Row]:
    """Test the rows; those of one evaluation share their resamples."""
    groups: dict[int, list[_Plan]] = {}
    for plan in plans:
        groups.setdefault(id(plan.first[0][1]), []).append(plan)
    memory: dict[int, dict[str, Items]] = {}

    def items_of(side: Sequence[tuple[int | None, Document]], metric: str) -> Items | None:
        several = []
        for _, document in side:
            if id(document) not in memory:
                memory[id(document)] = _checked_items(document)
            several.append(memory[id(document)].get(metric))
        return None if None in several else averaged([one for one in several if one is not None])

    for group in groups.values():
        sides = [(items_of(plan.first, plan.metric), items_of(plan.second, plan.metric)) for plan in group]
        pairs = [
            (one, other)
            if one is not None and other is not None and not plan.reason and _same_units(one, other)
            else None
            for plan, (one, other) in zip(group, sides, strict=True)
        ]
        samples: dict[int, np.ndarray] = {}
        for stratified in (False, True):
            places = [i for i, pair in enumerate(pairs) if pair and (pair[0].strata is not None) == stratified]
            if places:
                made = paired.bootstrap([items for i in places for items in pairs[i] or ()], draws, seed)
                samples |= {i: made[2 * n + 1] - made[2 * n] for n, i in enumerate(places)}
        for place, plan in enumerate(group):
            yield _row(plan, pairs[place], samples.get(place))


def _same_units(one: Items, other: Items) -> bool:
    return all(len(a[0]) == len(b[0]) for a, b in zip(one.terms, other.terms, strict=True))


def _checked_items(document: Document) -> dict[str, Items]:
    """The outcomes of a document, which must give the metrics that the document states."""
    found = item_metrics(document)
    for metric, items in found.items():
        stated = cell_of(document["metrics"].get(metric))
        if stated is not None and abs(items.value - stated.value) > 1e-6 * max(1.0, abs(stated.value)):
            raise DataError(
                f"the outcomes of {document['task']} on {document['dataset'].get('name')} do not give its {metric}",
                f"{items.value:.6g} from the outcomes, {stated.value:.6g} in the metrics",
                "the file was edited, or two were mixed up: make the evaluation again",
            )
    return found


def _row(plan: _Plan, pair: tuple[Items, Items] | None, samples: np.ndarray | None) -> Row:
    firsts, seconds = plan.cells
    label, unit, higher = _facts(plan.metric, [*firsts, *seconds])
    scale = 100.0 if unit == "%" else 1.0
    first, second = (sum(cell.value for cell in side) / len(side) for side in (firsts, seconds))
    row = Row(
        plan.task,
        plan.dataset,
        plan.split,
        plan.variant,
        plan.metric,
        label,
        unit,
        scale,
        higher,
        plan.model,
        first,
        second,
        runs=(len(firsts), len(seconds)),
    )
    if plan.reason:
        return replace(row, verdict=NOT_COMPARABLE, reason=plan.reason)
    if higher is None:
        return replace(row, items=Difference(second - first), reason="neither way is better")
    items, method, reason, mcnemar = Difference(second - first), "", "", None
    if pair is not None and samples is not None:
        items, method = paired.from_samples(second - first, samples), PAIRED
        hits = [one.hits for one in pair]
        if plan.metric in ("top1", "accuracy") and hits[0] is not None and hits[1] is not None:
            mcnemar = paired.mcnemar(hits[0], hits[1])
    elif (stored := _stored(plan)) is not None:
        items, method = paired.from_few_samples(second - first, stored), STORED
    elif len(firsts) == len(seconds) == 1:
        one, other = _ends(firsts[0]), _ends(seconds[0])
        if one is not None and other is not None:
            items, method = paired.unpaired(one, other), UNPAIRED
            reason = "no outcomes of single items in the documents"
        else:
            reason = "no interval in the documents"
    else:
        reason = "no outcomes of single items in the documents"
    seeds = _seeds(plan)
    known = [p for p in (items.p, seeds.difference.p if seeds and seeds.difference else None) if p is not None]
    return replace(
        row,
        items=items,
        method=method,
        seeds=seeds,
        mcnemar=mcnemar,
        p=max(known) if known else None,
        reason=reason,
    )


def _ends(cell: Cell) -> tuple[float, float, float] | None:
    return None if cell.low is None or cell.high is None else (cell.value, cell.low, cell.high)


def _stored(plan: _Plan) -> np.ndarray | None:
    """Differences of stored bootstrap values, where all documents keep them and drew alike."""
    sides: list[list[np.ndarray]] = []
    for side in (plan.first, plan.second):
        several = [draws for _, one in side if (draws := stored_draws(one).get(plan.metric)) is not None]
        if len(several) < len(side):
            return None
        sides.append(several)
    lengths = {len(one) for several in sides for one in several}
    seeds = {(one.get("outcomes") or {}).get("seed") for side in (plan.first, plan.second) for _, one in side}
    if len(lengths) > 1 or len(seeds) > 1:
        return None
    return np.mean(sides[1], axis=0) - np.mean(sides[0], axis=0)


def _seeds(plan: _Plan) -> Seeds | None:
    sides: list[dict[int, float]] = []
    for side in (plan.first, plan.second):
        values = {}
        for place, (seed, document) in enumerate(side):
            cell = cell_of(document["metrics"].get(plan.metric))
            if cell is not None:
                values[-1 - place if seed is None else seed] = cell.value
        sides.append(values)
    if max(map(len, sides)) < 2:
        return None
    apart = paired.seeds_apart(sides[0], sides[1])
    first, second = (paired.over_seeds(list(values.values())) for values in sides)
    return Seeds(first, second, *(apart or (None, "")))


def _judged(rows: Sequence[Row]) -> list[Row]:
    """Holm's correction over the table, and the verdicts."""
    tested = [place for place, row in enumerate(rows) if row.p is not None]
    corrected = dict(zip(tested, paired.holm([rows[place].p or 0.0 for place in tested]), strict=True))
    judged = []
    for place, row in enumerate(rows):
        if place not in corrected:
            judged.append(row)
            continue
        assert row.items is not None
        gain = row.items.value if row.higher_is_better else -row.items.value
        real = corrected[place] < ALPHA and gain != 0
        verdict = (BETTER if gain > 0 else WORSE) if real else NOISE
        judged.append(replace(row, holm=corrected[place], verdict=verdict))
    return judged


def _values(
    subjects: Sequence[Subject], found: Sequence[Mapping[Key, Mapping[str, list[tuple[int | None, Document]]]]]
) -> Iterator[Value]:
    for subject, evaluations in zip(subjects, found, strict=True):
        for key, variants in evaluations.items():
            for side in variants.values():
                for metric in side[0][1]["metrics"]:
                    cells = [cell for _, one in side if (cell := cell_of(one["metrics"].get(metric))) is not None]
                    if cells:
                        _, unit, higher = _facts(metric, cells)
                        mean = sum(cell.value for cell in cells) / len(cells)
                        yield Value(subject.name, *key, metric, mean, higher, unit)
