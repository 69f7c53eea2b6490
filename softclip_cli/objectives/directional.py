"""The core loss of one direction against keys of its own: a queue of past pairs, or the teacher's embeddings.

    L = 1/(2N) Σ_i [ h_i H(I_i, σ(k Q Kᵀ)_i) + a_i H(A_i, σ(k' Q Kᵀ)_i) ],   A = σ(k̄ Q̄ K̄ᵀ)

Rows do not depend on each other, so one pass over slabs of rows is enough, tiled or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softclip_cli.objectives.linear_targets import LinearTarget
from softclip_cli.objectives.streaming import Plan
from softclip_cli.objectives.symmetric import precise_sum


@dataclass
class RowHead:
    """One softmax head: its scale and the weight of each row, (n,)."""

    scale: Tensor
    weight: Tensor


@dataclass
class RowSoft:
    """The teacher's side: queries (n, e), keys (M, e), scale, and the weight of each soft row, (n,).

    `divergence`: count Σ A log A too. It belongs to the last head.
    """

    queries: Tensor
    keys: Tensor
    scale: Tensor
    weight: Tensor
    divergence: bool


@dataclass
class RowParts:
    """What one process contributes: loss, gradient of its queries (n, d), of the batch (partial), of the scales."""

    loss: Tensor
    queries: Tensor | None
    keys: Tensor | None
    scales: list[Tensor]


def directional_loss(
    queries: Tensor,
    keys: Tensor,
    rows: slice,
    batch: int,
    heads: list[RowHead],
    hard: tuple[LinearTarget, Tensor],
    soft: RowSoft | None,
    plan: Plan,
    *,
    pairs: int,
    gradient: bool,
    key_gradient: bool,
) -> RowParts:
    """Value and gradient of one direction, for the rows that this process computes.

    Args:
        queries: Q of these rows, (n, d).
        keys: K, (M, d): the batch first, then the queue.
        rows: where these rows' own pairs stand among the keys.
        batch: how many of the keys are the batch.
        heads: one, or two with scales of their own; the hard target belongs to the first, the soft one to the last.
        hard: the hard target over the batch and its weights, (n,).
        soft: the teacher's side.
        plan: the slabs.
        pairs: N, by which the loss is divided.
        gradient: whether the gradient is wanted.
        key_gradient: whether the keys of the batch are the student's own embeddings.
    """
    factor = 0.5 / pairs
    count = queries.shape[0]
    loss = queries.new_zeros(())
    query_gradient = torch.zeros_like(queries) if gradient else None
    back = queries.new_zeros((batch, keys.shape[1])) if gradient and key_gradient else None
    scales = [queries.new_zeros(()) for _ in heads]
    buffers = [queries.new_empty((min(plan.rows, count), keys.shape[0])) for _ in range(3)]
    for slab in plan.slabs(count):
        similarity, first, second = (buffer[: slab.stop - slab.start] for buffer in buffers)
        torch.mm(queries[slab], keys.T, out=similarity)
        target = None
        if soft is not None:
            torch.mm(soft.queries[slab], soft.keys.T, out=second).mul_(soft.scale)
            log_sum = torch.logsumexp(second, dim=1)
            kept = second.clone() if soft.divergence else None
            target = second.sub_(log_sum[:, None]).exp_().mul_(soft.weight[slab][:, None])
            attraction = torch.mul(target, similarity, out=first).sum()
            loss = loss - heads[-1].scale * attraction
            scales[-1] = scales[-1] - attraction
            if kept is not None:
                loss = loss + kept.mul_(target).sum() - (soft.weight[slab] * log_sum).sum()
        push = None
        for index, head in enumerate(heads):
            logits = torch.mul(similarity, head.scale, out=first)
            log_sum = torch.logsumexp(logits, dim=1)
            loss = loss + (head.weight[slab] * log_sum).sum()
            if gradient:
                weights = logits.sub_(log_sum[:, None]).exp_().mul_(head.weight[slab][:, None])
                scales[index] = scales[index] + (weights * similarity).sum()
                if target is not None and index == len(heads) - 1:
                    weights.sub_(target)
                weights.mul_(head.scale)
                push = (
                    weights.clone() if push is None and len(heads) > 1 else weights if push is None else push + weights
                )
        if push is not None and query_gradient is not None:
            torch.mm(push, keys, out=query_gradient[slab])
            if back is not None:
                back.addmm_(push[:, :batch].T, queries[slab])

    identity, weight = hard
    own_keys = identity.apply(keys[:batch])[rows]
    pulled = precise_sum(weight * (queries * own_keys).sum(dim=1))
    loss = loss - heads[0].scale * pulled
    scales[0] = scales[0] - pulled
    if query_gradient is not None:
        query_gradient -= heads[0].scale * own_keys * weight[:, None]
        query_gradient *= factor
    if back is not None:
        spread = queries.new_zeros((batch, queries.shape[1]))
        spread[rows] = queries * weight[:, None]
        back -= heads[0].scale * identity.apply_transposed(spread)
        back *= factor
    return RowParts(loss * factor, query_gradient, back, [scale * factor for scale in scales])
