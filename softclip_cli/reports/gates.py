"""Gates for continuous integration: limits that models must keep, and whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from softclip_cli.errors import CheckFailed, UsageError, nearest
from softclip_cli.reports.comparison import NOT_COMPARABLE, NOT_TESTED, WORSE, Comparison

Kind = Literal["--fail-below", "--fail-drop"]


@dataclass(frozen=True)
class Gate:
    """One limit: `[TASK[:DATASET]/]METRIC=VALUE`, VALUE being in the documents' scale (shares from 0 to 1)."""

    kind: Kind
    task: str
    dataset: str
    metric: str
    limit: float

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        place = self.task + (f":{self.dataset}" if self.dataset else "")
        return f"{self.kind} {place}{'/' if place else ''}{self.metric}={self.limit:g}"

    def covers(self, task: str, dataset: str, metric: str) -> bool:
        """Whether the gate speaks of this metric of this evaluation."""
        return metric == self.metric and self.task in ("", task) and self.dataset in ("", dataset)


@dataclass(frozen=True)
class Judgement:
    """What became of one gate at one number."""

    gate: Gate
    model: str
    task: str
    dataset: str
    split: str
    value: float
    passed: bool
    why: str

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        place = {"model": self.model, "task": self.task, "dataset": self.dataset, "split": self.split}
        return {"gate": self.gate.text, **place, "value": self.value, "passed": self.passed, "why": self.why}


def parse_gate(kind: Kind, text: str) -> Gate:
    """Read one gate.

    Raises:
        UsageError: it is not `[TASK[:DATASET]/]METRIC=NUMBER`.
    """
    left, equals, right = text.rpartition("=")
    place, _, metric = left.strip().rpartition("/")
    task, _, dataset = place.partition(":")
    try:
        limit = float(right)
    except ValueError:
        limit = float("nan")
    example = "for example --fail-below zeroshot/top1=0.35, or --fail-drop top1=0.01"
    if not equals or not metric or limit != limit:
        raise UsageError(f"unusable {kind} {text!r}", "expected [TASK[:DATASET]/]METRIC=NUMBER", example)
    if kind == "--fail-drop" and limit < 0:
        raise UsageError(f"unusable {kind} {text!r}", "a drop is given as a positive number", example)
    return Gate(kind, task.strip(), dataset.strip(), metric.strip(), limit)


def judge(gates: Sequence[Gate], comparison: Comparison) -> list[Judgement]:
    """Judge every gate at every number that it speaks of.

    `--fail-below` fails where a value is below the limit: that of every model but the baseline, or of the only model.
    `--fail-drop` fails where a model is worse than the baseline by more than the limit and the difference is not noise.
    What cannot be judged (not comparable, no interval) fails: a gate never passes in silence.

    Raises:
        UsageError: a gate that speaks of no number here, or of a metric that it does not fit.
    """
    judged = []
    for gate in gates:
        found = _below(gate, comparison) if gate.kind == "--fail-below" else _drop(gate, comparison)
        if not found:
            known = sorted({f"{one.task}/{one.metric}" for one in comparison.values})
            raise UsageError(
                f"{gate.text} speaks of no number here",
                "there are: " + ", ".join(known) if len(known) < 12 else f"the documents hold {len(known)} others",
                nearest(f"{gate.task}/{gate.metric}", known) or "softclip compare ... --all shows all of them",
            )
        judged += found
    return judged


def _below(gate: Gate, comparison: Comparison) -> list[Judgement]:
    baseline = comparison.models[0].name
    judged = []
    for one in comparison.values:
        if not gate.covers(one.task, one.dataset, one.metric):
            continue
        if len(comparison.models) > 1 and one.model == baseline:
            continue
        if one.higher_is_better is not True:
            hint = "--fail-drop takes either way" if one.higher_is_better is False else ""
            raise UsageError(f"{gate.text} does not fit", f"{gate.metric} is not better when it is higher", hint)
        if one.unit == "%" and abs(gate.limit) > 1:
            raise UsageError(
                f"{gate.text} is out of range",
                f"{gate.metric} is a share from 0 to 1",
                f"write {gate.metric}={gate.limit / 100:g}",
            )
        passed = one.value >= gate.limit
        why = f"{one.value:.4g} is {'not ' if passed else ''}below {gate.limit:g}"
        judged.append(Judgement(gate, one.model, one.task, one.dataset, one.split, one.value, passed, why))
    return judged


def _drop(gate: Gate, comparison: Comparison) -> list[Judgement]:
    if len(comparison.models) < 2:
        raise UsageError(f"{gate.text} needs a baseline", "only one model is named", "name the baseline first")
    judged = []
    for row in comparison.rows:
        if not gate.covers(row.task, row.dataset, row.metric):
            continue
        if row.unit == "%" and gate.limit > 1:
            raise UsageError(
                f"{gate.text} is out of range",
                f"{gate.metric} is a share from 0 to 1",
                f"write {gate.metric}={gate.limit / 100:g}",
            )
        if row.verdict in (NOT_COMPARABLE, NOT_TESTED) or row.first is None or row.second is None:
            passed, why = False, f"cannot be judged: {row.verdict}" + (f", {row.reason}" if row.reason else "")
        else:
            drop = (row.first - row.second) * (1 if row.higher_is_better else -1)
            passed = not (row.verdict == WORSE and drop > gate.limit)
            # A drop of nothing is no drop: -0 would read badly.
            why = f"{'drop' if drop >= 0 else 'gain'} of {abs(drop):.4g} against {comparison.models[0].name}, {row.verdict}"
        value = float("nan") if row.second is None else row.second
        judged.append(Judgement(gate, row.model, row.task, row.dataset, row.split, value, passed, why))
    return judged


def require_passed(judged: Sequence[Judgement]) -> None:
    """End with exit code 6 where a gate failed.

    Raises:
        CheckFailed: some failed; the message names them.
    """
    failed = [one for one in judged if not one.passed]
    if failed:
        told = [f"{one.gate.text}: {one.model} on {one.task} {one.dataset}: {one.why}" for one in failed]
        more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
        raise CheckFailed(
            f"{len(failed)} of {len(judged)} checks failed",
            "; ".join(told[:4]) + more,
            "look at the table for what else changed, or move the limit",
        )
