"""The scatter plot of effective robustness: shifted against reference accuracy, on logit axes, drawn from results alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.errors import HostError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKS = (0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5)
FINE_TICKS = (
    0.5,
    1,
    1.5,
    2,
    3,
    4,
    5,
    7,
    10,
    12,
    15,
    *range(20, 100, 5),
    97,
    98,
    99,
    99.5,
)  # where few of the others fit
COLUMNS = 3
MARKERS = ("o", "s", "D", "^", "v", "P")
SUFFIXES = (".png", ".svg", ".pdf")
STANDARD, MODEL, EQUAL = "#6b7280", "#c2410c", "#9ca3af"
LEAST, MOST = 0.002, 0.998  # accuracies outside are drawn at these: their logits leave the paper


def write_plot(documents: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw one panel a shifted set: standard models, their line, y = x, and the models with exact intervals.

    Args:
        documents: results of the task `robustness`; several models may have results on the same set.
        path: a PNG, SVG or PDF file.

    Raises:
        UsageError: another suffix, or no such result.
        HostError: the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"unusable plot file {path}", f"its suffix is none of {', '.join(SUFFIXES)}", "use x.png")
    wanted = [document for document in documents if document["task"] == "robustness"]
    if not wanted:
        raise UsageError("no result to draw", "none is of the task robustness")
    import matplotlib
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for document in wanted:
        panels.setdefault((document["dataset"]["name"], document["dataset"]["split"]), []).append(document)
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context({"font.size": 9, "text.parse_math": False, "svg.hashsalt": "softclip"}):
        figure = Figure(figsize=(4.4 * columns, 4.3 * rows), dpi=150, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, group in zip(axes, panels.values(), strict=False):
            _draw(panel, group)
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except OSError as error:
            raise HostError(f"the plot cannot be written to {path}", str(error), "choose another file") from error
    return path


def _place(share: float | np.ndarray) -> Any:
    """Where an accuracy is on a logit axis."""
    clipped = np.clip(share, LEAST, MOST)
    return np.log(clipped / (1 - clipped))


def _draw(panel: Axes, group: Sequence[dict[str, Any]]) -> None:
    line = next((document["details"]["line"] for document in group if "line" in document["details"]), None)
    standard = np.array([[first, second] for _, first, second in line["points"]] if line else np.zeros((0, 2)))
    mine = np.array([[d["metrics"][key]["value"] for key in ("reference_top1", "top1")] for d in group])
    reach = [[d["metrics"][key][end] for key in ("reference_top1", "top1")] for d in group for end in ("low", "high")]
    # Square, so that y = x is the diagonal.
    values = _place(np.concatenate([standard, np.array(reach)]))
    low, high = float(values.min()) - 0.25, float(values.max()) + 0.25
    shares = np.linspace(low, high, 200)
    panel.plot(shares, shares, color=EQUAL, linestyle=":", linewidth=1.2, label="y = x")
    if line:
        across, up = _place(standard).T
        label = f"{len(standard)} standard models"
        panel.scatter(across, up, s=14, color=STANDARD, alpha=0.7, linewidths=0, label=label)
        panel.plot(
            shares, line["slope"] * shares + line["intercept"], color=STANDARD, linewidth=1.4, label="their line"
        )
    for number, (document, point) in enumerate(zip(group, mine, strict=True)):
        errors = []
        for key, value in zip(("reference_top1", "top1"), point, strict=True):
            ends = (document["metrics"][key]["low"], document["metrics"][key]["high"])
            errors.append(np.abs(_place(np.array(ends)) - _place(value))[:, None])
        across, up = _place(point)
        panel.errorbar(
            across,
            up,
            xerr=errors[0],
            yerr=errors[1],
            fmt=MARKERS[number % len(MARKERS)],
            color=MODEL,
            capsize=2.5,
            markersize=5,
            elinewidth=1,
            label=document["model"]["name"],
        )
    first = group[0]
    data, reference = first["dataset"], first["protocol"]["reference"]
    same = data["name"] == reference["name"]
    robust = first["metrics"].get("effective_robustness")
    title = data["split"] if same else data["name"]
    if robust is not None and len(group) == 1:
        title += f"\neffective robustness {robust['value']:+.1f} points ({robust['low']:+.1f} to {robust['high']:+.1f})"
    panel.set_title(title, fontsize=9.5)
    words = f", {reference['classes']:,} classes" if not same else ""
    panel.set_xlabel(f"top-1 on {reference['name']}, {reference['split']}{words} (%)")
    panel.set_ylabel(f"top-1 on {data['split'] if same else data['name']} (%)")
    inside = [[tick for tick in ticks if low <= _place(tick / 100) <= high] for ticks in (TICKS, FINE_TICKS)]
    ticks = inside[0] if len(inside[0]) > 3 else inside[1]
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_ticks([float(_place(tick / 100)) for tick in ticks], [f"{tick:g}" for tick in ticks])
    panel.set_xlim(low, high)
    panel.set_ylim(low, high)
    panel.set_aspect("equal")
    panel.grid(color="#e5e7eb", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=8, loc="upper left")
