"""Plots of a study as PNG and SVG: a metric against noise, data and compute, each line named where it ends."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.reports.plots import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours without the yellow, told apart with any kind of colour vision, then others; markers differ besides.
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00",
    "#000000", "#7f7f7f", "#8c510a", "#5e3c99", "#a6266e", "#4d7c0f", "#b91c1c", "#0e7490",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
VARIANT = " ("  # what follows it in a name says how a row differs from another: same colour, dashed
INK, GRID = "#222222", "#dddddd"
DODGE = 0.008  # of a panel's width, between two lines
LABEL_GAP = 0.21  # inches between the names of two lines
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Point:
    """A value with the ends of its interval (NaN: none)."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan


Panel = Mapping[str, Sequence[Point]]


def line_panels(
    path: Path,
    panels: Mapping[str, Panel],
    *,
    title: str,
    x_label: str,
    y_label: str,
    percent: bool = False,
    log: bool = False,
    curve: bool = False,
    order: Sequence[str] = (),
) -> list[Path]:
    """Draw panels, two in a row, one line a name, and write PATH.png and PATH.svg.

    Args:
        path: without a suffix.
        panels: heading → name → points.
        title, x_label, y_label: words.
        percent: x is a share and shown in percent.
        log: x in powers of two.
        curve: many points a line: only the last is marked, and the steep beginning is cut off.
        order: names in the order of their colours, so that they have the same in all plots.

    Returns:
        The files.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys([*order, *(name for panel in panels.values() for name in panel)]))
    longest = max(map(len, names), default=0)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": path.name}):
        columns = min(2, len(panels))
        rows = math.ceil(len(panels) / columns)
        height = 4.2 + 0.16 * max(0, len(names) - 8)
        figure = Figure(
            (columns * (3.6 + 0.085 * longest) + 0.6, rows * height), layout="constrained", facecolor="white"
        )
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (heading, panel) in zip(grid.flat, panels.items(), strict=False):
            for place, (name, points) in enumerate(panel.items()):
                # Beside each other, not over each other: intervals at the same noise or share can then be read.
                shift = (place - (len(panel) - 1) / 2) * DODGE if percent else 0.0
                _line(axes, _look(name, names), [_moved(p, shift, panel, log) for p in points], curve)
            _scale(axes, panel, percent, log)
            axes.set_xlabel(x_label)
            if heading:
                axes.set_title(clean(heading), fontsize=11, loc="left")
        for axes in grid[:, 0]:
            axes.set_ylabel(clean(y_label))
        if curve:
            early = [p.y for panel in panels.values() for points in panel.values() for p in points[: len(points) // 4]]
            late = [p.y for panel in panels.values() for points in panel.values() for p in points[len(points) // 4 :]]
            if early and min(early) < min(late):
                grid[0, 0].set_ylim(bottom=min(late) - 0.05 * (max(late) - min(late)))
        letters = int(figure.get_figwidth() * 11)  # of a line, at this size
        figure.suptitle(textwrap.fill(clean(title), letters), fontsize=12.5, x=0.01, ha="left")
        for axes, panel in zip(grid.flat, panels.values(), strict=False):
            _name_lines(axes, panel, names, height)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
        figure.savefig(files[0], dpi=160)
        figure.savefig(files[1], metadata={"Date": None})
    return files


def _look(name: str, names: Sequence[str]) -> tuple[str, str, Any]:
    """Colour, marker and dash of a line; a variant has the colour of what it is one of, dashed. A second round is dotted."""
    base = name.split(VARIANT)[0]
    plain = [other for other in names if VARIANT not in other or other.split(VARIANT)[0] not in names]
    index = plain.index(base if base in plain else name)
    dash: Any = (0, (4, 2)) if name not in plain else (0, (1, 1.5)) if index >= len(COLOURS) else "-"
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], dash


def _moved(point: Point, shift: float, panel: Panel, log: bool) -> Point:
    """A point moved by a share of the panel's width."""
    xs = [p.x for points in panel.values() for p in points]
    low, high = min(xs), max(xs)
    x = point.x * (high / low) ** shift if log else point.x + shift * (high - low)
    return replace(point, x=x)


def _line(axes: Axes, look: tuple[str, str, Any], points: Sequence[Point], curve: bool) -> None:
    colour, marker, dash = look
    xs, ys = [p.x for p in points], [p.y for p in points]
    axes.plot(
        xs,
        ys,
        color=colour,
        marker=marker,
        linestyle=dash,
        markeredgecolor="white",
        markeredgewidth=0.7,
        markevery=[len(xs) - 1] if curve and xs else None,
        linewidth=1.4 if curve else 1.9,
    )
    known = [p for p in (points[-1:] if curve else points) if not math.isnan(p.low)]
    if known:
        ends = [p.low for p in known], [p.high for p in known]
        axes.vlines([p.x for p in known], *ends, color=colour, alpha=0.45, linewidth=1.4)


def _scale(axes: Axes, panel: Panel, percent: bool, log: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = sorted({p.x for points in panel.values() for p in points})
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    if percent:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _name_lines(axes: Axes, panel: Panel, names: Sequence[str], height: float) -> None:
    """Write each line's name at its last point, moved apart where they would overlap."""
    low, high = axes.get_ylim()  # shared by all panels, and final: everything is drawn
    ends = sorted((points[-1].y, name, points[-1].x) for name, points in panel.items() if points)
    right = max((x for _, _, x in ends), default=1.0)
    places = spread([(y - low) / (high - low) for y, _, _ in ends], LABEL_GAP / height)
    if places:  # inside the panel's height where that is enough
        places = [place - max(0.0, places[-1] - 1.0) for place in places]
        places = [place + max(0.0, -places[0]) for place in places]
    for (y, name, x), place in zip(ends, places, strict=True):
        axes.annotate(
            clean(name),
            (x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=_look(name, names)[0],
            fontsize=9.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID if x == right else "#aaaaaa", "linewidth": 0.8, "shrinkB": 4},
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved apart to at least `gap`, as little as possible, around where they were."""
    groups: list[list[float]] = []  # [sum of (place − offset in the group), members]
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1:
            (one, m), (two, n) = groups[-2], groups[-1]
            if two / n - one / m >= gap * m:
                break
            groups[-2:] = [[one + two - gap * m * n, m + n]]
    result = []
    for total, count in groups:
        result += [total / count + gap * i for i in range(int(count))]
    return result
