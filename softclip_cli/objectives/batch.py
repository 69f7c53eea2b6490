"""One global batch as the loss sees it: embeddings of all processes, what the teacher says, and how soft each row is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softclip_cli.objectives import distributed
from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.pair_weights import PairWeights
from softclip_cli.objectives.queue import FeatureQueue
from softclip_cli.objectives.schedule import soft_rows
from softclip_cli.objectives.settings import ResolvedObjective


@dataclass
class GlobalBatch:
    """N pairs of all processes, without gradient.

    Attributes:
        choice: the choices of the objective.
        alpha: share of the soft targets.
        image, text: (N, d) the student's embeddings.
        own: the rows of this process.
        groups: (N,) ids of pairs that share their positives, or None.
        scale: the student's logit scale, a scalar.
        bias: what is added to its logits, a scalar; None but with loss = sigmoid.
        teacher_image, teacher_text: (N, e), or None where they are not needed.
        teacher: (left, right) factors whose products add up to the teacher's similarities of image rows and text columns.
        teacher_scale: what these are multiplied with.
        pair_weight: (N,) how much each pair counts, mean 1; the weights of a row's targets add up to it.
        hard_image, hard_text: (N,) weight of the hard target of each row, in both directions.
        soft_image, soft_text: (N,) weight of the soft target; None when no row is soft.
        keys: the images and texts, (M, d) each, that the student's texts and images are compared with.
        teacher_keys: the teacher's, (M, e) each.
        blocks: (N,) which sub-batch a pair is in, when the batch is split.
        text_bias, image_bias: (N,) Sinkhorn's potentials, put here by the loss; image_bias is 0 but for `own`.
        weighing: what is worth logging of how pairs were weighed.
    """

    choice: ResolvedObjective
    alpha: float
    image: Tensor
    text: Tensor
    own: slice
    groups: Tensor | None
    scale: Tensor
    bias: Tensor | None
    teacher_image: Tensor | None
    teacher_text: Tensor | None
    teacher: list[tuple[Tensor, Tensor]]
    teacher_scale: Tensor
    pair_weight: Tensor
    hard_image: Tensor
    hard_text: Tensor
    soft_image: Tensor | None
    soft_text: Tensor | None
    keys: tuple[Tensor, Tensor]
    teacher_keys: tuple[Tensor, Tensor] | None
    blocks: Tensor | None
    text_bias: Tensor | None = None
    image_bias: Tensor | None = None
    weighing: dict[str, Tensor] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """N."""
        return self.image.shape[0]

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """What a queue keeps of this batch: a separate teacher's embeddings, else the student's own."""
        if self.teacher_image is not None and self.teacher_text is not None:
            return self.teacher_image, self.teacher_text
        return self.image, self.text


def gather_batch(
    choice: ResolvedObjective,
    image: Tensor,
    text: Tensor,
    teacher: Embeddings | None,
    scale: Tensor,
    *,
    bias: Tensor | None = None,
    alpha: float,
    step: int,
    seed: int,
    groups: Tensor | None,
    queue: FeatureQueue | None,
    weigh: PairWeights | None = None,
    learn: bool = False,
) -> GlobalBatch:
    """Put the batch together from all processes and decide the weight of every target.

    Args:
        choice: the choices of the objective.
        image, text: (n, d) the student's, of this process, detached, in the precision to compute in.
        teacher: (n, e), of this process, where there is a separate one.
        scale: the student's logit scale.
        bias: of the sigmoid loss.
        alpha: share of the soft targets.
        step, seed: decide random partitions.
        groups: (n,) ids, used with `multi_positive`.
        queue: past pairs.
        weigh: gives pairs their weight, where they do not count the same.
        learn: let it learn from this batch.
    """
    size, rank = distributed.world_size(), distributed.rank()
    own = slice(rank * image.shape[0], (rank + 1) * image.shape[0])
    image, text = distributed.gather_rows(image), distributed.gather_rows(text)
    pairs = image.shape[0]
    assert pairs == size * (own.stop - own.start)
    teacher_image = teacher_text = None
    if choice.teacher == "self":
        teacher_image, teacher_text = image, text
    elif teacher is not None and choice.teacher != "none":
        teacher_image = distributed.gather_rows(teacher.image.detach().to(image))
        if choice.similarity != "image":
            teacher_text = distributed.gather_rows(teacher.text.detach().to(image))
    shared = groups if choice.multi_positive else None
    soft = scale.new_full((pairs,), alpha)
    if choice.mix == "subset" and choice.has_soft_targets:
        soft = soft_rows(pairs, alpha, seed=seed, step=step).to(soft)
    any_soft = alpha > 0 and (choice.mix != "subset" or math.floor(alpha * pairs + 0.5) > 0)
    hard = torch.ones_like(soft) if choice.mix == "sum" else 1 - soft
    pair_weight, weighing = torch.ones_like(hard), {}
    if weigh is not None:
        assert teacher_image is not None and teacher_text is not None
        pair_weight, weighing = weigh(teacher_image, teacher_text, update=learn)
        hard, soft = hard * pair_weight, soft * pair_weight
    one_way = choice.soft_directions == "image-to-text"
    keys, teacher_keys = _keys(choice, (image, text), (teacher_image, teacher_text), queue)
    return GlobalBatch(
        choice=choice,
        alpha=alpha,
        image=image,
        text=text,
        own=own,
        groups=None if shared is None else distributed.gather_rows(shared.to(image.device)),
        scale=scale,
        bias=bias,
        teacher_image=teacher_image,
        teacher_text=teacher_text,
        teacher=_teacher_factors(choice, teacher_image, teacher_text),
        teacher_scale=_teacher_scale(choice, scale, teacher),
        pair_weight=pair_weight,
        hard_image=hard,
        hard_text=pair_weight if one_way else hard,
        soft_image=soft if any_soft else None,
        soft_text=None if not any_soft else torch.zeros_like(soft) if one_way else soft,
        keys=keys,
        teacher_keys=teacher_keys,
        blocks=soft.bool() if choice.partition == "blocks" and any_soft else None,
        weighing=weighing,
    )


def _teacher_factors(
    choice: ResolvedObjective, image: Tensor | None, text: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    if image is None or not choice.has_soft_targets:
        return []
    if choice.similarity == "image":
        return [(image, image)]
    assert text is not None
    left, right = (image, text) if choice.targets == "direct" else (text, image)
    if choice.similarity == "cross":
        return [(left, right)]
    left_weight, right_weight = choice.intra_weight_image, choice.intra_weight_text
    if choice.targets == "swapped":
        left_weight, right_weight = right_weight, left_weight
    # γ_v V̄V̄ᵀ + γ_t T̄T̄ᵀ + S̄ in two products instead of three.
    return [(left, left_weight * left + right), (right * right_weight, right)]


def _teacher_scale(choice: ResolvedObjective, scale: Tensor, teacher: Embeddings | None) -> Tensor:
    if choice.rule == "sinkhorn":
        return torch.full_like(scale, 1 / choice.sinkhorn_lambda)
    if choice.teacher_scale_fixed:
        return torch.full_like(scale, choice.teacher_scale_fixed)
    if choice.teacher_scale_of == "teacher" and teacher is not None and teacher.logit_scale is not None:
        return teacher.logit_scale.detach().to(scale).reshape(()) * choice.teacher_scale
    return scale * choice.teacher_scale


def _keys(
    choice: ResolvedObjective,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor | None, Tensor | None],
    queue: FeatureQueue | None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """(images, texts) that the student is compared with, and those of the teacher: the batch, then the queue."""

    def extended(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        if queue is None:
            return image, text
        return torch.cat([image, queue.images().to(image)]), torch.cat([text, queue.texts().to(text)])

    image, text = teacher
    if image is None or text is None:
        return extended(*student), None
    taught = extended(image, text)
    return taught if choice.keys == "teacher" or choice.teacher == "self" else extended(*student), taught
