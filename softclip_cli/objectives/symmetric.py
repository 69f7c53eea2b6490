"""The core loss over one batch: both directions from one product S = V Tᵀ, with its gradient in closed form.

    L = 1/(2N) Σ_i [ h_i H(I_i, σ(k S)_i) + a_i H(A_i, σ(k' S)_i) ]  + the same with Sᵀ

where h and a weigh the hard and the soft target of a row, and k' is k unless the soft head has a scale of its own.
Since H(Y, σ(kS)) = lse − k Σ Y·S, the gradient with respect to S is k (σ − Y): only row and column log-sums have to be
known before it, so the matrix is streamed by slabs of rows, kept (dense) or computed a second time (tiled).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from softclip_cli.objectives.linear_targets import LinearTarget
from softclip_cli.objectives.soft_targets import SoftTargets
from softclip_cli.objectives.streaming import Block, ColumnLogSum, Plan, Product, is_bounded


@dataclass
class Head:
    """One softmax head: a logit scale, the weight of its rows, and the targets that need no N×N matrix.

    Attributes:
        scale: k, a scalar.
        image, text: (M,) weight of every pair's row in each direction: the sum of the weights of its targets.
        pulls: (target, image weight (M,), text weight (M,)) of linear targets; `target` says how image rows are made,
            the second target how text rows are.
    """

    scale: Tensor
    image: Tensor
    text: Tensor
    pulls: list[tuple[LinearTarget, LinearTarget, Tensor, Tensor]] = field(default_factory=list)


@dataclass
class Soft:
    """The full-rank soft targets, belonging to the last head."""

    targets: SoftTargets
    image: Tensor
    text: Tensor
    divergence: bool
    """count Σ A log A too: the KL divergence instead of the cross entropy"""


@dataclass
class Parts:
    """What one process contributes: a sum of these over processes is the whole, for the (sub-)batch.

    Attributes:
        loss: scalar.
        image: (n, d) gradient of the rows computed here (complete).
        text: (M, d) gradient of all columns (partial).
        scales: one scalar a head.
    """

    loss: Tensor
    image: Tensor | None = None
    text: Tensor | None = None
    scales: list[Tensor] = field(default_factory=list)


def precise_sum(values: Tensor) -> Tensor:
    """Sum in float64 where the device has it."""
    return values.sum(dtype=None if values.device.type == "mps" else torch.float64).to(values.dtype)


def symmetric_loss(
    image: Tensor,
    text: Tensor,
    rows: Tensor | slice,
    product: Product,
    heads: list[Head],
    soft: Soft | None,
    plan: Plan,
    *,
    pairs: int,
    gradient: bool,
) -> Parts:
    """Value and gradient of the core loss, for the rows that this process computes.

    Args:
        image: V, (M, d).
        text: T, (M, d).
        rows: which rows of the batch are computed here.
        product: S of these rows by slabs, (n, M).
        heads: the softmax heads, at most two.
        soft: full-rank soft targets of the last head.
        plan: the slabs.
        pairs: N of the whole batch, by which the loss is divided.
        gradient: whether the gradient is wanted.
    """
    own_image, own_text = image[rows], text[rows]
    count, columns = own_image.shape[0], text.shape[0]
    factor = 0.5 / pairs
    work = image.new_empty((min(plan.rows, count), columns))
    bounded = [is_bounded(head.scale, product.limit) for head in heads]
    row_sums = [work.new_empty(count) for _ in heads]
    accumulators = [ColumnLogSum(columns, work, safe) for safe in bounded]

    for slab in plan.slabs(count):
        similarity = product.slab(slab)
        for head, safe, row_sum, accumulator in zip(heads, bounded, row_sums, accumulators, strict=True):
            block = Block(torch.mul(similarity, head.scale, out=work[: similarity.shape[0]]), safe)
            row_sum[slab] = block.row_log_sum()
            accumulator.add(block)
        if soft is not None:
            soft.targets.measure(slab)
    column_sums = [accumulator.close() for accumulator in accumulators]
    loss = image.new_zeros(())
    for head, row_sum, column_sum in zip(heads, row_sums, column_sums, strict=True):
        loss = loss + precise_sum(_zero_safe(head.image[rows], row_sum))
        loss = loss + precise_sum(_zero_safe(head.text[rows], column_sum[rows]))
    if soft is not None:
        soft.targets.close()

    image_gradient = image.new_empty((count, image.shape[1])) if gradient else None
    text_gradient = torch.zeros_like(text) if gradient else None
    spread = [image.new_zeros(()) for _ in heads]  # Σ weight · σ · S of each head
    attraction = image.new_zeros(())  # Σ weight · A · S of the soft targets
    if gradient or soft is not None:
        scratch = torch.empty_like(work)
        second = torch.empty_like(work) if len(heads) > 1 else work
        for slab in plan.slabs(count, backwards=True):
            similarity = product.slab(slab)
            size = similarity.shape[0]
            push = None
            if gradient:
                for index, head in enumerate(heads):
                    row = (head.image[rows][slab] * head.scale).log() - row_sums[index][slab]
                    column = (head.text * head.scale).log() - column_sums[index]
                    memory = (work if index == 0 else second)[:size]
                    block = Block(torch.mul(similarity, head.scale, out=memory), bounded[index])
                    weights = block.weighted(row, column, scratch[:size])
                    if len(heads) > 1:
                        spread[index] += torch.mul(weights, similarity, out=scratch[:size]).sum() / head.scale
                    push = weights if push is None else push.add_(weights)
            if soft is not None:
                scale = heads[-1].scale
                matrix, information = soft.targets.weighted(
                    slab, soft.image[rows] * scale, soft.text * scale, scratch[:size], information=soft.divergence
                )
                attraction += torch.mul(matrix, similarity, out=scratch[:size]).sum() / scale
                if information is not None:
                    loss = loss + information / scale
                if push is not None:
                    push.sub_(matrix)
            if push is not None and image_gradient is not None and text_gradient is not None:
                torch.mm(push, text, out=image_gradient[slab])
                text_gradient.addmm_(push.T, own_image[slab])
    if soft is not None:
        loss = loss - heads[-1].scale * attraction
        if soft.divergence:
            targets = soft.targets
            loss = loss - precise_sum(_zero_safe(soft.image[rows], targets.row_log_sum))
            loss = loss - precise_sum(_zero_safe(soft.text[rows], targets.column_log_sum[rows]))

    pulled = [image.new_zeros(()) for _ in heads]
    for index, head in enumerate(heads):
        for image_target, text_target, image_weight, text_weight in head.pulls:
            to_text, to_image = image_target.apply(text)[rows], text_target.apply(image)[rows]
            pulled[index] = pulled[index] + precise_sum(image_weight[rows] * (own_image * to_text).sum(dim=1))
            pulled[index] = pulled[index] + precise_sum(text_weight[rows] * (own_text * to_image).sum(dim=1))
            if image_gradient is not None and text_gradient is not None:
                weight = -head.scale * image_weight[:, None]
                image_gradient.addcmul_(to_text, weight[rows])
                text_gradient[rows] += image_target.apply_transposed(image * weight)[rows]
                weight = -head.scale * text_weight[:, None]
                text_gradient[rows] += to_image * weight[rows]
                image_gradient += text_target.apply_transposed(text * weight)[rows]
        loss = loss - head.scale * pulled[index]
    if image_gradient is None or text_gradient is None:
        return Parts(loss * factor)
    if len(heads) == 1:
        # Σ G·S = Σ_i V_i · (G T)_i, and G carries a factor k.
        scales = [precise_sum((own_image * image_gradient).sum(dim=1)) / heads[0].scale * factor]
    else:
        scales = [(push_sum - pull) * factor for push_sum, pull in zip(spread, pulled, strict=True)]
        if soft is not None:
            scales[-1] = scales[-1] - attraction * factor
    return Parts(loss * factor, image_gradient.mul_(factor), text_gradient.mul_(factor), scales)


def _zero_safe(weight: Tensor, value: Tensor) -> Tensor:
    """weight · value, 0 where the weight is 0 whatever the value."""
    return torch.where(weight > 0, weight * value, torch.zeros_like(value))
