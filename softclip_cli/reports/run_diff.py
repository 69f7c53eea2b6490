"""What differs between two runs: settings, data, effective batch and precision, versions, and the final metrics."""

from __future__ import annotations

from typing import Any

from softclip_cli.reports import facts
from softclip_cli.reports.differences import flatten
from softclip_cli.reports.tables import MetricRow, main_rows, metric_rows
from softclip_cli.runs import Run

# Facts that decide whether two runs can be compared at all: told even where they are the same.
DECISIVE = ("effective batch", "precision", "device", "data fingerprint", "training pairs", "steps", "seed")


def diff_runs(first: Run, second: Run) -> dict[str, Any]:
    """Compare two runs.

    Returns:
        A JSON document: `runs` (their names), `decisive` (rows of `name`, `values`, `same`: effective batch, precision,
        device, data fingerprint, pairs, steps, seed), `settings`, `versions` and `environment` (rows of `name` and
        `values`, the differing ones only; None where a run does not have it), `metrics` (see `MetricRow.as_dict`).

    Raises:
        ModelError: a damaged file in a run folder.
    """
    runs = (first, second)
    decisive: list[list[Any]] = [
        [facts.effective_batch(run) for run in runs],
        [facts.precision(run) or None for run in runs],
        [facts.device(run) or None for run in runs],
        [run.data.get("fingerprint") for run in runs],
        [run.data.get("pairs") for run in runs],
        [run.status.get("step") for run in runs],
        [run.setting("schedule.seed", "seed") for run in runs],
    ]
    left_out = ("versions", "command", "device", "precision")
    machines = [{name: value for name, value in run.env.items() if name not in left_out} for run in runs]
    names = run_names(first, second)
    return {
        "runs": names,
        "decisive": [
            {"name": name, "values": values, "same": values[0] == values[1]}
            for name, values in zip(DECISIVE, decisive, strict=True)
        ],
        "settings": _differences(first.config, second.config),
        "versions": _differences(facts.versions(first), facts.versions(second)),
        "environment": _differences(*machines),
        "metrics": [row.as_dict(names) for row in final_metrics(first, second)],
    }


def run_names(first: Run, second: Run) -> list[str]:
    """Two names that tell the runs apart."""
    if first.name != second.name:
        return [first.name, second.name]
    return (
        [str(first.path), str(second.path)]
        if str(first.path) != str(second.path)
        else [first.name, f"{first.name} (again)"]
    )


def final_metrics(first: Run, second: Run) -> list[MetricRow]:
    """The rows of both runs' evaluation documents; without any, the last evaluations made during training."""
    documents = [run.evals or last_evaluations(run) for run in (first, second)]
    return metric_rows(dict(zip(run_names(first, second), documents, strict=True)))


def last_evaluations(run: Run, step: int | None = None) -> list[dict[str, Any]]:
    """The last line of each evaluation made during training, shaped as evaluation documents, without intervals.

    Args:
        run: whose lines.
        step: the line of this step instead, where there is one.
    """
    found = []
    for name, lines in run.evaluations.items():
        chosen = [line for line in lines if step is None or line["step"] == step][-1:]
        metrics = {
            key: {"value": float(value)}
            for line in chosen
            for key, value in line.items()
            if key not in facts.LINE_KEYS and isinstance(value, int | float) and not isinstance(value, bool)
        }
        if metrics:
            found.append({"task": "during training", "dataset": {"name": name}, "metrics": metrics, "details": {}})
    return found


def shown_metrics(rows: list[MetricRow], everything: bool) -> list[MetricRow]:
    """All rows, or the main ones."""
    return rows if everything else main_rows(rows)


def _differences(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    flat = (flatten(first), flatten(second))
    rows = []
    for name in dict.fromkeys([*flat[0], *flat[1]]):
        values = [one.get(name) for one in flat]
        if values[0] != values[1]:
            rows.append({"name": name, "values": values})
    return rows
