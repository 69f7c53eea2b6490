"""Going back to a checkpoint when skipping bad batches has not helped: which one, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from softclip_cli.errors import TrainingError
from softclip_cli.training import checkpoint
from softclip_cli.training.distributed import World, from_first


@dataclass
class Rollbacks:
    """Counts how often a run goes back, so that it cannot go in circles.

    A run that comes further each time may go on; the same checkpoint, or an earlier one, is taken only `most` times.

    Attributes:
        most: times for the same checkpoint.
        hint: what to try when that was in vain.
        count: times in the whole run.
        last: step of the last checkpoint gone back to, and how often; −1 and 0 before.
    """

    most: int
    hint: str
    count: int = 0
    last: tuple[int, int] = (-1, 0)

    def target(self, folder: Path, trouble: str, before: int, world: World) -> tuple[Path, int]:
        """The newest whole checkpoint of an earlier step than `before`, the same on all processes, and its step.

        Later ones are removed: they were written in the middle of the trouble.

        Args:
            folder: the run's `checkpoints` folder, which all processes see.
            trouble: what happened, for the error.
            before: the last step that moved the weights; it may have spoilt them, so a checkpoint of it is not good.
            world: this process among all.

        Raises:
            TrainingError: there is none, or it has been gone back to too often.
        """
        found = from_first(checkpoint.newest_intact(folder, before)[0] if world.first else None, world)
        if found is None:
            raise TrainingError(trouble, "training diverged, and there is no checkpoint from before", self.hint)
        step = int(found.name.removeprefix("step-"))
        if world.first:
            checkpoint.remove_after(folder, step)
        before_step, before_times = self.last
        times = before_times + 1 if step <= before_step else 1
        if times > self.most:
            gone = (
                f", and the run has gone back to step {before_step} {before_times} times already" if self.most else ""
            )
            raise TrainingError(trouble, f"training diverged{gone}", self.hint)
        self.last, self.count = (step, times), self.count + 1
        return found, step

    def __str__(self) -> str:
        return f"{self.last[1]} of at most {self.most} times"
