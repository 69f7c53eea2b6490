"""An objective: what the training step calls with the embeddings of a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from softclip_cli.errors import UsageError
from softclip_cli.objectives import distributed
from softclip_cli.objectives.alignments import pair_alignments
from softclip_cli.objectives.batch import gather_batch
from softclip_cli.objectives.core import LossGradient, loss_and_gradient
from softclip_cli.objectives.cyclic import cyclic_consistency
from softclip_cli.objectives.diagnostics import diagnose
from softclip_cli.objectives.embeddings import Embeddings, ObjectiveOutput
from softclip_cli.objectives.pair_weights import PairWeights
from softclip_cli.objectives.queue import FeatureQueue
from softclip_cli.objectives.schedule import alpha_at
from softclip_cli.objectives.settings import ObjectiveSettings, ResolvedObjective, Teacher, resolve
from softclip_cli.objectives.streaming import Plan, make_plan


class _WithGradient(torch.autograd.Function):
    """A scalar whose gradient is known already: the loss is computed once, forwards."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor | None) -> Tensor:
        """`tensors`: `count` inputs, then the gradient of each."""
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the known gradients."""
        gradients = [None if saved is None else saved * outputs[0] for saved in ctx.saved_tensors]
        return (None, None, *gradients, *(None for _ in gradients))


class Objective(nn.Module):
    """A training objective made of the choices of one equation (docs/objectives.md).

        L = ½ [ H(Y_v, σ(kS)) + H(Y_t, σ(kSᵀ)) ]  (+ a regulariser),  S = V Tᵀ

    It may own parameters (a second logit scale for two heads, the bias of the sigmoid loss) and buffers (a queue, what is
    known of mismatched pairs), all of them in its `state_dict`. Value and gradient are computed together in the forward
    pass, in closed form; second derivatives are not available.

    Args:
        choice: the resolved choices.
        embed_dim: width of the student's embeddings (needed by a queue).
        teacher_dim: width of the teacher's embeddings, where known; default: the student's.

    Attributes:
        choice: the same.
        needs_teacher: who makes the soft targets; for none and self, call it with teacher=None.
        initial_logit_scale: what a new model's k should start from.
        log_scale_range: where ln k is to be kept (the model's parameter is the trainer's to clamp).
        ema_decay, ema_warmup: for a moving-average teacher.

    Raises:
        UsageError: a teacher whose embeddings cannot be the student's keys.
    """

    def __init__(self, choice: ResolvedObjective, *, embed_dim: int, teacher_dim: int | None = None) -> None:
        super().__init__()
        self.choice = choice
        self.needs_teacher: Teacher = choice.teacher
        self.initial_logit_scale = choice.initial_logit_scale
        self.log_scale_range = (math.log(choice.min_logit_scale), math.log(choice.max_logit_scale))
        self.ema_decay, self.ema_warmup = choice.ema_decay, choice.ema_warmup
        if choice.keys == "teacher" and teacher_dim not in (None, embed_dim):
            raise UsageError(
                f"the teacher's embeddings have {teacher_dim} dimensions, the student's {embed_dim}",
                "objective.keys = teacher compares the student with the teacher directly",
                "choose a teacher of the same width, or set objective.keys = student",
            )
        self.log_soft_scale: nn.Parameter | None = None
        self.logit_bias: nn.Parameter | None = None
        if choice.mix == "two-head" and choice.has_soft_targets:
            self.log_soft_scale = nn.Parameter(torch.tensor(math.log(choice.initial_soft_logit_scale)))
        if choice.loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(choice.initial_logit_bias))
        self.queue = FeatureQueue(choice.queue_size, embed_dim) if choice.queue_size else None
        self.pair_weights = PairWeights() if choice.pair_weights == "posterior" else None

    @property
    def needs_teacher_text(self) -> bool:
        """Whether the teacher's text embeddings are used at all."""
        return self.needs_teacher not in ("none", "self") and self.choice.similarity != "image"

    def take_back(self, where: Tensor | None = None) -> None:
        """Undo what the last forward pass did to the buffers: its batch was bad.

        Args:
            where: a bool scalar on the device that says whether to; left out: yes.
        """
        for kept in (self.queue, self.pair_weights):
            if kept is not None:
                kept.take_back(where)

    def clamp_(self) -> None:
        """Keep the own parameters in their range; call it after each optimiser step."""
        if self.log_soft_scale is not None:
            with torch.no_grad():
                self.log_soft_scale.clamp_(*self.log_scale_range)

    def plan(self, pairs: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Plan:
        """How a batch of `pairs` pairs on each process will be computed: dense or tiled, in which tiles, and why."""
        columns = pairs * distributed.world_size() + (self.choice.queue_size if self.queue is not None else 0)
        return make_plan(
            pairs,
            columns,
            dtype=dtype,
            device=torch.device(device),
            tiled=self.choice.tiled,
            tile_rows=self.choice.tile_rows,
        )

    def tiling_reason(
        self, pairs: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> str:
        """One line for the log: dense or tiled, and why."""
        return self.plan(pairs, dtype=dtype, device=device).reason

    def forward(
        self,
        student: Embeddings,
        teacher: Embeddings | None,
        logit_scale: Tensor,
        progress: float,
        *,
        step: int = 0,
        seed: int = 0,
        groups: Tensor | None = None,
        diagnostics: bool = True,
        alignments: bool = False,
    ) -> ObjectiveOutput:
        """The loss of a batch.

        With torch.distributed in use, every process passes its own n pairs (the same n everywhere) and gets the loss of
        the global batch; its gradients are such that their average over processes, as DistributedDataParallel takes it,
        is the single-process gradient.

        Args:
            student: (n, d) each, with gradient.
            teacher: (n, e) each; None when there is no teacher or the student teaches itself.
            logit_scale: k > 0, a scalar, with gradient.
            progress: in [0, 1], how much of the training is done.
            step: with `seed`, decides random partitions.
            seed: the run's seed.
            groups: (n,) int64 ids of image or caption; used when `objective.multi_positive` is set.
            diagnostics: compute what is worth logging too.
            alignments: compute what is to be said of each pair too (`objectives.alignments`).

        Raises:
            UsageError: the teacher's embeddings or scale are missing.
        """
        self._check_teacher(teacher)
        parts = [
            _full_precision(student.image),
            _full_precision(student.text),
            _full_precision(logit_scale),
            None if self.log_soft_scale is None else self.log_soft_scale.exp().to(logit_scale),
            None if self.logit_bias is None else self.logit_bias.to(logit_scale),
        ]
        inputs = [part for part in parts if part is not None]
        wanted = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
        image, text, scale, soft_scale, bias = (None if part is None else part.detach() for part in parts)
        assert image is not None and text is not None and scale is not None
        with torch.no_grad(), torch.autocast(device_type=image.device.type, enabled=False):
            batch = gather_batch(
                self.choice,
                image,
                text,
                teacher,
                scale.reshape(()),
                bias=bias,
                alpha=alpha_at(self.choice, progress),
                step=step,
                seed=seed,
                groups=groups,
                queue=self.queue,
                weigh=self.pair_weights,
                learn=self.training and wanted,
            )
            result = loss_and_gradient(batch, soft_scale=soft_scale, gradient=wanted)
            self._regularise(result, image, text, batch.pairs)
            if (diagnostics or alignments) and batch.image_bias is not None:
                batch.image_bias = distributed.sum_everywhere(batch.image_bias)
            report = diagnose(batch) if diagnostics else {}
            aligned = pair_alignments(batch) if alignments else None
            if self.queue is not None and self.training and wanted:
                self.queue.put(*batch.features)
        if not wanted:
            return ObjectiveOutput(result.loss, report, aligned)
        size = distributed.world_size()
        if size > 1 and result.image is not None and result.text is not None:
            # The average over processes divides every process's share of the embeddings' gradient by their number;
            # scales and bias have their whole gradient everywhere already.
            result.image, result.text = result.image * size, result.text * size
        scale_gradient = None if result.scale is None else result.scale.reshape(scale.shape)
        gradients = [result.image, result.text, scale_gradient, result.soft_scale, result.bias]
        known = [gradient for part, gradient in zip(parts, gradients, strict=True) if part is not None]
        return ObjectiveOutput(_WithGradient.apply(result.loss, len(inputs), *inputs, *known), report, aligned)

    def _regularise(self, result: LossGradient, image: Tensor, text: Tensor, pairs: int) -> None:
        """Add the cyclic consistency to value and gradient."""
        choice = self.choice
        if not (choice.cyclic_intra or choice.cyclic_cross):
            return
        value, to_image, to_text = cyclic_consistency(
            image, text, choice.cyclic_intra, choice.cyclic_cross, pairs=pairs
        )
        result.loss = result.loss + value
        if result.image is not None and result.text is not None:
            result.image, result.text = result.image + to_image, result.text + to_text

    def _check_teacher(self, teacher: Embeddings | None) -> None:
        if self.needs_teacher in ("ema", "frozen") and teacher is None:
            raise UsageError(
                f"objective {self.choice.name!r} needs the embeddings of its {self.needs_teacher} teacher",
                hint="pass them to the objective, or set objective.teacher = self",
            )
        if (
            self.choice.teacher_scale_of == "teacher"
            and not self.choice.teacher_scale_fixed
            and teacher is not None
            and teacher.logit_scale is None
        ):
            raise UsageError(
                "the teacher brings no logit scale of its own",
                "objective.teacher_scale_of = teacher asks for it",
                "set objective.teacher_scale_fixed, for example to 100",
            )


def _full_precision(value: Tensor) -> Tensor:
    """float32 for half-precision input (with gradient), float64 as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def build_objective(
    settings: ObjectiveSettings, *, embed_dim: int, teacher_dim: int | None = None, batch_size: int | None = None
) -> Objective:
    """The objective that the settings describe.

    Args:
        settings: the preset and its overrides.
        embed_dim: width of the student's embeddings.
        teacher_dim: width of a frozen teacher's embeddings, where known.
        batch_size: pairs in a global batch, where known.

    Raises:
        UsageError: settings that do not go together; lists all of them.
    """
    return Objective(resolve(settings, batch_size=batch_size), embed_dim=embed_dim, teacher_dim=teacher_dim)
