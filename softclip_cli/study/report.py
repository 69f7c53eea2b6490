"""A study's report from its table of results: lines with intervals and tests, as Markdown, CSV and plots."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.config import build, read_toml
from softclip_cli.errors import UsageError
from softclip_cli.study.settings import Study, read_study
from softclip_cli.study.statistics import Line, Mean, curves, default_metric, summarise
from softclip_cli.study.store import read_table

if TYPE_CHECKING:
    import pandas as pd

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Report:
    """What a study found on one metric.

    Attributes:
        title: of the study.
        metric, when, baseline: what is reported, and against what.
        lines: by data, noise and row.
        table: the results that they come from.
        select: the metric that was chosen by.
    """

    title: str
    metric: str
    when: str
    baseline: str
    lines: list[Line]
    table: pd.DataFrame
    select: str

    @property
    def facts(self) -> list[str]:
        """What must be known to read the table, a sentence each."""
        seeds = sorted({line.mean.n for line in self.lines})
        span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        compared = [line for line in self.lines if line.comparison]
        said = [
            f"{self.metric}, {'after the last step' if self.when == 'last' else f'at the epoch that is best by {self.select}'}; "
            f"mean over {span} seeds, in brackets the 95 % t interval."
        ]
        if compared:
            pairs = min(line.comparison.difference.n for line in compared if line.comparison)
            said.append(
                f"Differences from {self.baseline} are paired by seed, which decides weights, order, captions and samples; p values are "
                f"of the paired t test and of Wilcoxon's signed-rank test, both after Holm's correction over {len(compared)} comparisons."
            )
            if pairs < 6:
                said.append(
                    f"With {pairs} pairs, Wilcoxon's p cannot be below {2 / 2**pairs:.3g} even before the correction."
                )
        trials = self.table[self.table["stage"] == "trial"]
        if len(trials):
            each = trials["trial"].nunique()
            said.append(
                f"Settings were chosen from {each} trials for every row, by {self.select}, on seeds that are none of these."
            )
        return said


def open_report(where: Path, *, metric: str | None = None, baseline: str | None = None, when: str = "last") -> Report:
    """Read results and compute a report's lines.

    Args:
        where: a study file (its results are in results/NAME), the folder of its results, or the Parquet file.
        metric: a column; default: rsum on test, or what there is.
        baseline: a row's name; default: what the study says.
        when: "last" or "best".

    Raises:
        UsageError: no such file.
        DataError: no results, or none of that metric or baseline.
    """
    study: Study | None = None
    if where.suffix == ".toml":
        study = read_study(where)
        where = Path("results") / study.name
    elif not where.exists():
        raise UsageError(
            f"{where} is not there",
            "neither a study file nor a folder of results",
            "softclip study run STUDY.toml makes one",
        )
    beside = (where if where.is_dir() else where.parent) / "study.toml"
    if study is None and beside.is_file():
        study = build(Study, read_toml(beside))
    table = read_table(where)
    select = study.select.column if study else "val/rsum"
    chosen = metric or default_metric(table, select)
    against = baseline or (study.compared_with if study else str(table["objective"].iloc[0]))
    title = study.title or study.name if study else where.stem
    return Report(title, chosen, when, against, summarise(table, chosen, against, when), table, select)


def places(metric: str) -> int:
    """Decimal places that a metric is shown with: points and ranks two, shares four."""
    return 2 if metric.rpartition("/")[2] in ("rsum", "image_to_text_median_rank", "text_to_image_median_rank") else 4


def interval(mean: Mean, digits: int) -> str:
    """The ends of an interval in brackets; empty where there is none."""
    return "" if math.isnan(mean.low) else f" ({mean.low:.{digits}f} to {mean.high:.{digits}f})"


def p_value(value: float) -> str:
    """A p value as it is shown."""
    return (
        ""
        if math.isnan(value)
        else "< 0.0001"
        if value < 0.0001
        else f"{value:.4f}"
        if value < 0.01
        else f"{value:.3f}"
    )


def cells(line: Line, report: Report) -> list[str]:
    """A line as the table shows it, in the order of `COLUMNS`."""
    made, digits = line.comparison, places(report.metric)
    difference = "baseline" if line.objective == report.baseline else ""
    if made:
        mark = " *" if made.t_test_holm < SIGNIFICANT else ""
        difference = f"{made.difference.value:+.{digits}f}{interval(made.difference, digits)}{mark}"
    return [
        f"{line.noise:.0%}",
        f"{line.data:.4g}",
        line.objective,
        str(line.mean.n),
        f"{line.mean.value:.{digits}f}{interval(line.mean, digits)}",
        difference,
        p_value(made.t_test_holm) if made else "",
        p_value(made.wilcoxon_holm) if made else "",
        f"{line.cpu_seconds:.1f}",
        "" if line.choice == "{}" else line.choice.strip("{}").replace('"', ""),
    ]


COLUMNS = (
    "noise",
    "data",
    "objective",
    ">n",
    ">mean (95 %)",
    ">difference (95 %)",
    ">p (t)",
    ">p (Wilcoxon)",
    ">CPU s",
    "tuned",
)


def markdown(report: Report) -> str:
    """The report as a Markdown table with what must be known to read it."""
    columns = [name.lstrip(">") for name in COLUMNS]
    rows = [cells(line, report) for line in report.lines]
    kept = [place for place, _ in enumerate(columns) if columns[place] != "tuned" or any(row[place] for row in rows)]
    lines = [
        f"### {report.title}",
        "",
        "| " + " | ".join(columns[i] for i in kept) + " |",
        "|" + "|".join("---:" if COLUMNS[i].startswith(">") else "---" for i in kept) + "|",
        *("| " + " | ".join(row[i].replace("|", "\\|") for i in kept) + " |" for row in rows),
        "",
        *report.facts,
        f"\\* p < {SIGNIFICANT:g} by the corrected t test.",
    ]
    return "\n".join(lines) + "\n"


def csv_text(lines: Sequence[Line]) -> str:
    """The lines as CSV, one value a column, and the seeds' own values at the end."""
    stream = io.StringIO()
    seeds = sorted({seed for line in lines for seed in line.values})
    rows: list[dict[str, Any]] = [
        {**line.as_dict(), **{f"seed_{seed}": line.values.get(seed, "") for seed in seeds}} for line in lines
    ]
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)
    return stream.getvalue()


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Draw what the study varies: the metric against noise, against the data, and against compute; PNG and SVG of each."""
    from softclip_cli.reports.study_plots import Point, line_panels

    lines, files = report.lines, []
    arms = list(dict.fromkeys(line.objective for line in lines))
    noises, shares = (sorted({getattr(line, name) for line in lines}) for name in ("noise", "data"))

    def point(x: float, mean: Mean) -> Point:
        return Point(x, mean.value, mean.low, mean.high)

    draw = partial(line_panels, title=report.title, order=arms)
    if len(noises) > 1:
        panels = {
            f"{share:.4g} of the data" if len(shares) > 1 else "": {
                arm: [point(line.noise, line.mean) for line in lines if line.objective == arm and line.data == share]
                for arm in arms
            }
            for share in shares
        }
        files += draw(folder / "noise", panels, x_label="captions exchanged", y_label=report.metric, percent=True)
    if len(shares) > 1:
        panels = {
            f"{noise:.0%} exchanged" if len(noises) > 1 else "": {
                arm: [point(line.data, line.mean) for line in lines if line.objective == arm and line.noise == noise]
                for arm in arms
            }
            for noise in noises
        }
        files += draw(
            folder / "data",
            panels,
            x_label="share of the training pairs",
            y_label=report.metric,
            percent=True,
            log=True,
        )
    measured = curves(report.table, report.select)
    largest = max(shares)
    panels = {}
    for noise in noises:
        panel = {
            arm: [point(x, mean) for x, mean in measured[arm, noise, largest]]
            for arm in arms
            if (arm, noise, largest) in measured
        }
        if panel:
            panels[f"{noise:.0%} exchanged"] = panel
    if panels:
        files += draw(folder / "compute", panels, x_label="CPU seconds of training", y_label=report.select, curve=True)
    return files
