"""What a comparison compares: runs, evaluation documents and folders of them, the seeds of one setting joined."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation import result
from softclip_cli.reports.differences import canonical, flatten
from softclip_cli.runs import Run, find_run, is_run

SEEDS = ("schedule.seed", "seed")


@dataclass(frozen=True)
class Member:
    """One model with its evaluation documents; `seed` and `setting` (all but the seed, as text) where it is a run's."""

    name: str
    documents: tuple[Mapping[str, Any], ...]
    seed: int | None = None
    setting: str = ""


@dataclass(frozen=True)
class Subject:
    """One side of a comparison: a model, or the same setting trained with several seeds."""

    name: str
    members: tuple[Member, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in order; empty for a single model that is no run."""
        return tuple(member.seed for member in self.members if member.seed is not None)


def open_subjects(references: Sequence[str], *, join: bool = True) -> list[Subject]:
    """Open what is named on the command line.

    Args:
        references: run names, run folders, JSON files (a document, or a list of them as `softclip eval corpus --json`
            prints it), or folders of JSON files.
        join: runs whose settings differ by the seed only become one subject.

    Returns:
        In the order in which they are first named, with names that tell them apart.

    Raises:
        UsageError: one is named twice.
        DataError: nothing there, or no evaluation document in it.
        ModelError: no run of this name, or a damaged run.
    """
    paths = [os.path.realpath(reference) for reference in references]
    doubled = next((one for place, one in enumerate(references) if paths.index(paths[place]) != place), None)
    if doubled is not None:
        raise UsageError(f"{doubled} is named twice", "a model compared with itself differs in nothing")
    return _joined(_with_names([_open(reference) for reference in references], references), join)


def subjects_of(
    runs: Sequence[Run], names: Sequence[str], documents: Sequence[Sequence[Mapping[str, Any]]]
) -> list[Subject]:
    """Runs that are open already as subjects, seeds of one setting joined, unless one seed is there twice."""
    members = [
        Member(name, tuple(found), _seed(run), _setting(run))
        for run, name, found in zip(runs, names, documents, strict=True)
    ]
    kinds = [(member.setting, member.seed) for member in members]
    return _joined(members, join=len(set(kinds)) == len(kinds))


def _joined(members: Sequence[Member], join: bool) -> list[Subject]:
    groups: dict[str, list[Member]] = {}
    for place, member in enumerate(members):
        groups.setdefault(member.setting if join and member.setting else f"#{place}", []).append(member)
    subjects = [Subject(_group_name(group), tuple(_by_seed(group))) for group in groups.values()]
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        subjects = [Subject(_long_name(subject.members), subject.members) for subject in subjects]
    return subjects


def _open(reference: str) -> Member:
    path = Path(reference).expanduser()
    if path.is_file() or (path.suffix == ".json" and not path.is_dir()):
        return Member(path.stem, tuple(_documents(path)))
    if path.is_dir() and not is_run(path):
        found = [document for file in sorted(path.glob("*.json")) for document in _documents(file, strict=False)]
        if not found:
            raise DataError(
                f"no evaluation document in {path}",
                "it is no run folder, and none of its JSON files is a result",
                "name a run, a result written with --out, or a folder of such results",
            )
        return Member(path.resolve().name, tuple(found))
    run = find_run(reference)
    if not run.evals:
        raise DataError(
            f"run {run.name} has no evaluation documents",
            f"nothing in {run.path / 'evals'}",
            f"make some: softclip eval, softclip probe or softclip retrieve with --model {reference}",
        )
    return Member(run.name, tuple(run.evals), _seed(run), _setting(run))


def _documents(file: Path, strict: bool = True) -> list[dict[str, Any]]:
    """The documents in a file; what is no result is an error, or nothing where not `strict`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if isinstance(content, list) and content:
        needed = {"format", "task", "dataset", "metrics"}
        if all(isinstance(one, dict) and needed <= set(one) and one["format"] <= result.FORMAT for one in content):
            return content
    try:
        return [result.read(file)]
    except DataError:
        if strict:
            raise
        return []


def _seed(run: Run) -> int | None:
    seed = run.setting(*SEEDS)
    return seed if isinstance(seed, int) else None


def _setting(run: Run) -> str:
    """Everything but the seed that makes a run what it is, as text; empty where the run does not say."""
    flat = {name: value for name, value in flatten(run.config).items() if name not in SEEDS}
    if not flat or _seed(run) is None:
        return ""
    return canonical([flat, run.data.get("fingerprint"), run.status.get("step")])


def _by_seed(group: Sequence[Member]) -> list[Member]:
    seeds = [member.seed for member in group]
    if len(set(seeds)) < len(seeds):
        twice = next(one for one in group if seeds.count(one.seed) > 1)
        same = " and ".join(one.name for one in group if one.seed == twice.seed)
        raise UsageError(
            f"{same} are one setting with one seed",
            "as seeds of one setting they would count as independent, which they are not",
            "leave one out, or compare each run by itself: --each-run",
        )
    return sorted(group, key=lambda member: member.seed or 0)


def _with_names(members: Sequence[Member], references: Sequence[str]) -> list[Member]:
    """Members whose names tell them apart: by what the user wrote where the short names do not."""
    names = [member.name for member in members]
    if len(set(names)) == len(names):
        return list(members)
    return [
        Member(reference, member.documents, member.seed, member.setting)
        for member, reference in zip(members, references, strict=True)
    ]


def _group_name(group: Sequence[Member]) -> str:
    if len(group) == 1:
        return group[0].name
    columns = zip(*(member.name for member in group), strict=False)
    alike = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    common = alike.rstrip("-_. /0123456789")
    for word in ("seed", "s"):
        if common.endswith((f"-{word}", f"_{word}")):
            common = common[: -len(word) - 1]
    return f"{common or group[0].name} ({len(group)} seeds)"


def _long_name(members: Sequence[Member]) -> str:
    return members[0].name if len(members) == 1 else f"{members[0].name} and {len(members) - 1} more seeds"
