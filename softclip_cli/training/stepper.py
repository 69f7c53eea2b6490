"""One optimiser step: the gradient, a look at it, and the update of weights, scales and moving average."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from softclip_cli.data.batches import Batch
from softclip_cli.model import Model
from softclip_cli.objectives.embeddings import ObjectiveOutput
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.training.distributed import World, average_gradients
from softclip_cli.training.encoder import Encoder
from softclip_cli.training.guard import Guard, gradient_norm
from softclip_cli.training.optimizer import build_optimizer, learning_rate
from softclip_cli.training.phases import AVERAGE, GRADIENTS, OPTIMISER, phase
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.sharding import clip_gradients
from softclip_cli.training.step import StepContext, forward_backward
from softclip_cli.training.teachers import Teacher


@dataclass
class Stepper:
    """What a step needs and moves.

    Attributes:
        settings: of the run.
        model: whose weights move; on its device.
        encoder: from a batch to embeddings.
        objective: the loss.
        ema: the moving average of the encoder's module, or None.
        teacher: gives the teacher's embeddings of a batch, or None.
        steps: of the run, over which learning rate and α take their course.
        world: this process among all.
        trainable: the parameters that move; `replicated` are those of them that FSDP does not shard.
        sharded: whether it shards any.
        optimizer: of all of them.
        guard: whether the last batch was skipped.
        norm: of the last gradient, before it was clipped.
    """

    settings: TrainSettings
    model: Model
    encoder: Encoder
    objective: Objective
    ema: EmaTeacher | None
    teacher: Teacher | None
    steps: int
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        named = [*self.encoder.module.named_parameters(), *self.objective.named_parameters(prefix="objective")]
        self.trainable: list[nn.Parameter] = [p for _, p in named if p.requires_grad]
        self.sharded = any(isinstance(p, DTensor) for p in self.trainable)
        self.replicated = [p for p in self.trainable if not isinstance(p, DTensor)]
        self.optimizer = build_optimizer(named, self.settings.optimizer)
        # A fused step over parts and whole tensors cannot be told on the device to leave itself out.
        waits = True if self.sharded else None
        self.guard = Guard(self.encoder.module, self.objective, self.optimizer, self.model.device, waits)
        self.norm: Tensor

    def __call__(self, done: int, batch: Batch, diagnostics: bool) -> ObjectiveOutput:
        """Step number `done`, from 0. A batch whose loss or gradient is no number moves nothing (`guard.flag`)."""
        settings = self.settings
        rate = learning_rate(done, self.steps, settings.optimizer.lr, settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        context = StepContext(
            done,
            done / max(1, self.steps - 1),
            settings.schedule.seed,
            self.world.rank,
            diagnostics,
            settings.data.micro_batch,
            settings.log.alignments,
        )
        self.guard.remember()
        output = forward_backward(self.encoder, self.objective, batch, context, self.teacher)
        with phase(GRADIENTS):
            average_gradients(self.replicated, self.world)  # FSDP has averaged those of sharded parameters
        with phase(OPTIMISER):
            norm = clip_gradients if self.sharded else gradient_norm
            self.norm = norm(self.trainable, settings.optimizer.clip_norm)
            if not self.guard.judge(done, output.loss, self.norm):
                return output
            self.optimizer.step()
            low, high = self.objective.log_scale_range
            with torch.no_grad():
                self.model.net.logit_scale.clamp_(low, high)
            self.objective.clamp_()
        if self.ema is not None:
            with phase(AVERAGE):
                self.ema.update(self.encoder.module, None if self.guard.waits else self.guard.flag)
        return output
