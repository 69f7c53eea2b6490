"""What metrics.jsonl holds, also shown by TensorBoard or Weights & Biases (`log.loggers`). Extras: the run needs neither.

A logger never stops training: what it raises is said once, and it is left alone from then on. Where a run goes on, it goes on with the same
folder or run, and a step is not logged twice.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from softclip_cli.errors import HostError
from softclip_cli.training.run_folder import Report, json_text, replace_text

TENSORBOARD, WANDB, WANDB_ID = "tensorboard", "wandb", "wandb/run.json"
PACKAGES = {TENSORBOARD: "tensorboard", WANDB: "wandb"}


class Logger(Protocol):
    """One place that numbers go to."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers of a step, by name; names of an evaluation are NAME/METRIC."""

    def close(self, state: str) -> None:
        """The run is over: "finished", "interrupted" or "failed"."""


class TensorBoardLogger:
    """Event files in the run folder: `tensorboard --logdir runs` shows all runs.

    Args:
        folder: of the run.
        first_step: steps done already; TensorBoard forgets what was logged after them.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        resumed = first_step + 1 if first_step else None
        self.writer: Any = SummaryWriter(str(folder / TENSORBOARD), purge_step=resumed)  # type: ignore[no-untyped-call]

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """As `Logger` says."""
        for name, value in numbers.items():
            self.writer.add_scalar(name if "/" in name else f"train/{name}", value, step)
        self.writer.flush()

    def close(self, state: str) -> None:
        """As `Logger` says."""
        self.writer.close()


class WandbLogger:
    """A run of Weights & Biases, written below the run folder, without any network unless WANDB_MODE says so; `wandb sync` sends it.

    The run's id and the last step are kept beside, so that a run that goes on has the same id, and steps that were logged before a kill
    are not logged again.

    Args:
        folder: of the run.
        settings: all of the run, for the run's page.
        first_step: steps done already.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], first_step: int) -> None:
        import json
        import uuid

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means offline
        import wandb

        self.memory = folder / WANDB_ID
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(self.memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self.id, self.last = str(known.get("id") or uuid.uuid4().hex[:8]), int(known.get("step", 0))
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "softclip"),
            name=folder.name,
            id=self.id,
            resume="allow",
            dir=str(folder),
            config=settings,
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self._remember()

    def _remember(self) -> None:
        replace_text(self.memory, json_text({"id": self.id, "step": self.last}))

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """As `Logger` says."""
        if step < self.last:
            return
        # An evaluation comes after the metrics of the same step: W&B puts both into one row.
        fresh = {name: value for name, value in numbers.items() if "/" in name or step > self.last}
        if fresh:
            self.run.log(fresh, step=step)
        self.last = step
        self._remember()

    def close(self, state: str) -> None:
        """As `Logger` says."""
        self.run.finish(exit_code=0 if state == "finished" else 1)


KINDS: dict[str, Callable[[Path, dict[str, Any], int], Logger]] = {TENSORBOARD: TensorBoardLogger, WANDB: WandbLogger}


def check_installed(names: tuple[str, ...]) -> None:
    """Refuse loggers whose package is missing.

    Raises:
        HostError: says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise HostError(
                f"log.loggers asks for {name}, and the package {PACKAGES[name]} is not installed",
                "it is an extra: training itself does not need it",
                f"pip install 'softclip[{name}]', or --set log.loggers=",
            )


def logged(report: Report, names: tuple[str, ...], folder: Path, settings: dict[str, Any]) -> Report:
    """The same report, whose metrics and evaluations also go to the loggers, from "start" to "end".

    Args:
        report: who listens already.
        names: of the loggers; their packages are there (`check_installed`).
        folder: of the run.
        settings: all of the run.
    """
    if not names:
        return report
    loggers: dict[str, Logger] = {}

    def attempt(name: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # whatever a foreign package raises: training is worth more than its graph
            loggers.pop(name, None)
            report("warning", {"text": f"{name} is left out from here on: {type(error).__name__}: {error}"})
            return None

    def hear(kind: str, facts: dict[str, Any]) -> None:
        report(kind, facts)
        if kind == "start":
            for name in names:
                made = attempt(name, lambda name=name: KINDS[name](folder, settings, facts["first_step"]))  # type: ignore[misc]
                if made is not None:
                    loggers[name] = made
        elif kind in ("metrics", "evaluation"):
            numbers = numbers_of(kind, facts)
            for name, logger in list(loggers.items()):
                attempt(name, lambda logger=logger: logger.log(facts["step"], numbers))  # type: ignore[misc]
        elif kind == "end":
            for name, logger in list(loggers.items()):
                attempt(name, lambda logger=logger: logger.close(facts["state"]))  # type: ignore[misc]
            loggers.clear()

    return hear


def numbers_of(kind: str, facts: dict[str, Any]) -> dict[str, float]:
    """What can be drawn of a report, without the step."""
    prefix = f"{facts['eval']}/" if kind == "evaluation" else ""
    return {
        f"{prefix}{name}": float(value)
        for name, value in facts.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }
