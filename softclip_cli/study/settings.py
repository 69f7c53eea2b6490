"""The settings of a study, as its TOML file gives them. The docstring under a field is its help text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from softclip_cli import recipes
from softclip_cli.config import Conflict, Section, build, merge_into, read_toml
from softclip_cli.errors import SoftclipError, UsageError
from softclip_cli.objectives.settings import ObjectiveSettings, merged, presets
from softclip_cli.study.trials import nested, trials
from softclip_cli.training.settings import TrainSettings

ORACLE = " (oracle)"  # ends the name of a row that trains on what was not exchanged
TUNING_SEED = 1000  # the first seed of trials: none of theirs is one of the study's
TASKS = ("retrieval", "zeroshot", "probe", "shift", "composition")
Seeds = int | tuple[int, ...]


class Generate(Section):
    """A generated corpus to study on, made in the study's folder."""

    pairs: int = Field(default=10_000, ge=100)
    """training pairs"""
    noise: float = Field(default=0.0, ge=0, le=1)
    """share of them with bad captions"""
    seed: int = Field(default=0, ge=0)
    """of the drawing"""
    image_size: int = Field(default=64, ge=16)
    """side of the pictures in pixels"""
    per_class: int = Field(default=16, ge=1)
    """pictures of each class in the evaluation splits"""


class Select(Section):
    """What settings and epochs are chosen by."""

    split: str = "val"
    """the split for choosing; never the one that is reported"""
    metric: str = "rsum"
    """of retrieval on that split"""
    when: Literal["last", "best"] = "last"
    """which moment of a trial counts: after its last step, or its best epoch (needs curve = true)"""

    @property
    def column(self) -> str:
        """The metric's name in the results."""
        return f"{self.split}/{self.metric}"


class Tuning(Section):
    """Trials before the study proper: the same number for every objective, judged on the split for choosing."""

    trials: int = Field(default=0, ge=0)
    """settings tried for each objective, its own among them; 0: no tuning"""
    grid: dict[str, Any] = Field(default_factory=dict)
    """dotted setting → list of values, or {low, high, log}: what all objectives try, besides their own `tune`"""
    seeds: Seeds = 1
    """of each trial: a number (from 1000 on, so that none is a seed of the study) or a list"""
    each: bool = True
    """choose for every noise × data level by itself; else one choice for all levels, by the mean over those that are tried"""
    noise: tuple[float, ...] | None = None
    """levels that are tried, where each = false; unset: the study's"""
    data: tuple[float, ...] | None = None
    """the same for shares of the data"""
    draw: int = Field(default=0, ge=0)
    """seed of the random choice of trials, where there are more combinations than trials"""


class Row(ObjectiveSettings):
    """One objective of a study: the settings of `[objective]` and what else differs for it."""

    train: dict[str, Any] = Field(default_factory=dict)
    """settings of a run that differ for this row, by section: train.optimizer.lr = 3e-4"""
    oracle: bool = False
    """add a second row that trains on the pairs whose captions were not exchanged"""
    tune: dict[str, Any] = Field(default_factory=dict)
    """dotted setting → list of values, or {low, high, log}, tried for this row only"""
    teacher_row: str | None = None
    """the frozen teacher is another row's run: same noise, data and seed, trained first. Only with both towers frozen"""
    noise: tuple[float, ...] | None = None
    """levels of this row, where it has not all of the study's"""

    def conflicts(self) -> list[Conflict]:
        """Said of the settings of whole runs (`Study.conflicts`), where a row's `train` counts, too."""
        return []

    def objective(self) -> dict[str, Any]:
        """The row's `[objective]` section."""
        own = set(ObjectiveSettings.model_fields)
        chosen = {k: v for k, v in self.model_dump(mode="json").items() if k in own and v is not None}
        return chosen | ({"teacher_model": f"row:{self.teacher_row}"} if self.teacher_row else {})


class Study(Section):
    """All settings of a study."""

    name: str = Field(default="study", min_length=1, pattern=r"^[\w.-]+$")
    """names the folder of its results"""
    title: str = ""
    """what it asks, in a line; on tables and plots"""
    recipe: str | None = None
    """recipe that all runs start from"""
    config: str | None = None
    """or a TOML file of settings that they start from"""
    train: dict[str, Any] = Field(default_factory=dict)
    """settings of all runs, by section, as a configuration file has them"""
    corpus: str | None = None
    """prepared corpus (or --data)"""
    generate: Generate | None = None
    """or a generated one"""
    objective: dict[str, Row] = Field(min_length=1)
    """rows of the study: a name of your choice → an objective's settings"""
    noise: tuple[float, ...] = (0.0,)
    """shares of exchanged captions (data.mismatched)"""
    data: tuple[float, ...] = (1.0,)
    """shares of the samples that are trained on (data.share); a smaller share's samples are among a larger one's"""
    seeds: Seeds = 5
    """a number (0, 1, ...) or a list; a seed decides weights, order, exchanged captions and samples, alike for all rows"""
    evaluate: tuple[str, ...] = ("retrieval:test",)
    """what is measured after training: TASK:NAME with retrieval, zeroshot, probe, shift or composition, and a split or evaluation of the
    corpus, a dataset of the catalogue, or a folder. The split for choosing is always measured"""
    curve: bool = False
    """measure on the split for choosing after every epoch: for plots, and for the best epoch beside the last"""
    select: Select = Select()
    """what is chosen by"""
    tuning: Tuning = Tuning()
    """trials of settings"""
    baseline: str = ""
    """the row that others are compared with; empty: the first"""
    keep_runs: bool = False
    """keep the checkpoints of runs that train whole towers"""

    @field_validator("objective", mode="before")
    @classmethod
    def _named(cls, rows: Any) -> Any:
        """A row that is named as a preset is that preset, unless it says otherwise."""
        if not isinstance(rows, Mapping):
            return rows
        return {
            name: {"name": name, **row} if isinstance(row, Mapping) and name in presets() else row
            for name, row in rows.items()
        }

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def trial_seeds(self) -> tuple[int, ...]:
        """The seeds of a trial."""
        chosen = self.tuning.seeds
        return tuple(range(TUNING_SEED, TUNING_SEED + chosen)) if isinstance(chosen, int) else chosen

    @property
    def compared_with(self) -> str:
        """The name of the baseline."""
        return self.baseline or next(iter(self.objective))

    def arms(self) -> list[tuple[str, bool]]:
        """(row, whether it is its oracle), in order."""
        return [
            (name, oracle)
            for name, row in self.objective.items()
            for oracle in ((False, True) if row.oracle else (False,))
        ]

    def base(self) -> dict[str, Any]:
        """The settings that all runs start from.

        Raises:
            UsageError: no such recipe or file.
        """
        merged: dict[str, Any] = {}
        if self.recipe:
            merge_into(merged, recipes.read(self.recipe))
        if self.config:
            merge_into(merged, recipes.settings_of(read_toml(Path(self.config))))
        return merge_into(merged, self.train)

    def run_settings(self, row: str, *layers: Mapping[str, Any]) -> TrainSettings:
        """The settings of a row's run, with further layers over them.

        Raises:
            UsageError: lists every problem at once.
        """
        chosen = self.objective[row]
        return build(TrainSettings, self.base(), {"objective": chosen.objective()}, chosen.train, *layers)

    def conflicts(self) -> list[Conflict]:
        """What does not go together, in the study and in the runs that it describes."""
        checks: list[tuple[tuple[str, ...], bool, str]] = [
            (("recipe", "config"), bool(self.recipe and self.config), "recipe and config exclude each other"),
            (("corpus", "generate"), bool(self.corpus and self.generate), "corpus and generate exclude each other"),
            (("baseline",), bool(self.baseline) and self.baseline not in [arm_name(*arm) for arm in self.arms()],
             f"baseline = {self.baseline!r} is no row: " + ", ".join(arm_name(*arm) for arm in self.arms())),
            (("seeds",), not self.seed_list, "seeds are none"),
            (("noise",), not self.noise or not all(0 <= share <= 1 for share in self.noise), "noise must be shares from 0 to 1"),
            (("data",), not self.data or not all(0 < share <= 1 for share in self.data), "data must be shares above 0, up to 1"),
            (("select", "curve"), self.select.when == "best" and not self.curve, "select.when = best needs curve = true"),
            (("tuning",), self.tuning.trials > 0 and not self.trial_seeds, "tuning.seeds are none"),
            (("tuning",), self.tuning.each and (self.tuning.noise or self.tuning.data) is not None,
             "tuning.noise and tuning.data are for tuning.each = false"),
        ]  # fmt: skip
        found = [Conflict(names, text) for names, wrong, text in checks if wrong]
        for entry in self.evaluate:
            if entry.partition(":")[0] not in TASKS:
                found.append(Conflict(("evaluate",), f"evaluate: {entry!r} is none of {', '.join(TASKS)}, with :NAME"))
        for name, row in self.objective.items():
            teacher = row.teacher_row
            if teacher is not None and (
                teacher not in self.objective or self.objective[teacher].teacher_row or teacher == name
            ):
                found.append(
                    Conflict(
                        ("objective",),
                        f"objective.{name}.teacher_row = {teacher!r} must be another row, without a teacher row",
                    )
                )
            try:
                self.run_settings(name)
            except UsageError as error:
                problems = error.why.split("\n       ") if error.why else [error.what]
                found += [Conflict(("objective", "train"), f"objective.{name}: {problem}") for problem in problems]
            except SoftclipError as error:
                found.append(Conflict(("recipe", "config"), error.what))
        return found + self._tuning_conflicts()

    def choices(self, row: str) -> list[dict[str, Any]]:
        """What is tried for a row: dotted settings over its own; the first is empty. One, the first, without tuning.

        Raises:
            UsageError: a grid that is none, or settings of the row that are wrong.
        """
        grid = {**self.tuning.grid, **self.objective[row].tune}
        if not self.tuning.trials:
            return [{}]
        return trials(grid, self.tuning.trials, self.tuning.draw, own_values(self.run_settings(row), grid))

    def _tuning_conflicts(self) -> list[Conflict]:
        if not self.tuning.trials:
            return []
        sentences: list[str] = []
        for name in self.objective:
            try:
                self.run_settings(name)
            except SoftclipError:
                continue  # said already
            try:
                choices = self.choices(name)
            except UsageError as error:
                sentences.append(f"objective.{name}: {error.what}")
                continue
            if len(choices) < self.tuning.trials:
                sentences.append(
                    f"objective.{name}: its own settings and the combinations to try are {len(choices)}, less than tuning.trials = "
                    f"{self.tuning.trials}, the same number for every row: give it more values to try, or lower trials"
                )
            for choice in choices:
                try:
                    self.run_settings(name, nested(choice))
                except UsageError as error:
                    sentences += [f"objective.{name} with {choice}: {line}" for line in error.why.split("\n       ")]
        return [Conflict(("tuning", "objective"), sentence) for sentence in dict.fromkeys(sentences)]


def own_values(settings: TrainSettings, names: Iterable[str]) -> dict[str, Any]:
    """What a run has of some dotted settings; of its objective, what the preset says where nothing else does."""
    sections = settings.model_dump(mode="json")
    sections["objective"] = merged(settings.objective).model_dump(mode="json")
    found = {}
    for name in names:
        value: Any = sections
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found[name] = value
    return found


def arm_name(row: str, oracle: bool) -> str:
    """A row's name in tables."""
    return row + ORACLE if oracle else row


def read_study(path: Path, *layers: Mapping[str, Any]) -> Study:
    """Read a study file, with further layers over it.

    Raises:
        UsageError: not there, not TOML, or wrong; lists every problem at once.
    """
    try:
        document = read_toml(path)
    except UsageError as error:
        why = error.why or "a study is described by a TOML file"
        raise UsageError(error.what, why, "softclip study run STUDY.toml; docs/studies.md shows one") from None
    document.setdefault("name", path.stem)
    try:
        return build(Study, document, *layers)
    except UsageError as error:
        raise UsageError(f"{error.what} of {path}", error.why, "docs/studies.md describes every setting") from None
