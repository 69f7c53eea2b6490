"""From a study to its cells: every run with all its settings, named by a hash of what shapes its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

from softclip_cli import __version__
from softclip_cli.study.settings import Study, arm_name
from softclip_cli.study.trials import Choice, nested
from softclip_cli.training.settings import TrainSettings

FORMAT = 1
Stage = Literal["trial", "teacher", "study"]
# What a run's result does not depend on: places, processes, what is written down on the way.
NOT_SHAPING = {
    "data": ("corpus", "workers", "generated_pairs", "generated_noise"),
    "checkpoint": None,
    "log": None,
}


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        row, oracle: of the study; `arm` is both as a name.
        noise, data, seed: levels.
        stage: "trial" of some settings, "teacher" of another row, or the "study" proper.
        trial: number of the choice; 0 is the row's own settings.
        choice: dotted settings over the row's.
        settings: of the run.
        evaluate: what is measured beside retrieval on the split for choosing.
        curve: whether that is measured after each epoch.
        select: the split for choosing, and the metric on it.
        teacher: key of the cell whose run teaches this one.
        keep: whether another cell needs its weights.
        key: hash of all that shapes the result.
    """

    row: str
    oracle: bool
    noise: float
    data: float
    seed: int
    stage: Stage
    trial: int
    choice: Choice
    settings: TrainSettings
    evaluate: tuple[str, ...]
    curve: bool
    select: tuple[str, str]
    teacher: str | None
    keep: bool
    key: str

    @property
    def arm(self) -> str:
        """The row's name in tables."""
        return arm_name(self.row, self.oracle)

    @property
    def name(self) -> str:
        """For messages."""
        trial = f", trial {self.trial}" if self.stage == "trial" else ""
        return f"{self.arm}, noise {self.noise:g}, data {self.data:g}, seed {self.seed}{trial}"

    def labels(self) -> dict[str, Any]:
        """The columns that say which cell a result is of."""
        return {
            "objective": self.arm,
            "preset": self.settings.objective.name,
            "oracle": self.oracle,
            "noise": self.noise,
            "data": self.data,
            "seed": self.seed,
            "stage": self.stage,
            "trial": self.trial,
            "choice": json.dumps(self.choice, sort_keys=True),
        }


@dataclass(frozen=True)
class Level:
    """A noise × data level of an arm."""

    row: str
    oracle: bool
    noise: float
    data: float


Metrics = Mapping[str, float]


class Planner:
    """Makes cells of a study over a corpus.

    Args:
        study: the study.
        corpus: path of its corpus.
        fingerprint: of the corpus.
        only: rows to leave the others out; empty: all.
    """

    def __init__(self, study: Study, corpus: str, fingerprint: str, only: Sequence[str] = ()) -> None:
        self.study, self.corpus, self.fingerprint = study, corpus, fingerprint
        self.arms = [arm for arm in study.arms() if not only or arm[0] in only or arm_name(*arm) in only]
        self.teachers = {row.teacher_row for row in study.objective.values() if row.teacher_row}

    def levels(self) -> Iterator[Level]:
        """All of them, arms last: so that what is compared is run close together."""
        for data in self.study.data:
            for noise in self.study.noise:
                for row, oracle in self.arms:
                    own = self.study.objective[row].noise
                    if own is None or noise in own:
                        yield Level(row, oracle, noise, data)

    def cell(self, at: Level, seed: int, stage: Stage, trial: int, choice: Choice) -> Cell:
        """One run of an arm at a level."""
        study = self.study
        data = {
            "corpus": self.corpus,
            "share": at.data,
            "mismatched": at.noise,
            "drop_mismatched": at.oracle and at.noise > 0,
        }
        settings = study.run_settings(at.row, nested(choice), {"data": data, "schedule": {"seed": seed}})
        teacher = study.objective[at.row].teacher_row
        taught = None
        if teacher is not None:
            # Taught by that row as it stands: a tuned teacher would be another comparison.
            taught = self.cell(Level(teacher, False, at.noise, at.data), seed, "teacher", 0, {}).key
        evaluate = tuple(sorted(set(study.evaluate))) if stage != "trial" else ()
        select = (study.select.split, study.select.metric)
        curve = study.curve if stage != "trial" else study.select.when == "best"
        shaping = {
            "format": FORMAT,
            "softclip": __version__,
            "corpus": self.fingerprint,
            "settings": shaping_settings(settings),
            "evaluate": evaluate,
            "curve": curve,
            "select": select,
            "teacher": taught,
        }
        text = json.dumps(shaping, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        keep = at.row in self.teachers and not at.oracle and stage != "trial"
        where = (at.row, at.oracle, at.noise, at.data, seed)
        return Cell(*where, stage, trial, choice, settings, evaluate, curve, select, taught, keep, key)

    def trials(self) -> list[Cell]:
        """The runs from which settings are chosen; none without tuning."""
        tuning, cells = self.study.tuning, []
        if not tuning.trials:
            return []
        levels = list(self.levels())
        if not tuning.each:
            noise = tuning.noise or self.study.noise
            data = tuning.data or self.study.data
            levels = [Level(*arm, n, d) for d in data for n in noise for arm in self.arms]
        choices = {row: self.study.choices(row) for row, _ in self.arms}
        for seed in self.study.trial_seeds:
            for trial in range(tuning.trials):
                for at in levels:
                    cells += self._with_teacher(at, seed, "trial", trial, choices[at.row][trial])
        return cells

    def chosen(self, results: Mapping[str, Metrics]) -> dict[Level, tuple[int, Choice]]:
        """The choice of every arm and level: the one of the best mean over trial seeds (and levels), the first of equals.

        Args:
            results: key of a finished trial → the metric that is chosen by, under its column's name. A choice that lacks any of its runs
                is out; a level without any choice is left out.
        """
        if not self.study.tuning.trials:
            return {at: (0, {}) for at in self.levels()}
        column, each = self.study.select.column, self.study.tuning.each
        values: dict[Any, dict[int, list[float | None]]] = {}
        choices: dict[tuple[str, int], Choice] = {}
        for cell in self.trials():
            if cell.stage != "trial":
                continue
            where = (cell.row, cell.oracle, *((cell.noise, cell.data) if each else ()))
            value = results.get(cell.key, {}).get(column)
            values.setdefault(where, {}).setdefault(cell.trial, []).append(value)
            choices[cell.row, cell.trial] = cell.choice
        found = {}
        for at in self.levels():
            where = (at.row, at.oracle, *((at.noise, at.data) if each else ()))
            means = {
                trial: mean(v for v in several if v is not None)
                for trial, several in values.get(where, {}).items()
                if None not in several
            }
            if means:
                best = max(means, key=lambda trial: (means[trial], -trial))
                found[at] = (best, choices[at.row, best])
        return found

    def final(self, chosen: Mapping[Level, tuple[int, Choice]]) -> list[Cell]:
        """The study proper: seed by seed, so that all rows have their first runs soon. A row that teaches comes before its pupils."""
        cells = []
        for seed in self.study.seed_list:
            for at, (trial, choice) in chosen.items():
                cells += self._with_teacher(at, seed, "study", trial, choice)
        return cells

    def _with_teacher(self, at: Level, seed: int, stage: Stage, trial: int, choice: Choice) -> list[Cell]:
        teacher = self.study.objective[at.row].teacher_row
        own = self.cell(at, seed, stage, trial, choice)
        if teacher is None:
            return [own]
        return [self.cell(Level(teacher, False, at.noise, at.data), seed, "teacher", 0, {}), own]


def shaping_settings(settings: TrainSettings) -> dict[str, Any]:
    """All settings of a run that its result depends on."""
    document = settings.model_dump(mode="json")
    for section, names in NOT_SHAPING.items():
        if names is None:
            document.pop(section)
        else:
            document[section] = {key: value for key, value in document[section].items() if key not in names}
    return document


def unique(cells: Sequence[Cell]) -> list[Cell]:
    """Each run once: an oracle without noise, for example, is the row itself."""
    return list({cell.key: cell for cell in reversed(cells)}.values())[::-1]
