"""Plots as inline SVG that takes its colours from the page: text in `currentColor`, series in CSS variables.

matplotlib draws in stand-in colours, which are then replaced, so that one plot fits light, dark and print. Series
differ by marker, dash or hatch as well as by colour. `style.css` defines the variables.
"""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softclip_cli.reports.tables import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # in XML and HTML
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
POINTS = 400  # a line is thinned to about as many points: more cannot be seen
SERIES = 6  # distinct looks in style.css; further series begin again
TEXT, MUTED, GRID, PAPER = "#01a5f0", "#01a5f1", "#01a5f2", "#01a5f3"
STAND_INS = {TEXT: "currentColor", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    f"#01a5e{number}": f"var(--series-{number + 1})" for number in range(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1)), (0, (8, 3)))
HATCHES = ("", "////", "xxxx", "....", "\\\\\\\\", "++++")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and restyled
    "font.family": "sans-serif",
    "font.size": 11,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Plot:
    """One plot: its title, the inline SVG, and in words what it shows (its text alternative)."""

    title: str
    svg: str
    description: str


def series_colour(index: int) -> str:
    """The stand-in colour of a series."""
    return f"#01a5e{index % SERIES}"


@contextmanager
def drawing(width: float = 4.6, height: float = 3.0, rows: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure in the page's style, sizes in inches; small, so that its text is readable on a phone."""
    import matplotlib
    from matplotlib import rcsetup
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "axes.prop_cycle": rcsetup.cycler("color", [TEXT])}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, 1)


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Draw `figure` as SVG for direct use in HTML.

    Args:
        figure: the finished figure, made under `drawing()`.
        name: unique on the page; keeps the identifiers of several plots apart.
        title, description: the accessible name and its explanation.

    Returns:
        An `<svg>` element without fixed size, colours as CSS, the same bytes for the same figure.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({**_only_svg(STYLE), "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", clean(stream.getvalue())))
    for parent in list(root.iter()):
        # A style element in inline SVG would reach the whole page; what it says is in style.css.
        for child in [child for child in parent if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)
        if "fill" in parent.attrib:  # a CSS variable is certain to work in a style only
            parent.set("style", f"fill: {parent.attrib.pop('fill')}; {parent.get('style', '')}".rstrip("; "))
    _unique_identifiers(root, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-text")
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'text'}"})
        element.text = text
        root.insert(0, element)
    text = ElementTree.tostring(root, encoding="unicode")
    for stand_in, colour in STAND_INS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)  # the page's own
    return re.sub(r"\s*\n\s*", "\n", text)


def clean(text: str) -> str:
    """Text without the characters that XML and HTML must not contain (NUL and its like, lone surrogates)."""
    return FORBIDDEN.sub("\ufffd", text)


def _only_svg(style: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in style.items() if key.startswith(("svg.", "font.", "hatch."))}


def _unique_identifiers(root: ElementTree.Element, name: str) -> None:
    """Prefix the identifiers that are referred to and drop all others (matplotlib repeats them in every figure)."""
    inside = re.compile(r"url\(#([^)]+)\)")
    links = ("href", f"{{{XLINK}}}href")
    used: set[str] = set()
    for element in root.iter():
        used.update(target for value in element.attrib.values() for target in inside.findall(value))
        used.update(element.attrib[link].removeprefix("#") for link in links if link in element.attrib)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id" and value not in used:
                del element.attrib[key]
            elif key == "id":
                element.set(key, f"{name}-{value}")
            elif key in links:
                element.set(key, f"#{name}-{value.removeprefix('#')}")
            else:
                element.set(key, inside.sub(rf"url(#{name}-\1)", value))


def loss_plot(name: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Plot:
    """Training loss over steps, smoothed over the raw line, with the chance line ln(batch size).

    Args:
        name: unique on the page.
        curves: model name → lines of `metrics.jsonl` with `step`, `loss` and, where known, `chance`.
    """
    chances = sorted(
        {round(float(line["chance"]), 6) for lines in curves.values() for line in lines if "chance" in line}
    )
    ends = []
    with drawing() as (figure, axes):
        for index, (model, lines) in enumerate(curves.items()):
            steps, losses = _points(lines, "loss")
            smooth = smoothed(losses)
            thin = max(len(steps) // POINTS, 1)
            axes.plot(steps[::thin], losses[::thin], color=series_colour(index), linewidth=0.8, alpha=0.35)
            _series(axes, index, steps[::thin], smooth[::thin], model)
            if smooth:
                ends.append(f"{model} ends at {smooth[-1]:.2f}")
        for chance in chances:
            axes.axhline(chance, color=MUTED, linestyle=(0, (2, 2)), linewidth=1.2)
            axes.annotate(
                f"chance: ln({math.exp(chance):.0f}) = {chance:.2f}",
                (1, chance),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=TEXT,
                fontsize=10,
            )
        _finish(axes, "step", "loss", legend=len(curves) > 1)
        axes.margins(y=0.1)
        chance_words = ", ".join(f"{chance:.2f}" for chance in chances)
        description = f"Training loss over steps. {'; '.join(ends)}. " + (
            f"Guessing at random gives {chance_words}." if chances else ""
        )
        return Plot(
            "Training loss", inline_svg(figure, name, "Training loss", description.strip()), description.strip()
        )


def line_plot(
    name: str,
    title: str,
    label: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    percent: bool = False,
    markers: bool = True,
    order: Sequence[str] = (),
) -> Plot:
    """A quantity over steps, one line a model.

    Args:
        name: unique on the page.
        title: of the plot.
        label: of the vertical axis.
        curves: model name → (step, value) points.
        percent: show the values times 100, with a percent sign.
        markers: mark each point (evaluations), or draw a plain line (a diagnostic of every interval).
        order: all models of the page, so that each keeps its look where others have no such curve.
    """
    ends = []
    with drawing() as (figure, axes):
        for index, (model, points) in enumerate(curves.items()):
            points = [(step, value * (100 if percent else 1)) for step, value in points if math.isfinite(value)]
            look = order.index(model) if model in order else index
            _series(axes, look, [p[0] for p in points], [p[1] for p in points], model, every=1 if markers else None)
            if points:
                ends.append(f"{model} ends at {points[-1][1]:.4g}{' %' if percent else ''}")
        _finish(axes, "step", f"{label} (%)" if percent else label, legend=max(len(curves), len(order)) > 1)
        if not any(any(value < 0 for _, value in points) for points in curves.values()):
            axes.set_ylim(bottom=min(axes.get_ylim()[0], 0) if percent else None)
        description = f"{title} over steps. {'; '.join(ends)}."
        return Plot(title, inline_svg(figure, name, title, description), description)


def bar_plot(
    name: str,
    title: str,
    label: str,
    models: Sequence[str],
    groups: Mapping[str, Sequence[Cell | None]],
    *,
    percent: bool = True,
) -> Plot:
    """Horizontal bars with 95 % intervals, grouped, one bar a model in each group.

    Args:
        name: unique on the page.
        title: of the plot.
        label: of the axis.
        models: names, in the order of the cells.
        groups: group name → one cell a model.
        percent: values are shares, shown times 100; else they are shown as they are.
    """
    scale = 100 if percent else 1
    thickness = 0.8 / max(len(models), 1)
    words = []
    height = 0.9 + len(groups) * (0.2 + 0.19 * max(len(models), 1))
    with drawing(width=4.8, height=height) as (figure, axes):
        for index, model in enumerate(models):
            offsets, values, errors = [], [], []
            for place, cells in enumerate(groups.values()):
                cell = cells[index]
                if cell is None:
                    continue
                offsets.append(place + (index - (len(models) - 1) / 2) * thickness)
                values.append(cell.value * scale)
                low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
                errors.append((max(cell.value - low, 0) * scale, max(high - cell.value, 0) * scale))
            axes.barh(
                offsets,
                values,
                height=thickness * 0.86,
                xerr=list(zip(*errors, strict=True)) if errors else None,
                facecolor=series_colour(index),
                edgecolor=PAPER,
                linewidth=0,
                hatch=HATCHES[index % SERIES],
                error_kw={"ecolor": TEXT, "elinewidth": 1.1, "capsize": 2},
                label=clean(model),
            )
        for group, cells in groups.items():
            known = [
                f"{model} {cell.value:{'.1%' if percent else '.3f'}}"
                for model, cell in zip(models, cells, strict=True)
                if cell
            ]
            words.append(f"{group}: {', '.join(known)}")
        axes.set_yticks(range(len(groups)), [clean(group) for group in groups])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        left, right = axes.get_xlim()
        axes.set_xlim(0 if percent else left, max(right, 1 if percent else 0))
        axes.set_xlabel(clean(label))
        if len(models) > 1:
            figure.legend(loc="outside upper left", ncols=legend_columns(models))
        description = f"{title}. {'; '.join(words)}."
        return Plot(title, inline_svg(figure, name, title, description), description)


def smoothed(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Centred running mean over a window of `share` of the values (at least 5 of 20), shrinking towards the ends."""
    half = max(int(len(values) * share / 2), min(len(values) // 10, 2))
    totals = [0.0]
    for value in values:
        totals.append(totals[-1] + value)
    result = []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        first, after = place - reach, place + reach + 1
        result.append((totals[after] - totals[first]) / (after - first))
    return result


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(float(line["step"]), float(line[key])) for line in lines if is_number(line.get(key))]
    return [point[0] for point in points], [point[1] for point in points]


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _series(
    axes: Axes, index: int, steps: Sequence[float], values: Sequence[float], label: str, every: int | None = None
) -> None:
    """One line in the look of series `index`; with a marker at about five points, or at every `every`-th."""
    spacing: Any = every or max(len(steps) // 5, 1)
    axes.plot(
        steps,
        values,
        color=series_colour(index),
        linestyle=DASHES[index % SERIES],
        marker=MARKERS[index % SERIES],
        markevery=spacing if every else ((spacing // 2 + index * spacing // 3) % spacing, spacing),
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        label=clean(label),
    )


def _finish(axes: Axes, x_label: str, y_label: str, *, legend: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(x_label)
    axes.set_ylabel(clean(y_label))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if legend:
        _, labels = axes.get_legend_handles_labels()
        axes.figure.legend(loc="outside upper left", ncols=legend_columns(labels))  # type: ignore[union-attr]


def legend_columns(labels: Sequence[str]) -> int:
    """As many columns as names of this length have room for."""
    longest = max(map(len, labels), default=1)
    return max(1, min(len(labels), 4, 44 // (longest + 6)))
