"""An objective: what the training step calls with the embeddings of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softclip_cli.errors import UsageError
from softclip_cli.objectives import distributed
from softclip_cli.objectives.cyclic import cyclic_consistency
from softclip_cli.objectives.diagnostics import Situation, diagnose
from softclip_cli.objectives.directional import RowHead, RowSoft, directional_loss
from softclip_cli.objectives.embeddings import Embeddings, ObjectiveOutput
from softclip_cli.objectives.linear_targets import CosineWeights, LinearTarget, Others, identity
from softclip_cli.objectives.queue import FeatureQueue
from softclip_cli.objectives.schedule import alpha_at, soft_rows
from softclip_cli.objectives.settings import ObjectiveSettings, ResolvedObjective, Teacher, resolve
from softclip_cli.objectives.sigmoid import sigmoid_loss
from softclip_cli.objectives.soft_targets import DIAGONAL_PENALTY, SoftTargets
from softclip_cli.objectives.streaming import Plan, Product, Transposed, make_plan
from softclip_cli.objectives.symmetric import Head, Parts, Soft, symmetric_loss


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


@dataclass
class _Global:
    """One global batch, without gradient: what every process knows."""

    image: Tensor
    text: Tensor
    teacher_image: Tensor | None
    teacher_text: Tensor | None
    groups: Tensor | None


class Objective(nn.Module):
    """A training objective made of the choices of one equation (docs/objectives.md).

        L = ½ [ H(Y_v, σ(kS)) + H(Y_t, σ(kSᵀ)) ]  (+ a regulariser),  S = V Tᵀ

    It may own parameters (a second logit scale for two heads, the bias of the sigmoid loss) and buffers (a queue), all
    of them in its `state_dict`. Value and gradient are computed together in the forward pass, in closed form; second
    derivatives are not available.

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

    @property
    def needs_teacher_text(self) -> bool:
        """Whether the teacher's text embeddings are used at all."""
        return self.needs_teacher not in ("none", "self") and self.choice.similarity != "image"

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

        Raises:
            UsageError: the teacher's embeddings or scale are missing.
        """
        self._check_teacher(teacher)
        alpha = alpha_at(self.choice, progress)
        inputs: list[Tensor | None] = [
            _full_precision(student.image),
            _full_precision(student.text),
            _full_precision(logit_scale),
            None if self.log_soft_scale is None else self.log_soft_scale.exp(),
            self.logit_bias,
        ]
        wanted = torch.is_grad_enabled() and any(item is not None and item.requires_grad for item in inputs)
        image, text, scale, soft_scale, bias = (None if item is None else item.detach() for item in inputs)
        assert image is not None and text is not None and scale is not None
        if soft_scale is not None:
            soft_scale = soft_scale.to(scale)
        with torch.no_grad(), torch.autocast(device_type=image.device.type, enabled=False):
            batch = self._gather(image, text, teacher, groups)
            case = self._situation(batch, teacher, scale, alpha, step=step, seed=seed)
            gradients: list[Tensor | None]
            if self.choice.loss == "sigmoid":
                assert bias is not None
                value, gradients = self._sigmoid(batch, scale, bias.to(scale), wanted)
            elif self.choice.directional:
                value, gradients = self._directional(batch, case, scale, soft_scale, wanted)
            else:
                value, gradients = self._symmetric(batch, case, scale, soft_scale, wanted)
            value = distributed.sum_everywhere(value)
            for index in (2, 3, 4):
                gradient = gradients[index]
                if gradient is not None:
                    gradients[index] = distributed.sum_everywhere(gradient)
            if self.choice.cyclic_intra or self.choice.cyclic_cross:
                extra, *slopes = cyclic_consistency(
                    image, text, self.choice.cyclic_intra, self.choice.cyclic_cross, pairs=batch.image.shape[0]
                )
                value = value + extra
                for index, slope in enumerate(slopes):
                    gradient = gradients[index]
                    gradients[index] = None if gradient is None else gradient + slope
            if distributed.world_size() > 1:
                # The average over processes divides the embeddings' share of every process by their number; scales and
                # biases have their whole gradient everywhere already.
                gradients[:2] = [
                    None if gradient is None else gradient * distributed.world_size() for gradient in gradients[:2]
                ]
            report = diagnose(case) if diagnostics else {}
            if self.queue is not None and self.training and wanted:
                self.queue.put(*self._features(batch))
        if wanted:
            value = _WithGradient.apply(value, len(inputs), *inputs, *gradients)
        return ObjectiveOutput(value, report)

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

    def _gather(self, image: Tensor, text: Tensor, teacher: Embeddings | None, groups: Tensor | None) -> _Global:
        """Embeddings of all processes; in the student's precision, detached."""
        teacher_image = teacher_text = None
        all_image, all_text = distributed.gather_rows(image), distributed.gather_rows(text)
        if self.needs_teacher == "self":
            teacher_image, teacher_text = all_image, all_text
        elif teacher is not None and self.needs_teacher != "none":
            teacher_image = distributed.gather_rows(teacher.image.detach().to(image))
            if self.needs_teacher_text:
                teacher_text = distributed.gather_rows(teacher.text.detach().to(image))
        if groups is not None and self.choice.multi_positive:
            groups = distributed.gather_rows(groups.to(image.device))
        else:
            groups = None
        return _Global(all_image, all_text, teacher_image, teacher_text, groups)

    def _situation(
        self, batch: _Global, teacher: Embeddings | None, scale: Tensor, alpha: float, *, step: int, seed: int
    ) -> Situation:
        """Weights of hard and soft targets for every pair of the batch, and all that diagnostics need."""
        choice, pairs = self.choice, batch.image.shape[0]
        here = pairs // distributed.world_size()
        own = slice(distributed.rank() * here, (distributed.rank() + 1) * here)
        soft = scale.new_full((pairs,), alpha)
        if choice.mix == "subset" and choice.has_soft_targets:
            soft = soft_rows(pairs, alpha, seed=seed, step=step).to(soft)
        hard = torch.ones_like(soft) if choice.mix == "sum" else 1 - soft
        any_soft = alpha > 0 and (choice.mix != "subset" or math.floor(alpha * pairs + 0.5) > 0)
        one_way = choice.soft_directions == "image-to-text"
        return Situation(
            choice=choice,
            alpha=alpha,
            image=batch.image,
            text=batch.text,
            own=own,
            groups=batch.groups,
            scale=scale,
            teacher=self._teacher_sides(batch),
            teacher_scale=self._teacher_scale(scale, teacher),
            hard_image=hard,
            hard_text=torch.ones_like(hard) if one_way else hard,
            soft_image=soft if any_soft else None,
            soft_text=torch.zeros_like(soft) if one_way else soft,
            image_keys=self._keys(batch)[0],
            text_keys=self._keys(batch)[1],
            teacher_image_keys=self._teacher_keys(batch)[0],
            teacher_text_keys=self._teacher_keys(batch)[1],
            blocks=soft.bool() if choice.partition == "blocks" and any_soft else None,
        )

    def _teacher_sides(self, batch: _Global) -> list[tuple[Tensor, Tensor]]:
        """(left, right) whose products add up to the teacher's similarities Z of image rows and text columns."""
        image, text, choice = batch.teacher_image, batch.teacher_text, self.choice
        if image is None or not choice.has_soft_targets:
            return []
        if choice.similarity == "image":
            return [(image, image)]
        assert text is not None
        left, right = (image, text) if choice.targets == "direct" else (text, image)
        if choice.similarity == "cross":
            return [(left, right)]
        # γ_v V̄V̄ᵀ + γ_t T̄T̄ᵀ + S̄ as two products instead of three.
        left_weight, right_weight = choice.intra_weight_image, choice.intra_weight_text
        if choice.targets == "swapped":
            left_weight, right_weight = right_weight, left_weight
        return [(left, left_weight * left + right), (right * right_weight, right)]

    def _teacher_scale(self, scale: Tensor, teacher: Embeddings | None) -> Tensor:
        choice = self.choice
        if choice.rule == "sinkhorn":
            return torch.full_like(scale, 1 / choice.sinkhorn_lambda)
        if choice.teacher_scale_fixed:
            return torch.full_like(scale, choice.teacher_scale_fixed)
        if choice.teacher_scale_of == "teacher" and teacher is not None and teacher.logit_scale is not None:
            return teacher.logit_scale.detach().to(scale).reshape(()) * choice.teacher_scale
        return scale * choice.teacher_scale

    def _features(self, batch: _Global) -> tuple[Tensor, Tensor]:
        """What the queue keeps: a separate teacher's embeddings, else the student's own."""
        if self.needs_teacher in ("ema", "frozen") and batch.teacher_image is not None:
            assert batch.teacher_text is not None
            return batch.teacher_image, batch.teacher_text
        return batch.image, batch.text

    def _keys(self, batch: _Global) -> tuple[Tensor, Tensor]:
        """What the student's texts and images are compared with: the batch, then the queue."""
        image, text = self._features(batch) if self.choice.keys == "teacher" else (batch.image, batch.text)
        if self.queue is None:
            return image, text
        return torch.cat([image, self.queue.images().to(image)]), torch.cat([text, self.queue.texts().to(text)])

    def _teacher_keys(self, batch: _Global) -> tuple[Tensor | None, Tensor | None]:
        if batch.teacher_image is None or batch.teacher_text is None:
            return batch.teacher_image, batch.teacher_text
        if self.queue is None:
            return batch.teacher_image, batch.teacher_text
        image, text = batch.teacher_image, batch.teacher_text
        return torch.cat([image, self.queue.images().to(image)]), torch.cat([text, self.queue.texts().to(text)])

    def _symmetric(
        self, batch: _Global, case: Situation, scale: Tensor, soft_scale: Tensor | None, gradient: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        pairs, width = case.image.shape
        if case.blocks is None:
            parts = self._one_block(case, scale, soft_scale, None, gradient, pairs)
            text_gradient = None if parts.text is None else distributed.scatter_sum_rows(parts.text)
            return parts.loss, self._scale_gradients([parts.image, text_gradient], parts, soft_scale)
        image_gradient = case.image.new_zeros((pairs // distributed.world_size(), width)) if gradient else None
        text_total = torch.zeros_like(case.text) if gradient else None
        loss = scale.new_zeros(())
        scale_total = scale.new_zeros(())
        for members in (torch.nonzero(~case.blocks).flatten(), torch.nonzero(case.blocks).flatten()):
            if members.numel() == 0:
                continue
            parts = self._one_block(case, scale, soft_scale, members, gradient, pairs)
            loss = loss + parts.loss
            if (
                image_gradient is not None
                and text_total is not None
                and parts.image is not None
                and parts.text is not None
            ):
                here = members[(members >= case.own.start) & (members < case.own.stop)] - case.own.start
                image_gradient[here] = parts.image
                text_total[members] = parts.text
                scale_total = scale_total + parts.scales[0]
        text_gradient = None if text_total is None else distributed.scatter_sum_rows(text_total)
        return loss, [image_gradient, text_gradient, scale_total if gradient else None, None, None]

    def _scale_gradients(
        self, embeddings: list[Tensor | None], parts: Parts, soft_scale: Tensor | None
    ) -> list[Tensor | None]:
        if not parts.scales:
            return [None] * 5
        second = None
        if soft_scale is not None:
            second = parts.scales[1] if len(parts.scales) > 1 else torch.zeros_like(soft_scale)
        return [*embeddings, parts.scales[0], second, None]

    def _one_block(
        self,
        case: Situation,
        scale: Tensor,
        soft_scale: Tensor | None,
        members: Tensor | None,
        gradient: bool,
        pairs: int,
    ) -> Parts:
        """The core loss over the whole batch, or over the pairs in `members` alone."""
        choice = self.choice
        rows: slice | Tensor = case.own

        def pick(values: Tensor) -> Tensor:
            return values if members is None else values[members]

        if members is not None:
            rows = torch.nonzero((members >= case.own.start) & (members < case.own.stop)).flatten()
        image, text = pick(case.image), pick(case.text)
        hard_image, hard_text = pick(case.hard_image), pick(case.hard_text)
        plan = make_plan(
            image[rows].shape[0],
            image.shape[0],
            dtype=image.dtype,
            device=image.device,
            tiled=choice.tiled,
            tile_rows=choice.tile_rows,
        )
        product = Product([(image[rows], text)], plan)
        hard_target = identity(None if case.groups is None else pick(case.groups))
        hard_pull: tuple[LinearTarget, LinearTarget, Tensor, Tensor] = (hard_target, hard_target, hard_image, hard_text)
        if case.soft_image is None:
            heads = [Head(scale, hard_image, hard_text, [hard_pull])]
            return symmetric_loss(image, text, rows, product, heads, None, plan, pairs=pairs, gradient=gradient)
        soft_image, soft_text = pick(case.soft_image), pick(case.soft_text)
        if soft_scale is not None:
            heads = [Head(scale, hard_image, hard_text, [hard_pull]), Head(soft_scale, soft_image, soft_text)]
        elif choice.mix == "sum":
            heads = [Head(scale, hard_image + soft_image, hard_text + soft_text, [hard_pull])]
        else:
            ones = torch.ones_like(hard_image)
            heads = [Head(scale, ones, ones, [hard_pull])]
        soft = None
        sides = [(pick(left), pick(right)) for left, right in case.teacher]
        if choice.rule == "uniform":
            others = Others()
            heads[-1].pulls.append((others, others, soft_image, soft_text))
        elif choice.rule == "cosine":
            weights = CosineWeights(*sides[0])
            heads[-1].pulls.append((weights, weights.transposed_similarity(), soft_image, soft_text))
        elif bool(members is None) or bool(soft_image.any()):
            targets = self._soft_targets(case, sides, product, rows, plan)
            soft = Soft(targets, soft_image, soft_text, divergence=choice.mix == "two-head")
        parts = symmetric_loss(image, text, rows, product, heads, soft, plan, pairs=pairs, gradient=gradient)
        if soft is not None and soft.targets.text_bias is not None and soft.targets.image_bias is not None:
            if case.text_bias is None or case.image_bias is None:
                case.text_bias, case.image_bias = (case.scale.new_zeros(case.image.shape[0]) for _ in range(2))
            everyone = slice(None) if members is None else members
            case.text_bias[everyone] = soft.targets.text_bias
            case.image_bias[rows if members is None else members[rows]] = soft.targets.image_bias
        return parts

    def _soft_targets(
        self, case: Situation, sides: list[tuple[Tensor, Tensor]], product: Product, rows: slice | Tensor, plan: Plan
    ) -> SoftTargets:
        choice = self.choice
        columns = sides[0][1].shape[0]
        source: Product | Transposed
        if choice.teacher == "self" and choice.similarity == "cross" and choice.targets == "direct":
            source = product
        elif choice.teacher == "self" and choice.similarity == "cross" and plan.keep and product.shape[0] == columns:
            source = Transposed(product)
        else:
            source = Product([(left[rows], right) for left, right in sides], plan)
        limit, penalty = 1.0, DIAGONAL_PENALTY
        if choice.similarity == "cross+intra":
            limit += choice.intra_weight_image + choice.intra_weight_text
            penalty *= choice.intra_weight_image + choice.intra_weight_text
        drop = None
        if choice.target_diagonal == "drop":
            drop = torch.arange(columns, device=sides[0][0].device)[rows]
        return SoftTargets(
            source,
            case.teacher_scale,
            limit,
            plan,
            drop=drop,
            iterations=choice.sinkhorn_iterations if choice.rule == "sinkhorn" else None,
            penalty=penalty,
        )

    def _directional(
        self, batch: _Global, case: Situation, scale: Tensor, soft_scale: Tensor | None, gradient: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        choice, pairs = self.choice, case.image.shape[0]
        own = case.own
        plan = make_plan(
            own.stop - own.start,
            case.text_keys.shape[0],
            dtype=case.image.dtype,
            device=case.image.device,
            tiled=choice.tiled,
            tile_rows=choice.tile_rows,
        )
        target = identity(case.groups)
        teacher_sides: list[tuple[Tensor, Tensor]] = []
        if case.soft_image is not None and case.teacher:
            image, text = batch.teacher_image, batch.teacher_text
            image_keys, text_keys = case.teacher_image_keys, case.teacher_text_keys
            assert image is not None and text is not None and image_keys is not None and text_keys is not None
            teacher_sides = [(image, text_keys), (text, image_keys)]
            if choice.targets == "swapped":
                teacher_sides.reverse()
        directions = [
            (case.image, case.text_keys, case.hard_image, case.soft_image),
            (case.text, case.image_keys, case.hard_text, None if case.soft_image is None else case.soft_text),
        ]
        results = []
        for index, (queries, keys, hard, soft_weight) in enumerate(directions):
            soft = None
            heads = [RowHead(scale, hard[own])]
            if soft_weight is not None:
                if soft_scale is not None:
                    heads.append(RowHead(soft_scale, soft_weight[own]))
                else:
                    heads = [
                        RowHead(scale, (hard + soft_weight if choice.mix == "sum" else torch.ones_like(hard))[own])
                    ]
                teacher_queries, teacher_keys = teacher_sides[index]
                soft = RowSoft(
                    teacher_queries[own],
                    teacher_keys,
                    case.teacher_scale,
                    soft_weight[own],
                    divergence=choice.mix == "two-head",
                )
            results.append(
                directional_loss(
                    queries[own],
                    keys,
                    own,
                    pairs,
                    heads,
                    (target, hard[own]),
                    soft,
                    plan,
                    pairs=pairs,
                    gradient=gradient,
                    key_gradient=choice.keys == "student",
                )
            )
        loss = results[0].loss + results[1].loss
        if not gradient:
            return loss, [None] * 5
        gradients: list[Tensor | None] = []
        for mine, other in ((results[0], results[1]), (results[1], results[0])):
            total = mine.queries
            if total is not None and other.keys is not None:
                total = total + distributed.scatter_sum_rows(other.keys)
            gradients.append(total)
        scales = [first + second for first, second in zip(results[0].scales, results[1].scales, strict=True)]
        second_scale = None
        if soft_scale is not None:
            second_scale = scales[1] if len(scales) > 1 else torch.zeros_like(soft_scale)
        return loss, [*gradients, scales[0], second_scale, None]

    def _sigmoid(
        self, batch: _Global, scale: Tensor, bias: Tensor, gradient: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        pairs = batch.image.shape[0]
        here = pairs // distributed.world_size()
        rows = slice(distributed.rank() * here, (distributed.rank() + 1) * here)
        image = batch.image[rows]
        plan = self.plan(here, dtype=image.dtype, device=image.device)
        product = Product([(image, batch.text)], plan)
        parts = sigmoid_loss(image, batch.text, rows, product, scale, bias, batch.groups, plan, gradient=gradient)
        text_gradient = None if parts.text is None else distributed.scatter_sum_rows(parts.text)
        if not gradient:
            return parts.loss, [None] * 5
        return parts.loss, [parts.image, text_gradient, parts.scale, None, parts.bias]


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
