"""Run folders: where training leaves what it did, and how everything else finds and reads it.

    runs/2026-11-22-201500-psd/
      config.toml     the settings, whole           env.json    versions, machine, devices
      data.json       corpus and its fingerprint    status.json state, step, seconds
      metrics.jsonl   one line an interval          log.txt     what the terminal showed
      checkpoints/    step-00000500/ ... best.json last.json
      evals/          evaluation documents          README.md   the model card

Reading only, and light: nothing here imports torch, and a file is read when it is first asked for.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from softclip_cli.errors import ModelError, nearest

RUNS_VARIABLE = "SOFTCLIP_RUNS"
MARKS = ("config.toml", "status.json", "metrics.jsonl")  # a folder that holds one of these is a run
SILENT_AFTER = 1800.0  # seconds without news after which a "running" run is called silent


def runs_dir() -> Path:
    """The folder that holds the runs: `$SOFTCLIP_RUNS`, else `runs` in the current folder. It need not exist."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs")


class Run:
    """One run folder. Each property reads its file once, when first asked for.

    A file that the run did not write (yet) reads as empty; a damaged one raises `ModelError`.

    Args:
        path: the run folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's name, such as `2026-11-22-201500-psd`."""
        return self.path.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings, by section."""
        try:
            with (self.path / "config.toml").open("rb") as stream:
                return tomllib.load(stream)
        except FileNotFoundError:
            return {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise self._damaged("config.toml", error) from None

    @cached_property
    def env(self) -> dict[str, Any]:
        """Versions, machine and devices."""
        return self._json("env.json")

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the run was trained on: corpus, its size and fingerprint."""
        return self._json("data.json")

    @cached_property
    def status(self) -> dict[str, Any]:
        """How far it came: `state`, `step`, `steps`, `started`, `updated`, `seconds`, `message`."""
        return self._json("status.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, in order. A line cut short by a kill is left out."""
        try:
            text = (self.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        lines = []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry, dict):
                lines.append(entry)
        return lines

    @property
    def training(self) -> list[dict[str, Any]]:
        """The training lines, one a step (where a resumed run wrote a step twice, the later one), by step."""
        return _last_by_step(line for line in self.metrics if "eval" not in line and "loss" in line)

    @property
    def evaluations(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of the evaluations made during training, by the evaluation's name, each list by step."""
        by_name: dict[str, list[dict[str, Any]]] = {}
        for line in self.metrics:
            if "eval" in line:
                by_name.setdefault(str(line["eval"]), []).append(line)
        return {name: _last_by_step(lines) for name, lines in by_name.items()}

    @cached_property
    def evals(self) -> list[dict[str, Any]]:
        """The evaluation documents in `evals/`, oldest file first (see docs/design.md for their shape)."""
        files = sorted((self.path / "evals").glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
        documents = [self._json(f"evals/{file.name}", any_kind=True) for file in files]
        return [entry for entry in documents if isinstance(entry, dict) and "task" in entry and "metrics" in entry]

    @property
    def state(self) -> str:
        """`running`, `finished`, `interrupted` or `failed`; `unknown` where the run left no status."""
        return str(self.status.get("state", "unknown"))

    @property
    def started(self) -> datetime | None:
        """When the run started, with a time zone."""
        return parse_time(self.status.get("started"))

    @property
    def updated(self) -> datetime | None:
        """When the run last gave news, with a time zone."""
        return parse_time(self.status.get("updated"))

    @property
    def silent_for(self) -> float | None:
        """Seconds since a run that calls itself running gave news, when that is suspiciously long; else None."""
        if self.state != "running" or self.updated is None:
            return None
        seconds = (datetime.now(UTC) - self.updated).total_seconds()
        return seconds if seconds > SILENT_AFTER else None

    @property
    def objective(self) -> str:
        """Name of the objective, such as `psd`; empty where the settings do not say."""
        return self._named("objective", ("name", "preset"))

    @property
    def model(self) -> str:
        """The model reference that was trained; empty where the settings do not say."""
        return self._named("model", ("reference", "name"))

    @property
    def corpus(self) -> str:
        """What the run was trained on, in a few words: the corpus's name, or its path as it was given."""
        for key in ("name", "corpus", "reference", "path", "source"):
            if isinstance(self.data.get(key), str) and self.data[key]:
                return self.data[key]
        return self._named("data", ("corpus", "name", "path"))

    @property
    def best(self) -> dict[str, Any]:
        """What `checkpoints/best.json` says: `step`, `metric`, `value`; empty where no evaluation has chosen a best."""
        return self._json("checkpoints/best.json")

    def setting(self, *names: str) -> Any:
        """The first of these dotted settings that is there, such as `"data.batch_size"`; None where none is."""
        for name in names:
            value: Any = self.config
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None

    @property
    def steps(self) -> list[int]:
        """The steps whose checkpoints are whole, in order."""
        found = []
        for folder in (self.path / "checkpoints").glob("step-*"):
            number = folder.name.removeprefix("step-")
            if number.isdigit() and (folder / "model.safetensors").is_file():
                found.append(int(number))
        return sorted(found)

    def checkpoint(self, which: Literal["best", "last"] | int | str = "best") -> Path:
        """The folder of one checkpoint.

        Args:
            which: `best` (the last one where no evaluation has chosen a best), `last`, or a step.

        Raises:
            ModelError: there is no such checkpoint; lists the ones that are there.
        """
        there = self.steps
        if not there:
            raise ModelError(
                f"run {self.name} has no checkpoint",
                f"no folder with model.safetensors under {self.path / 'checkpoints'} (the run is {self.state})",
                "name another run (softclip runs list), or train this one further",
            )
        word = str(which).strip()
        if word in ("best", "last"):
            named = self._json(f"checkpoints/{word}.json").get("step")
            if word == "best" and named is None:
                return self.checkpoint("last")
            step = there[-1] if named is None else int(named)
        elif word.isascii() and word.isdigit():
            step = int(word)
        else:
            raise ModelError(f"run {self.name} has no checkpoint {word!r}", hint="use best, last or a step")
        if step not in there:
            known = ", ".join(map(str, there))
            chosen = f"checkpoints/{word}.json names step {step}, " if word in ("best", "last") else ""
            raise ModelError(
                f"run {self.name} has no checkpoint of step {step}",
                f"{chosen}the steps that are there: {known}",
                f"use run:{self.name}@{min(there, key=lambda other: abs(other - step))}",
            )
        return self._step_folder(step)

    def _step_folder(self, step: int) -> Path:
        folders = (self.path / "checkpoints").glob("step-*")
        return next(one for one in folders if one.name[5:].isdigit() and int(one.name[5:]) == step)

    def _named(self, section: str, keys: tuple[str, ...]) -> str:
        value = self.config.get(section)
        if isinstance(value, Mapping):
            value = next((value[key] for key in keys if isinstance(value.get(key), str) and value[key]), "")
        return value if isinstance(value, str) else ""

    def _json(self, name: str, *, any_kind: bool = False) -> Any:
        try:
            document = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self._damaged(name, error) from None
        if not any_kind and not isinstance(document, dict):
            raise self._damaged(name, "it holds no JSON object")
        return document

    def _damaged(self, name: str, why: Exception | str) -> ModelError:
        return ModelError(f"{self.path / name} is damaged", str(why), "restore the file, or name another run")


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder."""
    return path.is_dir() and any((path / mark).is_file() for mark in MARKS)


def list_runs(folder: Path | None = None) -> list[Run]:
    """All runs in `folder` (default `runs_dir()`), the newest first. An absent folder holds none."""
    folder = runs_dir() if folder is None else folder
    if not folder.is_dir():
        return []
    return sorted((Run(path) for path in folder.iterdir() if is_run(path)), key=_recency, reverse=True)


def newest_finished(folder: Path | None = None) -> Run | None:
    """The finished run that ended last and still has a checkpoint, or None; damaged runs are passed over."""
    for run in list_runs(folder):
        try:
            if run.state == "finished" and run.steps:
                return run
        except ModelError:
            continue
    return None


def find_run(name_or_path: str | Path) -> Run:
    """The run of this name in `runs_dir()`, or the run folder at this path.

    Raises:
        ModelError: there is none; the nearest names are the hint.
    """
    text = str(name_or_path)
    plain = Path(text).name == text and text not in (".", "..")
    candidates = [runs_dir() / text] if plain else []
    candidates.append(Path(text).expanduser())
    for path in candidates:
        if is_run(path):
            return Run(path)
    names = [run.name for run in list_runs()]
    folder = runs_dir()
    if Path(text).expanduser().is_dir():
        why = f"the folder is there, but holds none of {', '.join(MARKS)}"
    elif not names:
        why = f"there are no runs in {folder}/ (${RUNS_VARIABLE} names another folder)"
    else:
        why = f"{folder}/ holds {len(names)} runs, the newest is {names[0]}"
    # People remember the end of a name (the objective), so its parts are compared as well.
    ends = [name for name in names if text and text.lower() in name.lower()]
    hint = "Did you mean " + ", ".join(map(repr, ends[:3])) + "?" if ends else nearest(text, names)
    default_hint = "softclip runs list shows them" if names else "train one: softclip train"
    raise ModelError(f"no run {text!r}", why, hint or default_hint)


def parse_time(text: Any) -> datetime | None:
    """An ISO 8601 time as a `datetime` with a time zone (local where none is written); None where it is no time."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None


def _recency(run: Run) -> tuple[float, str]:
    try:
        time = run.updated or run.started
    except ModelError:
        time = None
    return (time.timestamp() if time else run.path.stat().st_mtime, run.name)


def _last_by_step(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    # A later line of the same step replaces the earlier one.
    by_step = {line["step"]: line for line in lines if isinstance(line.get("step"), int | float)}
    return [by_step[step] for step in sorted(by_step)]
