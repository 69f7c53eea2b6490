"""The training loop: batches in, steps, metrics, evaluations and checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softclip_cli.data.batches import Batch
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import Interrupted, TrainingError
from softclip_cli.model import Model
from softclip_cli.objectives.diagnostics import collapse_warning
from softclip_cli.objectives.embeddings import ObjectiveOutput
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.training import checkpoint
from softclip_cli.training.device import memory_in_use
from softclip_cli.training.distributed import World, any_process, average_gradients
from softclip_cli.training.encoder import Encoder
from softclip_cli.training.optimizer import build_optimizer, learning_rate
from softclip_cli.training.phases import AVERAGE, DATA_WAIT, GRADIENTS, OPTIMISER, phase
from softclip_cli.training.profile import StepProfiler
from softclip_cli.training.run_folder import Report, RunFolder
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.signals import Wishes, listening
from softclip_cli.training.state import TrainingState
from softclip_cli.training.step import StepContext, forward_backward
from softclip_cli.training.teachers import Teacher
from softclip_cli.training.validation import Validator

Source = Callable[[int, int], Iterator[Batch]]
MAX_LISTED = 20  # damaged images that are named one by one


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
    profiler: StepProfiler | None = None

    def __post_init__(self) -> None:
        named = [*self.encoder.module.named_parameters(), *self.objective.named_parameters(prefix="objective")]
        self.trainable: list[nn.Parameter] = [p for _, p in named if p.requires_grad]
        self.optimizer = build_optimizer(named, self.settings.optimizer)
        self.state = TrainingState(
            self.model,
            self.encoder.module,
            self.objective,
            self.optimizer,
            self.ema,
            averaged_model=self.settings.eval.weights == "ema",
        )
        self.first_step = self.done = 0
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
        self.state.load(path)
        position = checkpoint.read_state(path)
        self.first_step = int(position["step"])
        self.replaced = {int(row): why for row, why in position.get("replaced", {}).items()}
        if self.world.first:
            self.folder.truncate_metrics(self.first_step)

    def run(self) -> None:
        """Train from the first step to the last.

        Raises:
            Interrupted: asked to stop; everything is saved.
            TrainingError: the loss is not a number.
        """
        with listening() as wishes:
            try:
                self._loop(wishes)
            except Interrupted:
                raise
            except KeyboardInterrupt:
                self._status("interrupted", "interrupted at once; the last checkpoint stays")
                raise
            except BaseException as error:
                self._status("failed", f"{type(error).__name__}: {error}")
                raise
            finally:
                if self.profiler is not None:
                    self.profiler.finish()
        self._status("finished")

    def _status(self, state: str, message: str = "") -> None:
        if self.world.first:
            self.folder.write_status(state, self.done, self.steps, message)
            if state != "running":
                self.report("end", {"state": state, "step": self.done})

    def _loop(self, wishes: Wishes) -> None:
        every = self.settings.log.every
        evaluate_every = self.settings.eval.every or max(1, math.ceil(self.steps / 4))
        save_every = self.settings.checkpoint.every or self.steps
        self.done = self.first_step
        self._status("running")
        self.model.train()
        losses, waited, began, since = self._zero(), 0.0, time.perf_counter(), self.first_step
        source = self.source(self.first_step, self.steps)
        while self.done < self.steps:
            if self.profiler is not None:
                self.profiler.begin(self.done)
            before = time.perf_counter()
            with phase(DATA_WAIT):
                batch = next(source)
            waited += time.perf_counter() - before
            log = (self.done + 1) % every == 0 or self.done + 1 == self.steps
            output = self.step(batch, log)
            losses += output.loss.detach()
            self.done += 1
            self._note_replaced(batch)
            if log:
                seconds = time.perf_counter() - began
                self._log(losses / (self.done - since), output.diagnostics, self.done - since, seconds, waited)
                losses, waited, began, since = self._zero(), 0.0, time.perf_counter(), self.done
            if self.profiler is not None:
                self.profiler.end()
            evaluated = self.validator is not None and (self.done % evaluate_every == 0 or self.done == self.steps)
            paused = time.perf_counter()
            best = self._evaluate() if evaluated else None
            # A checkpoint at the end, and where an evaluation says that it is the best so far.
            if self.done % save_every == 0 or self.done == self.steps or best is not None or wishes.save:
                self._save(best)
                wishes.save = False
            began += time.perf_counter() - paused  # neither evaluating nor saving counts as training time
            if any_process(bool(wishes.stop), self.world, self.model.device):
                self._stop(wishes.stop or "a signal to another process")

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.model.device)

    def step(self, batch: Batch, diagnostics: bool) -> ObjectiveOutput:
        """Step number `done`: forward, backward, and the update of weights, scales and moving average. `done` stays."""
        settings = self.settings
        rate = learning_rate(self.done, self.steps, settings.optimizer.lr, settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        context = StepContext(
            self.done,
            self.done / max(1, self.steps - 1),
            settings.schedule.seed,
            self.world.rank,
            diagnostics,
            settings.data.micro_batch,
        )
        output = forward_backward(self.encoder, self.objective, batch, context, self.teacher)
        with phase(GRADIENTS):
            average_gradients(self.trainable, self.world)
        with phase(OPTIMISER):
            if settings.optimizer.clip_norm:
                self.norm = nn.utils.clip_grad_norm_(self.trainable, settings.optimizer.clip_norm)
            self.optimizer.step()
            low, high = self.objective.log_scale_range
            with torch.no_grad():
                self.model.net.logit_scale.clamp_(low, high)
            self.objective.clamp_()
        if self.ema is not None:
            with phase(AVERAGE):
                self.ema.update(self.encoder.module)
        return output

    def _note_replaced(self, batch: Batch) -> None:
        for row, why in batch.replaced:
            if row not in self.replaced and len(self.replaced) < MAX_LISTED:
                self.report("warning", {"text": f"row {row} cannot be decoded and is replaced by its neighbour: {why}"})
            self.replaced[row] = why

    def _log(self, loss: Tensor, diagnostics: dict[str, Tensor], steps: int, seconds: float, waited: float) -> None:
        value = float(loss)
        size = self.sampler.batch_size
        entry: dict[str, Any] = {
            "step": self.done,
            "epoch": round(self.done / self.sampler.steps_per_epoch, 4),
            "samples": self.done * size,
            "loss": value,
            "chance": math.log(size),
            "lr": self.optimizer.param_groups[0]["lr"],
            "logit_scale": float(self.model.logit_scale.detach()),
            "samples_per_second": round(steps * size / seconds, 2),
            "data_wait": round(waited / seconds, 4),
            **memory_in_use(self.model.device),
        }
        if self.settings.optimizer.clip_norm:
            entry["grad_norm"] = float(self.norm)
        entry.update({name: float(tensor) for name, tensor in diagnostics.items()})
        if self.replaced:
            entry["replaced"] = len(self.replaced)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.done}",
                "training diverged; the weights of the last checkpoint are whole",
                f"a lower learning rate (--lr {self.settings.optimizer.lr / 3:.1e}), a longer warm-up, or --precision fp32",
            )
        if self.world.first:
            self.folder.add_metrics(entry)
            self._status("running")
        self.report("metrics", entry)
        collapsed = collapse_warning(diagnostics)
        # An untrained model maps everything to nearly one point; that is no collapse yet.
        if collapsed and not self.collapsed and 5 * self.done >= self.steps:
            self.report("warning", {"text": collapsed})
        self.collapsed = bool(collapsed)

    def _evaluate(self) -> float | None:
        """Evaluate and record; the value of the metric that chooses the best checkpoint, if it is the best so far."""
        assert self.validator is not None
        self.model.eval()
        module = self.encoder.module
        if self.settings.eval.weights == "ema" and self.ema is not None:
            with self.ema.swapped_into(module):
                metrics = self.validator(self.encoder)
        else:
            metrics = self.validator(self.encoder)
        self.model.train()
        entry = {"step": self.done, "eval": self.validator.name, **metrics}
        if self.world.first:
            self.folder.add_metrics(entry)
        best = checkpoint.read_best(self.checkpoints)
        better = not best or metrics[self.validator.metric] > best["value"] or best["step"] > self.done
        self.report("evaluation", {**entry, "best": better, "metric": self.validator.metric})
        return metrics[self.validator.metric] if better else None

    def _save(self, best: float | None = None) -> Path | None:
        if not self.world.first:
            return None
        facts = {"steps": self.steps, "replaced": self.replaced, "architecture": self.model.config}
        path = checkpoint.save(self.checkpoints, self.done, self.model, self.state.tensors(), facts)
        if best is not None and self.validator is not None:
            checkpoint.mark_best(self.checkpoints, self.done, self.validator.metric, best)
        checkpoint.prune(self.checkpoints, self.settings.checkpoint.keep)
        self.report("checkpoint", {"step": self.done, "path": str(path), "best": best is not None})
        return path

    def _stop(self, signal_name: str) -> None:
        if self.world.first and self.done not in checkpoint.saved_steps(self.checkpoints):
            self._save()
        self._status("interrupted", f"{signal_name} at step {self.done}")
        raise Interrupted(
            f"stopped by {signal_name} after step {self.done} of {self.steps}",
            "everything is saved",
            f"softclip train --resume {self.folder.path}",
        )
