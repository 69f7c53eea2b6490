"""The training loop: batches in, steps, metrics, evaluations and checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from softclip_cli.data.batches import Batch
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import DataError, HostError, Interrupted
from softclip_cli.evaluation.embed import NotFiniteError
from softclip_cli.model import Model
from softclip_cli.objectives.diagnostics import collapse_warning
from softclip_cli.objectives.embeddings import ObjectiveOutput
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.training import checkpoint
from softclip_cli.training.alignments import AlignmentRecorder
from softclip_cli.training.device import memory_in_use
from softclip_cli.training.distributed import World, any_process, from_first, largest_everywhere
from softclip_cli.training.encoder import Encoder
from softclip_cli.training.guard import all_finite
from softclip_cli.training.heartbeat import Heartbeat
from softclip_cli.training.interval import Interval
from softclip_cli.training.limits import Stop, TimeLimit, too_many_replaced
from softclip_cli.training.phases import DATA_WAIT, phase
from softclip_cli.training.profile import StepProfiler
from softclip_cli.training.rollback import Rollbacks
from softclip_cli.training.run_folder import Report, RunFolder
from softclip_cli.training.saving import CheckpointWriter, Written
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.signals import Wishes, listening
from softclip_cli.training.state import TrainingState
from softclip_cli.training.stepper import Stepper
from softclip_cli.training.teachers import Teacher
from softclip_cli.training.validation import Validator

Source = Callable[[int, int], Iterator[Batch]]
MAX_LISTED = 20  # damaged images, and skipped batches, that are named one by one


def unheard(kind: str, facts: dict[str, Any]) -> None:
    """A report that nobody reads."""


@dataclass
class Trainer:
    """Everything that a run needs, put together by `training.start`.

    Attributes:
        settings: of the run.
        folder: where it writes.
        model: whose weights move; on its device.
        encoder: from a batch to embeddings.
        objective: the loss.
        ema: the moving average of the encoder's module, for the ema teacher.
        teacher: gives the teacher's embeddings of a batch, or None (no teacher, or the student itself).
        sampler: position in the data.
        source: (first step, last step) → batches.
        validator: evaluation during training, or None.
        steps: in all.
        world: this process among all.
        report: told of notes, metrics, evaluations and checkpoints as they happen.
        time_limit: after which it saves and ends.
        heartbeat: tells the other processes that this one lives.
        profiler: times some of the steps, or None.
    """

    settings: TrainSettings
    folder: RunFolder
    model: Model
    encoder: Encoder
    objective: Objective
    ema: EmaTeacher | None
    teacher: Teacher | None
    sampler: EpochSampler
    source: Source
    validator: Validator | None
    steps: int
    world: World = field(default_factory=World)
    report: Report = unheard
    time_limit: TimeLimit = field(default_factory=TimeLimit)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    profiler: StepProfiler | None = None

    def __post_init__(self) -> None:
        self.stepper = Stepper(
            self.settings, self.model, self.encoder, self.objective, self.ema, self.teacher, self.steps, self.world
        )
        self.state = TrainingState(
            self.model,
            self.encoder.module,
            self.objective,
            self.stepper.optimizer,
            self.ema,
            averaged_model=self.settings.eval.weights == "ema",
            keep=self.world.first,
        )
        self.writer = CheckpointWriter(self.checkpoints, self.model, self.settings.checkpoint.keep, self._tell_written)
        wanted = self.settings.log.alignments
        self.recorder = AlignmentRecorder(self.folder.path, self.sampler, self.world.first) if wanted else None
        self.first_step = self.done = 0
        self.saved = -1  # step of the last checkpoint that was handed to the writer, known to all processes
        self.data_offset = 0  # a step's batch is that of position step + offset in the data
        lower = (
            f"a lower learning rate (--lr {self.settings.optimizer.lr / 3:.1e}), a longer warm-up, or --precision fp32"
        )
        self.rollbacks = Rollbacks(self.settings.checkpoint.max_rollbacks, lower)
        self.best: dict[str, Any] = {}
        self.replaced: dict[int, str] = {}
        self.collapsed = False

    @property
    def checkpoints(self) -> Path:
        """The run's folder of checkpoints."""
        return self.folder.path / "checkpoints"

    def resume(self, path: Path) -> None:
        """Put back the state of a checkpoint: weights, averages, optimiser, objective, position.

        Raises:
            ModelError: the checkpoint is of another model.
        """
        position = self._take_up(path)
        self.first_step = self.done
        self.replaced = {int(row): why for row, why in position.get("replaced", {}).items()}
        self.data_offset = int(position.get("data_offset", 0))
        self.rollbacks.count = int(position.get("rollbacks", 0))
        self.rollbacks.last = tuple(position.get("went_back", self.rollbacks.last))
        self.stepper.guard.skipped, self.stepper.guard.streak = (
            int(position.get("skipped", 0)),
            int(position.get("streak", 0)),
        )
        self.best = checkpoint.read_best(self.checkpoints)

    def _take_up(self, path: Path) -> dict[str, Any]:
        """Load a checkpoint and forget what was written after it; its `state.json`."""
        checkpoint.check_fits(path, self.model)
        self.state.load(path)
        position = checkpoint.read_state(path)
        self.done = int(position["step"])
        if self.world.first:
            self.folder.truncate_metrics(self.done)
        return position

    def run(self) -> None:
        """Train from the first step to the last, or until the time is up; everything is on the disk then.

        Raises:
            Interrupted: asked to stop; everything is saved.
            TrainingError: the loss stays no number, or another process is missing.
            DataError: too many images are damaged; everything is saved.
            HostError: the run folder cannot be written.
        """
        self.heartbeat.run, self.heartbeat.before_end = self.folder.path, partial(self._status, "failed")
        with listening() as wishes:
            try:
                with self.heartbeat.explained():
                    self._loop(wishes)
            except Interrupted:
                raise
            except KeyboardInterrupt:
                self._end("interrupted", "interrupted at once; the last checkpoint stays")
                raise
            except BaseException as error:
                self._end("failed", f"{type(error).__name__}: {error}")
                raise
            finally:
                if self.profiler is not None:
                    self.profiler.finish()
        if self.done == self.steps:
            self._status("finished")

    def _end(self, state: str, message: str) -> None:
        """Complete what is being written, and say how it ended; where the disk refuses, what ended the run is told, not this."""
        with suppress(HostError):
            self.writer.finish()
        with suppress(HostError):
            self._status(state, message)

    def _status(self, state: str, message: str = "") -> None:
        if self.world.first:
            self.folder.write_status(state, self.done, self.steps, message)
            if state != "running":
                self.report("end", {"state": state, "step": self.done})

    def _loop(self, wishes: Wishes) -> None:
        every = self.settings.log.every
        evaluate_every = self.settings.eval.interval(self.steps)
        save_every = self.settings.checkpoint.every or self.steps
        self.done = self.first_step
        self._status("running")
        self.model.train()
        interval = Interval(self.model.device)
        source = self._batches()
        while self.done < self.steps:
            self.heartbeat.step = self.done
            if self.profiler is not None:
                self.profiler.begin(self.done)
            before = time.perf_counter()
            with phase(DATA_WAIT):
                batch = next(source)
            interval.waited += time.perf_counter() - before
            log = (self.done + 1) % every == 0 or self.done + 1 == self.steps
            output = self.step(batch, log)
            interval.add(output.loss.detach(), self.stepper.guard.flag)
            if self.recorder is not None and output.alignments is not None:
                self.recorder.add(batch, output.alignments)
            self.done += 1
            self._note_replaced(batch)
            if log:
                self.stepper.guard.settle()
                if self.recorder is not None:
                    self.recorder.flush()
            trouble = self._diverged()
            if log and not trouble:
                self._log(interval, output.diagnostics)
                interval = Interval(self.model.device)
            if self.profiler is not None:
                self.profiler.end()
            evaluated = self.validator is not None and (self.done % evaluate_every == 0 or self.done == self.steps)
            paused, best = time.perf_counter(), None
            if evaluated and not trouble:
                try:
                    best = self._evaluate()
                except NotFiniteError as error:
                    trouble = f"after step {self.done}: {error.what}"
            if trouble:
                self._go_back(trouble)
                source, interval = self._batches(), Interval(self.model.device)
                continue
            stop, save = largest_everywhere([self._reason_to_stop(wishes), int(wishes.save)], self.world)
            # A checkpoint at the end, and where an evaluation says that it is the best so far.
            if self.done % save_every == 0 or self.done == self.steps or best is not None or save:
                self._save(best)
                wishes.save = False
            self.writer.poll()
            interval.began += time.perf_counter() - paused  # neither evaluating nor saving counts as training time
            if stop:
                self._stop(Stop(stop), wishes.stop or "a signal to another process")
                return
        self._finish()

    def _batches(self) -> Iterator[Batch]:
        return self.source(self.done + self.data_offset, self.steps + self.data_offset)

    def step(self, batch: Batch, diagnostics: bool) -> ObjectiveOutput:
        """Step number `done`: forward, backward, and the update of weights, scales and moving average. `done` stays.

        A batch whose loss or gradient is no number moves nothing (`stepper.guard.flag`).
        """
        return self.stepper(self.done, batch, diagnostics)

    def _note_replaced(self, batch: Batch) -> None:
        for row, why in batch.replaced:
            if row not in self.replaced and len(self.replaced) < MAX_LISTED:
                self.report("warning", {"text": f"row {row} cannot be decoded and is replaced by its neighbour: {why}"})
            self.replaced[row] = why

    def _log(self, interval: Interval, diagnostics: dict[str, Tensor]) -> None:
        size = self.sampler.batch_size
        entry: dict[str, Any] = {
            "step": self.done,
            "epoch": round(self.done / self.sampler.steps_per_epoch, 4),
            "samples": self.done * size,
            **interval.summary(size),
            "chance": math.log(size),
            "lr": self.stepper.optimizer.param_groups[0]["lr"],
            "logit_scale": float(self.model.logit_scale.detach()),
            **memory_in_use(self.model.device),
        }
        if self.settings.optimizer.clip_norm:
            entry["grad_norm"] = float(self.stepper.norm)
        entry.update({name: float(tensor) for name, tensor in diagnostics.items()})
        entry = {name: value for name, value in entry.items() if math.isfinite(value)}  # a skipped batch has no norm
        counts = {
            "replaced": len(self.replaced),
            "skipped": self.stepper.guard.skipped,
            "rollbacks": self.rollbacks.count,
        }
        entry.update({name: count for name, count in counts.items() if count})
        if self.world.first:
            self.folder.add_metrics(entry)
            self._status("running")
        if "loss" not in entry:
            return  # nothing to show: every batch since the last line was skipped
        self.report("metrics", entry)
        collapsed = collapse_warning(diagnostics)
        # An untrained model maps everything to nearly one point; that is no collapse yet.
        if collapsed and not self.collapsed and 5 * self.done >= self.steps:
            self.report("warning", {"text": collapsed})
        self.collapsed = bool(collapsed)

    def _evaluate(self) -> float | None:
        """Evaluate and record; the value of the metric that chooses the best checkpoint, if it is the best so far."""
        assert self.validator is not None
        self.writer.finish()  # an evaluation may start processes, which a thread in the middle of something is no good place for
        self.model.eval()
        averaged = self.settings.eval.weights == "ema" and self.ema is not None
        try:
            with self.ema.swapped_into(self.encoder.module) if averaged and self.ema else nullcontext():
                metrics = self.validator(self.encoder)
        finally:
            self.model.train()
        entry = {"step": self.done, "eval": self.validator.name, **metrics}
        if self.world.first:
            self.folder.add_metrics(entry)
        value, best = metrics[self.validator.metric], self.best
        better = not best or value > best["value"] or best["step"] > self.done
        if better:
            self.best = {"step": self.done, "metric": self.validator.metric, "value": value}
        self.report("evaluation", {**entry, "best": better, "metric": self.validator.metric})
        return value if better else None

    def _save(self, best: float | None = None) -> None:
        """Hand a checkpoint to the writer, unless its weights are no numbers: what is on the disk can be gone back to."""
        if self.recorder is not None:
            self.recorder.flush()  # a run that goes on from here does not repeat the steps before
        if not (self.world.first or self.stepper.sharded):
            return
        spoilt = not all_finite(self.stepper.trainable)
        if any_process(spoilt, self.world) if self.stepper.sharded else spoilt:
            self.report(
                "warning", {"text": f"the weights are not finite after step {self.done}: no checkpoint of them"}
            )
            return
        self.stepper.guard.settle()
        facts = {
            "steps": self.steps,
            "replaced": self.replaced,
            "skipped": self.stepper.guard.skipped,
            "streak": self.stepper.guard.streak,
            "rollbacks": self.rollbacks.count,
            "went_back": self.rollbacks.last,
            "data_offset": self.data_offset,
            "model": self.model.name,
            "architecture": self.model.config,
        }
        files, self.saved = self.state.tensors(), self.done
        if not self.world.first:
            return  # it has given its parts
        named = None if best is None or self.validator is None else (self.validator.metric, best)
        self.writer.save(self.done, files, facts, named)

    def _tell_written(self, written: Written) -> None:
        self.report("checkpoint", {"step": written.step, "path": str(written.path), "best": written.best})

    def _finish(self) -> None:
        """The last checkpoint is on the disk, even where somebody removed the folder meanwhile."""
        self.writer.finish()
        there = self.done == self.first_step or self.done in checkpoint.saved_steps(self.checkpoints)
        if not from_first(there, self.world):
            self._save()
            self.writer.finish()

    def _reason_to_stop(self, wishes: Wishes) -> Stop:
        share = self.sampler.batch_size // self.world.size
        seen = min(self.done * share, self.sampler.size)
        if too_many_replaced(len(self.replaced), seen, self.settings.data.max_replaced):
            return Stop.DATA
        if wishes.stop:
            return Stop.SIGNAL
        return Stop.TIME if self.done < self.steps and self.time_limit.over() else Stop.NO

    def _stop(self, reason: Stop, signal_name: str) -> None:
        """Save and end: by return where the time is up, else by an error that says why."""
        if self.saved != self.done:
            self._save()
        self.writer.finish()
        place = f"after step {self.done} of {self.steps}"
        again = f"softclip train --resume {self.folder.path}"
        if reason is Stop.DATA:
            raise DataError(
                f"{len(self.replaced):,} images cannot be decoded, more than {self.settings.data.max_replaced:.0%} of those seen {place}",
                "; ".join(f"row {row}: {why}" for row, why in list(self.replaced.items())[:3]),
                f"softclip data prepare checks every image; or allow more: {again} --set data.max_replaced=0.5",
            )
        if reason is Stop.TIME:
            self._status("interrupted", f"max_time {self.time_limit.text} at step {self.done}")
            self.report(
                "note",
                {"text": f"stopped {place}: {self.time_limit.text} are over; everything is saved; go on: {again}"},
            )
            return
        self._status("interrupted", f"{signal_name} at step {self.done}")
        raise Interrupted(f"stopped by {signal_name} {place}", "everything is saved", again)

    def _diverged(self) -> str:
        """What is wrong where skipping has not helped: too many bad batches in a row, or weights that are no numbers; else empty."""
        for step in self.stepper.guard.news():
            if self.stepper.guard.skipped <= MAX_LISTED:
                self.report(
                    "warning", {"text": f"step {step}: the loss or its gradient is no number; the batch is skipped"}
                )
        if self.stepper.guard.streak >= self.settings.optimizer.max_skipped:
            return f"loss or gradient were no number for {self.stepper.guard.streak} batches in a row, up to step {self.done}"
        if self.done == self.steps == self.stepper.guard.streak:
            return f"loss or gradient were no number for all {self.done} batches"
        # All processes are here together: they skip the same batches.
        suspect = self.stepper.guard.streak == 1 or self.done == self.steps
        if suspect and any_process(not all_finite(self.stepper.trainable), self.world):
            return f"the weights are no numbers after step {self.done}"
        return ""

    def _go_back(self, trouble: str) -> None:
        """Take up the last checkpoint from before the trouble, and go on from its step with the data that follows the bad batches.

        The same batches again would end in the same place, on a CPU to the bit; others may pass (PaLM, Chowdhery et al. 2022, section 5.1).

        Raises:
            TrainingError: there is no such checkpoint, or it has been gone back to too often.
        """
        self.writer.finish()
        failed = self.done
        path, step = self.rollbacks.target(self.checkpoints, trouble, failed - self.stepper.guard.streak, self.world)
        self._take_up(path)
        self.data_offset += failed - step
        self.best = checkpoint.read_best(self.checkpoints)
        self.saved = step
        self.stepper.guard.forget()
        self.report(
            "warning",
            {
                "text": f"{trouble}: back to the checkpoint of step {step}, and on from there with the data that follows "
                f"({self.rollbacks})"
            },
        )
