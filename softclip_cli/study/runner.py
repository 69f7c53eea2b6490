"""Runs a study: trials, the choice that follows from them, the study proper; what is finished is never run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softclip_cli.config import to_toml
from softclip_cli.errors import DataError, HostError, Interrupted, ModelError, UsageError
from softclip_cli.resources import usable_cores
from softclip_cli.study.plan import Cell, Level, Planner, unique
from softclip_cli.study.settings import Study, arm_name
from softclip_cli.study.store import Store
from softclip_cli.study.workers import READY, Done, Workers, perform
from softclip_cli.training.run_folder import Report, json_text, replace_text

KINDS = (UsageError, DataError, ModelError, HostError)
SECONDS_A_STEP = 0.08  # assumed before any cell has finished: projections, a batch of 256, one thread [measured, ours]


@dataclass
class Outcome:
    """What a study came to.

    Attributes:
        cells: all, trials included; `finished` and `failed` of them (name → reason).
        chosen: the trials' choices.
        table: the Parquet file.
        seconds: of this command.
    """

    cells: list[Cell]
    finished: int = 0
    ran: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    chosen: dict[Level, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    table: Path | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What is to be done.

    Attributes:
        trials, final: runs in all, each counted once.
        finished: of them.
        seconds: that the others take, on the workers asked for; `measured` if finished runs say so, else assumed.
        pending: names of the runs that are known and to be made.
    """

    trials: int
    final: int
    finished: int
    seconds: float
    measured: bool
    pending: list[str]


def open_study_corpus(study: Study, store: Store, report: Report, make: bool = True) -> tuple[str, str]:
    """(path, fingerprint) of the study's corpus, which is generated where it is to be and not there yet.

    Raises:
        UsageError: the study names none.
        DataError: it is not there.
    """
    from softclip_cli.data.corpus import Corpus
    from softclip_cli.data.generated.generate import generate_corpus
    from softclip_cli.training.run_data import open_corpus

    if study.generate is not None:
        wanted = study.generate
        path = store.path / "corpora" / "-".join(f"{value:g}" for value in wanted.model_dump().values())
        if not (path / "corpus.json").is_file():
            if not make:
                return str(path), ""
            store.folder("corpora")

            def progress(done: int, total: int) -> None:
                report("progress", {"what": "drawing the corpus", "done": done, "total": total})

            generate_corpus(path, **wanted.model_dump(), progress=progress)
        return str(path), Corpus.open(path).fingerprint
    if study.corpus is None:
        raise UsageError(
            "the study names no corpus",
            "neither corpus nor [generate] is in the file",
            "--data CORPUS, or a table [generate]",
        )
    first = study.run_settings(next(iter(study.objective)), {"data": {"corpus": study.corpus}})
    return study.corpus, open_corpus(first, report).fingerprint


def estimate(study: Study, out: Path, *, workers: int = 1, only: Sequence[str] = ()) -> Estimate:
    """Count what is to be done, and how long it takes by what is finished. Nothing is run or made."""
    store = Store(out)
    path, fingerprint = open_study_corpus(study, store, lambda kind, facts: None, make=False)
    planner = Planner(study, path, fingerprint, _known(study, only))
    trials = unique(planner.trials())
    chosen = planner.chosen(_choosing(study, store, trials))
    # Where trials are missing, any choice counts as much.
    guess: dict[Level, tuple[int, dict[str, Any]]] = {at: chosen.get(at, (0, {})) for at in planner.levels()}
    final = unique(planner.final(guess))
    sure = {cell.key for cell in unique(planner.final(chosen))}
    done = [cell for cell in trials if store.finished(cell)] + [c for c in final if c.key in sure and store.finished(c)]
    keys = {cell.key for cell in done}
    rest = [cell for cell in unique([*trials, *final]) if cell.key not in keys]
    rates = [(float(r["whole_seconds"]), int(r["steps"])) for cell in done if (r := store.result(cell.key))]
    each = sum(seconds for seconds, _ in rates) / len(rates) if rates else _assumed(rest)
    return Estimate(
        len(trials),
        len(final),
        len(keys),
        each * len(rest) / max(1, workers),
        bool(rates),
        [cell.name for cell in rest],
    )


def _assumed(cells: Sequence[Cell]) -> float:
    """Seconds of a cell where none has finished: a guess, of a few thousand samples."""
    if not cells:
        return 0.0
    settings = cells[0].settings
    steps = settings.schedule.steps or settings.schedule.epochs * 6000 / settings.data.batch_size
    return SECONDS_A_STEP * steps


def _known(study: Study, only: Sequence[str]) -> Sequence[str]:
    names = {name for arm in study.arms() for name in (arm[0], arm_name(*arm))}
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UsageError(
            f"no row {', '.join(map(repr, unknown))} in the study", "rows: " + ", ".join(study.objective), "--only ROW"
        )
    return only


def _choosing(study: Study, store: Store, trials: Sequence[Cell]) -> dict[str, Mapping[str, float]]:
    found = {}
    for cell in trials:
        result = store.result(cell.key)
        if result is not None:
            found[cell.key] = result["metrics"][study.select.when]
    return found


def run_study(
    study: Study, out: Path, *, workers: int = 1, only: Sequence[str] = (), report: Report = lambda kind, facts: None
) -> Outcome:
    """Run all cells that have no result yet.

    Args:
        study: what to run.
        out: folder of its results.
        workers: processes; 1 runs the cells in this one.
        only: rows to leave the others out; empty: all.
        report: told of kinds "note", "warning", "progress", "stage" and "cell" (one was finished or failed).

    Returns:
        What came of it; failed cells are in it and no error.

    Raises:
        UsageError, DataError, ModelError, HostError: nothing can be run, or another process runs a study there.
        Interrupted: asked to stop; what is finished stays.
    """
    store = Store(out)
    store.check()
    with store.locked():
        return _run_study(study, store, workers, only, report)


def _run_study(study: Study, store: Store, workers: int, only: Sequence[str], report: Report) -> Outcome:
    began, out = time.perf_counter(), store.path
    replace_text(out / "study.toml", to_toml(study))
    path, fingerprint = open_study_corpus(study, store, report)
    planner = Planner(study, path, fingerprint, _known(study, only))
    trials = planner.trials()
    outcome = Outcome(list(trials))
    try:
        with _hands(workers, out, study.keep_runs, report) as hands:
            if trials:
                _run(unique(trials), "trials", store, hands, outcome, report)
            outcome.chosen = planner.chosen(_choosing(study, store, trials))
            if study.tuning.trials:
                replace_text(
                    out / "chosen.json",
                    json_text([{**vars(at), "trial": t, "choice": c} for at, (t, c) in outcome.chosen.items()]),
                )
            for at in planner.levels():
                if at not in outcome.chosen:
                    outcome.failed[f"{arm_name(at.row, at.oracle)}, noise {at.noise:g}, data {at.data:g}"] = (
                        "every choice lacks a trial"
                    )
            final = planner.final(outcome.chosen)
            outcome.cells += final
            _run(unique(final), "study", store, hands, outcome, report)
    except KeyboardInterrupt:
        store.merge(outcome.cells)
        raise Interrupted(
            f"stopped; {outcome.finished} runs are finished and stay",
            "runs in the middle are begun anew",
            f"the same command goes on ({out})",
        ) from None
    outcome.table = store.merge(outcome.cells)
    outcome.seconds = time.perf_counter() - began
    return outcome


Hand = Callable[[Any], None]


class _Alone:
    """Runs cells in this process."""

    def __init__(self, store: Store, keep_runs: bool, report: Report) -> None:
        from softclip_cli.study.bench import Bench

        self.store = store
        self.bench = Bench(
            store, keep_runs, lambda kind, facts: report(kind, facts) if kind in ("progress", "warning") else None
        )
        self.given: list[Any] = []

    @property
    def free(self) -> bool:
        return not self.given

    @property
    def busy(self) -> bool:
        return bool(self.given)

    def give(self, task: Any) -> None:
        self.given.append(task)

    def results(self) -> Iterator[Done]:
        yield perform(self.bench, self.store, self.given.pop())


class _Several:
    """Hands cells to other processes."""

    def __init__(self, workers: Workers, store: Store) -> None:
        self.workers, self.store = workers, store

    @property
    def free(self) -> bool:
        return bool(self.workers.idle)

    @property
    def busy(self) -> bool:
        return len(self.workers.idle) < len(self.workers.all)

    def give(self, task: Any) -> None:
        self.workers.idle[0].give(task)

    def results(self) -> Iterator[Done]:
        for done in self.workers.results():
            if done.error.startswith("its process died") and isinstance(done.task, Cell):
                self.store.add_failure(done.task, done.error, done.detail)
            yield done


@contextmanager
def _hands(count: int, out: Path, keep_runs: bool, report: Report) -> Iterator[_Alone | _Several]:
    if count <= 1:
        yield _Alone(Store(out), keep_runs, report)
        return
    workers = Workers(count, out, keep_runs, max(1, usable_cores() // count), report)
    try:
        yield _Several(workers, Store(out))
    finally:
        workers.stop()


def _run(
    cells: list[Cell], stage: str, store: Store, hands: _Alone | _Several, outcome: Outcome, report: Report
) -> None:
    """Hand out the cells that are not finished, and wait for all."""
    todo = [cell for cell in cells if store.finished(cell) is None]
    outcome.finished += len(cells) - len(todo)
    report("stage", {"stage": stage, "cells": len(cells), "finished": len(cells) - len(todo)})
    if not todo:
        return
    hands.give((READY, _distinct(todo)))
    for done in _finish(hands):
        if done.error:
            kind = next((kind for kind in KINDS if kind.exit_code == done.code), HostError)
            why, _, hint = done.detail.partition("\n")
            raise kind(done.error, why, hint or "nothing was run; the same command tries again")
    count, failed, total, began = 0, set[str](), len(todo), time.perf_counter()
    waiting = list(todo)
    while waiting or hands.busy:
        while hands.free and waiting:
            open_keys = {cell.key for cell in waiting}
            running = {task.key for task in _tasks(hands)}
            ready = next((c for c in waiting if c.teacher not in open_keys | running), None)
            if ready is None:
                break
            waiting.remove(ready)
            if ready.teacher in failed:
                store.add_failure(ready, "its teacher's run failed")
                outcome.failed[ready.name] = "its teacher's run failed"
                failed.add(ready.key)
                total -= 1
                continue
            hands.give(ready)
        if not hands.busy:
            continue
        for done in hands.results():
            cell = done.task
            count += 1
            if done.error:
                outcome.failed[cell.name] = done.error
                failed.add(cell.key)
            else:
                outcome.finished += 1
                outcome.ran += 1
            left = (time.perf_counter() - began) / count * (total - count)
            result = None if done.error else store.result(cell.key)
            value = result["metrics"]["last"].get("/".join(cell.select)) if result else None
            facts = {"name": cell.name, "error": done.error, "seconds": done.seconds, "value": value}
            report(
                "cell",
                {**facts, "metric": "/".join(cell.select), "stage": stage, "done": count, "total": total, "left": left},
            )


def _tasks(hands: _Alone | _Several) -> list[Cell]:
    given = hands.given if isinstance(hands, _Alone) else [worker.task for worker in hands.workers.all]
    return [task for task in given if isinstance(task, Cell)]


def _finish(hands: _Alone | _Several) -> Iterator[Done]:
    while hands.busy:
        yield from hands.results()


def _distinct(cells: list[Cell]) -> list[Cell]:
    """A cell for each model and data, with whose features the others' are ready, too."""
    found: dict[Any, Cell] = {}
    for cell in cells:
        data = cell.settings.data
        found.setdefault((cell.settings.model.model_dump_json(), data.split, data.limit, cell.evaluate), cell)
    return list(found.values())
