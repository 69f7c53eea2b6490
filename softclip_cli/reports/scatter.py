"""Accuracy under a shift against accuracy without it, on logit axes: what effective robustness is read from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from softclip_cli.reports import plots
from softclip_cli.reports.plots import GRID, MUTED, TEXT, Plot, clean, is_number
from softclip_cli.reports.tables import Document

LEAST = 0.002  # accuracies nearer to 0 or 1 are drawn here: their logits leave the paper
TICKS = (0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5)  # per cent

Point = tuple[float, float, tuple[float, float], tuple[float, float]]  # x, y, ends of x, ends of y


def robustness_plots(names: Sequence[str], documents: Mapping[str, Sequence[Document]]) -> list[Plot]:
    """One plot a shifted set of the task `robustness`, with the standard models; else one of all `shift` results."""
    sets: dict[str, dict[str, Document]] = {}
    for name in names:
        for document in documents[name]:
            if document["task"] == "robustness" and _point(document) is not None:
                sets.setdefault(str(document["dataset"]["name"]), {})[name] = document
    if sets:
        return [
            _scatter(
                f"robustness-{place}",
                f"{shift} against {_reference(next(iter(by_model.values())))}",
                {name: [(shift, point)] for name, one in by_model.items() if (point := _point(one)) is not None},
                names,
                next((line for one in by_model.values() if (line := (one.get("details") or {}).get("line"))), None),
            )
            for place, (shift, by_model) in enumerate(sets.items())
        ]
    shifts: dict[str, list[tuple[str, Point]]] = {}
    for name in names:
        for document in documents[name]:
            point = _point(document) if document["task"] == "shift" else None
            if point is not None:
                label = str(document["dataset"]["name"]).rpartition(":")[2]
                shifts.setdefault(name, []).append((label, point))
    return [_scatter("robustness-0", "Shifted against unshifted accuracy", shifts, names, None)] if shifts else []


def _reference(document: Document) -> str:
    return str((document["protocol"].get("reference") or {}).get("name") or "the reference")


def _point(document: Document) -> Point | None:
    metrics = document["metrics"]
    shifted, reference = metrics.get("top1"), metrics.get("reference_top1")
    if reference is None:
        reference = {"value": ((document.get("protocol") or {}).get("reference") or {}).get("top1")}
    if not isinstance(shifted, Mapping) or not is_number(shifted.get("value")) or not is_number(reference.get("value")):
        return None
    x, y = float(reference["value"]), float(shifted["value"])
    return x, y, _ends(reference, x), _ends(shifted, y)


def _ends(entry: Mapping[str, Any], value: float) -> tuple[float, float]:
    low, high = entry.get("low"), entry.get("high")
    return (float(low), float(high)) if is_number(low) and is_number(high) else (value, value)  # type: ignore[arg-type]


def logit(share: float) -> float:
    """Where a share is drawn."""
    share = min(max(share, LEAST), 1 - LEAST)
    return math.log(share / (1 - share))


def _scatter(
    name: str,
    title: str,
    models: Mapping[str, Sequence[tuple[str, Point]]],
    order: Sequence[str],
    line: Mapping[str, Any] | None,
) -> Plot:
    words = []
    standard = [(float(x), float(y)) for _, x, y in (line or {}).get("points") or []]
    everything = [value for points in models.values() for _, (_, _, xs, ys) in points for value in (*xs, *ys)]
    everything += [value for point in standard for value in point]
    low, high = min(map(logit, everything)) - 0.2, max(map(logit, everything)) + 0.2
    with plots.drawing(width=4.6, height=4.3) as (figure, axes):
        axes.plot([low, high], [low, high], color=MUTED, linestyle=(0, (2, 2)), linewidth=1.2, label="no loss (y = x)")
        if standard:
            across, up = zip(*((logit(x), logit(y)) for x, y in standard), strict=True)
            axes.scatter(across, up, s=9, color=MUTED, linewidths=0, label=f"{len(standard)} standard models")
        if line and is_number(line.get("slope")) and is_number(line.get("intercept")):
            ends = [line["slope"] * x + line["intercept"] for x in (low, high)]
            axes.plot([low, high], ends, color=MUTED, linewidth=1.2, label="their line")
        for model, points in models.items():
            index = list(order).index(model)
            for place, (shift, (x, y, xs, ys)) in enumerate(points):
                axes.errorbar(
                    logit(x),
                    logit(y),
                    xerr=[[logit(x) - logit(xs[0])], [logit(xs[1]) - logit(x)]],
                    yerr=[[logit(y) - logit(ys[0])], [logit(ys[1]) - logit(y)]],
                    fmt=plots.MARKERS[index % plots.SERIES],
                    color=plots.series_colour(index),
                    markersize=5.5,
                    elinewidth=0.9,
                    capsize=0,
                    label=clean(model) if place == 0 else None,
                )
                words.append(f"{model}, {shift}: {x:.1%} without, {y:.1%} with the shift")
        places = [tick for tick in TICKS if low <= logit(tick / 100) <= high]
        for setter in (axes.set_xticks, axes.set_yticks):
            setter([logit(tick / 100) for tick in places], [f"{tick:g}" for tick in places])
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("top-1 without the shift (%)")
        axes.set_ylabel("top-1 with the shift (%)")
        axes.grid(color=GRID)
        axes.tick_params(colors=TEXT)
        _, labels = axes.get_legend_handles_labels()
        figure.legend(loc="outside upper left", ncols=plots.legend_columns(labels))
        description = f"{title}, logit axes. {'; '.join(words)}."
        return Plot(title, plots.inline_svg(figure, name, title, description), description)
