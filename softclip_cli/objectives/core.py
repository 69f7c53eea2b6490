"""From a global batch to value and gradient: which of the three cores computes it, and with which heads and targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softclip_cli.objectives import distributed
from softclip_cli.objectives.batch import GlobalBatch
from softclip_cli.objectives.directional import RowHead, RowSoft, directional_loss
from softclip_cli.objectives.linear_targets import CosineWeights, LinearTarget, Others, identity
from softclip_cli.objectives.sigmoid import PairTargets, sigmoid_loss
from softclip_cli.objectives.soft_targets import DIAGONAL_PENALTY, SoftTargets
from softclip_cli.objectives.streaming import Plan, Product, Transposed, make_plan
from softclip_cli.objectives.symmetric import Head, Parts, Soft, symmetric_loss


@dataclass
class LossGradient:
    """The loss of the global batch and its gradient, the same on every process but for `image` and `text`.

    Attributes:
        loss: scalar.
        image, text: (n, d) gradient of the rows of this process; None when no gradient was wanted.
        scale, soft_scale, bias: gradients of the scalars; None where there is no such thing.
    """

    loss: Tensor
    image: Tensor | None = None
    text: Tensor | None = None
    scale: Tensor | None = None
    soft_scale: Tensor | None = None
    bias: Tensor | None = None


def loss_and_gradient(batch: GlobalBatch, *, soft_scale: Tensor | None, gradient: bool) -> LossGradient:
    """Compute the objective of a batch, together with the other processes.

    Args:
        batch: the global batch.
        soft_scale: the soft head's own logit scale, if it has one.
        gradient: whether the gradient is wanted.
    """
    if batch.choice.loss == "sigmoid":
        result = _sigmoid(batch, gradient)
    elif batch.choice.directional:
        result = _directional(batch, soft_scale, gradient)
    else:
        result = _symmetric(batch, soft_scale, gradient)
    names = [name for name in ("loss", "scale", "soft_scale", "bias") if getattr(result, name) is not None]
    totals = distributed.sum_everywhere(torch.stack([getattr(result, name).reshape(()) for name in names]))
    for name, total in zip(names, totals.unbind(), strict=True):
        setattr(result, name, total)
    return result


def _plan(batch: GlobalBatch, rows: int, columns: int) -> Plan:
    choice, image = batch.choice, batch.image
    return make_plan(
        rows, columns, dtype=image.dtype, device=image.device, tiled=choice.tiled, tile_rows=choice.tile_rows
    )


def _symmetric(batch: GlobalBatch, soft_scale: Tensor | None, gradient: bool) -> LossGradient:
    if batch.blocks is None:
        parts = _one_block(batch, soft_scale, None, gradient)
        result = LossGradient(parts.loss, parts.image)
        text = parts.text
        if gradient:
            result.scale = parts.scales[0]
            if soft_scale is not None:
                result.soft_scale = parts.scales[1] if len(parts.scales) > 1 else torch.zeros_like(soft_scale)
    else:
        result = LossGradient(torch.zeros_like(batch.scale))
        text = torch.zeros_like(batch.text) if gradient else None
        if gradient:
            result.image, result.scale = torch.zeros_like(batch.image[batch.own]), torch.zeros_like(batch.scale)
        for members in (torch.nonzero(~batch.blocks).flatten(), torch.nonzero(batch.blocks).flatten()):
            if members.numel() == 0:
                continue
            parts = _one_block(batch, None, members, gradient)
            result.loss = result.loss + parts.loss
            if result.image is None or result.scale is None or text is None:
                continue
            assert parts.image is not None and parts.text is not None
            here = members[(members >= batch.own.start) & (members < batch.own.stop)] - batch.own.start
            result.image[here] = parts.image
            text[members] = parts.text
            result.scale = result.scale + parts.scales[0]
    result.text = None if text is None else distributed.scatter_sum_rows(text)
    return result


def _one_block(batch: GlobalBatch, soft_scale: Tensor | None, members: Tensor | None, gradient: bool) -> Parts:
    """The core loss over the whole batch, or over the pairs in `members` alone."""
    choice = batch.choice
    everyone: slice | Tensor = slice(None) if members is None else members
    rows: slice | Tensor = batch.own
    if members is not None:
        rows = torch.nonzero((members >= batch.own.start) & (members < batch.own.stop)).flatten()
    image, text = batch.image[everyone], batch.text[everyone]
    hard_image, hard_text = batch.hard_image[everyone], batch.hard_text[everyone]
    plan = _plan(batch, image[rows].shape[0], image.shape[0])
    product = Product([(image[rows], text)], plan)
    target = identity(None if batch.groups is None else batch.groups[everyone])
    pull: tuple[LinearTarget, LinearTarget, Tensor, Tensor] = (target, target, hard_image, hard_text)
    heads = [Head(batch.scale, hard_image, hard_text, [pull])]
    soft = None
    if batch.soft_image is not None and batch.soft_text is not None:
        soft_image, soft_text = batch.soft_image[everyone], batch.soft_text[everyone]
        if soft_scale is not None:
            heads.append(Head(soft_scale, soft_image, soft_text))
        elif choice.mix == "sum":
            heads = [Head(batch.scale, hard_image + soft_image, hard_text + soft_text, [pull])]
        else:  # the weights of a row's targets add up to the pair's, exactly
            whole = batch.pair_weight[everyone]
            heads = [Head(batch.scale, whole, whole, [pull])]
        factors = [(left[everyone], right[everyone]) for left, right in batch.teacher]
        if choice.rule == "uniform":
            heads[-1].pulls.append((Others(), Others(), soft_image, soft_text))
        elif choice.rule == "cosine":
            weights = CosineWeights(*factors[0])
            heads[-1].pulls.append((weights, weights.transposed_similarity(), soft_image, soft_text))
        elif members is None or bool(soft_image.any()):
            targets = batch_soft_targets(batch, factors, product, rows, plan)
            soft = Soft(targets, soft_image, soft_text, divergence=choice.mix == "two-head")
    parts = symmetric_loss(image, text, rows, product, heads, soft, plan, pairs=batch.pairs, gradient=gradient)
    if soft is not None and soft.targets.text_bias is not None and soft.targets.image_bias is not None:
        if batch.text_bias is None or batch.image_bias is None:
            batch.text_bias, batch.image_bias = (batch.scale.new_zeros(batch.pairs) for _ in range(2))
        batch.text_bias[everyone] = soft.targets.text_bias
        batch.image_bias[rows if members is None else members[rows]] = soft.targets.image_bias
    return parts


def batch_soft_targets(
    batch: GlobalBatch,
    factors: list[tuple[Tensor, Tensor]],
    product: Product,
    rows: slice | Tensor,
    plan: Plan,
) -> SoftTargets:
    """The teacher's side of a block. A self-teacher needs no product of its own where the student's can be used."""
    choice, columns = batch.choice, factors[0][1].shape[0]
    source: Product | Transposed
    if choice.teacher == "self" and choice.similarity == "cross" and choice.targets == "direct":
        source = product
    elif choice.teacher == "self" and choice.similarity == "cross" and plan.keep and product.shape[0] == columns:
        source = Transposed(product)
    else:
        source = Product([(left[rows], right) for left, right in factors], plan)
    penalty = DIAGONAL_PENALTY
    if choice.similarity == "cross+intra":
        penalty *= choice.intra_weight_image + choice.intra_weight_text
    return SoftTargets(
        source,
        batch.teacher_scale,
        plan,
        drop=torch.arange(columns, device=batch.image.device)[rows] if choice.target_diagonal == "drop" else None,
        iterations=choice.sinkhorn_iterations if choice.rule == "sinkhorn" else None,
        penalty=penalty,
    )


def _directional(batch: GlobalBatch, soft_scale: Tensor | None, gradient: bool) -> LossGradient:
    choice, own = batch.choice, batch.own
    plan = _plan(batch, own.stop - own.start, batch.keys[1].shape[0])
    target = identity(batch.groups)
    taught: list[tuple[Tensor, Tensor]] = []
    if batch.teacher_keys is not None and batch.teacher_image is not None and batch.teacher_text is not None:
        taught = [(batch.teacher_image, batch.teacher_keys[1]), (batch.teacher_text, batch.teacher_keys[0])]
        if choice.targets == "swapped":
            taught.reverse()
    directions = (
        (batch.image, batch.keys[1], batch.hard_image, batch.soft_image),
        (batch.text, batch.keys[0], batch.hard_text, batch.soft_text),
    )
    results = []
    for index, (queries, keys, hard, soft_weight) in enumerate(directions):
        heads, soft = [RowHead(batch.scale, hard[own])], None
        if soft_weight is not None:
            if soft_scale is not None:
                heads.append(RowHead(soft_scale, soft_weight[own]))
            else:
                both = hard + soft_weight if choice.mix == "sum" else batch.pair_weight
                heads = [RowHead(batch.scale, both[own])]
            teacher_queries, teacher_keys = taught[index]
            divergence = choice.mix == "two-head"
            soft = RowSoft(teacher_queries[own], teacher_keys, batch.teacher_scale, soft_weight[own], divergence)
        results.append(
            directional_loss(
                queries[own],
                keys,
                own,
                batch.pairs,
                heads,
                (target, hard[own]),
                soft,
                plan,
                pairs=batch.pairs,
                gradient=gradient,
                key_gradient=choice.keys == "student",
            )
        )
    of_image, of_text = results
    result = LossGradient(of_image.loss + of_text.loss, of_image.queries, of_text.queries)
    if result.image is None or result.text is None:
        return result
    if of_image.keys is not None and of_text.keys is not None:
        # The keys of one direction are the queries of the other.
        result.image += distributed.scatter_sum_rows(of_text.keys)
        result.text += distributed.scatter_sum_rows(of_image.keys)
    scales = [first + second for first, second in zip(of_image.scales, of_text.scales, strict=True)]
    result.scale = scales[0]
    if soft_scale is not None:
        result.soft_scale = scales[1] if len(scales) > 1 else torch.zeros_like(soft_scale)
    return result


def _sigmoid(batch: GlobalBatch, gradient: bool) -> LossGradient:
    assert batch.bias is not None
    image = batch.image[batch.own]
    plan = _plan(batch, image.shape[0], batch.pairs)
    product = Product([(image, batch.text)], plan)
    weights, targets = batch.pair_weight[batch.own], None
    if batch.soft_image is not None:
        taught = product
        if batch.choice.teacher != "self":
            taught = Product([(left[batch.own], right) for left, right in batch.teacher], plan)
        targets = PairTargets(weights, batch.alpha, taught, batch.teacher_scale / batch.scale)
    elif batch.choice.pair_weights != "equal":
        targets = PairTargets(weights)
    parts = sigmoid_loss(
        image, batch.text, batch.own, product, batch.scale, batch.bias, batch.groups, targets, plan, gradient=gradient
    )
    if parts.text is None:
        return LossGradient(parts.loss)
    text = distributed.scatter_sum_rows(parts.text)
    return LossGradient(parts.loss, parts.image, text, scale=parts.scale, bias=parts.bias)
