"""A suite over several devices of this machine: as many processes, among which the units are dealt out."""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from softclip_cli.errors import HostError
from softclip_cli.evaluation.suite import Outcome, Settings, Unit, run_units

LOOKS = 0.5  # seconds between looks for a process that died


def in_processes(
    units: Sequence[Unit], settings: Settings, devices: Sequence[str], say: Callable[[str], None]
) -> list[Outcome]:
    """Evaluate units, the first process taking each N-th from the first on, the second from the second on.

    A process that dies (killed for memory, say) loses what it had not finished: those units are failures.

    Args:
        units, settings: as for `run_units`.
        devices: one a process; the same may stand twice.
        say: told each evaluation as it starts, and on which device.

    Returns:
        The outcomes in the order of the units.
    """
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(list(units[number :: len(devices)]), settings, device, len(devices), news))
        for number, device in enumerate(devices)
    ]
    outcomes: list[Outcome] = []
    finished: set[Unit] = set()
    try:
        for worker in workers:
            worker.start()
        while True:
            running = any(worker.is_alive() for worker in workers)
            try:
                kind, value = news.get(timeout=LOOKS)
            except queue.Empty:
                if running:
                    continue
                break  # all had ended before this look, and nothing has come since
            if kind == "said":
                say(value)
            elif kind == "finished":
                finished.add(value)
            else:
                outcomes.append(value)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            worker.join()
    for number, worker in enumerate(workers):
        lost = [unit for unit in units[number :: len(devices)] if unit not in finished]
        outcomes += [_lost(unit, devices[number], worker.exitcode) for unit in lost]
    return sorted(outcomes, key=lambda outcome: outcome.unit.number)


def _lost(unit: Unit, device: str, code: int | None) -> Outcome:
    return Outcome(
        unit,
        "",
        "failed",
        what=f"the process on {device} ended with code {code} before {unit.dataset} was finished",
        why="it was killed, perhaps for memory" if code is not None and code < 0 else "",
        hint="run the same suite again: what is done is kept",
        exit_code=HostError.exit_code,
    )


def _work(units: list[Unit], settings: Settings, device: str, share: int, news: Any) -> None:
    import torch

    from softclip_cli.evaluation.solver_arrays import allow_dispatch
    from softclip_cli.resources import usable_cores

    threading.Thread(target=_end_with_parent, daemon=True).start()
    allow_dispatch()
    torch.set_num_threads(max(1, usable_cores() // share))

    def tell(text: str) -> None:
        news.put(("said", f"{device}: {text}"))

    def done(unit: Unit) -> None:
        news.put(("finished", unit))

    try:
        for outcome in run_units(units, settings, torch.device(device), say=tell, finished=done):
            news.put(("outcome", outcome))
        news.close()
        news.join_thread()
    except KeyboardInterrupt:  # the process that started this one tells the user
        sys.exit(130)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed without a chance to say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
