"""The pairwise sigmoid loss (SigLIP, Zhai et al., ICCV 2023): −(1/N) Σ_ij log sigmoid(z_ij (k S_ij + b))."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from softclip_cli.objectives.streaming import Plan, Product


@dataclass
class SigmoidParts:
    """What one process contributes: loss, gradient of its images (n, d), of all texts (N, d, partial), of k and b."""

    loss: Tensor
    image: Tensor | None
    text: Tensor | None
    scale: Tensor
    bias: Tensor


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    rows: slice,
    product: Product,
    scale: Tensor,
    bias: Tensor,
    groups: Tensor | None,
    plan: Plan,
    *,
    gradient: bool,
) -> SigmoidParts:
    """Value and gradient for the rows that this process computes.

    Args:
        image: V of these rows, (n, d).
        text: T, (N, d).
        rows: which rows of the batch these are.
        product: S of these rows by slabs, (n, N).
        scale: k, a scalar.
        bias: b, a scalar.
        groups: (N,) ids; pairs of one group are all positive (z = 1). None: only the own pair is.
        plan: the slabs.
        gradient: whether the gradient is wanted.
    """
    count, pairs = image.shape[0], text.shape[0]
    start = rows.start or 0
    loss, slope, offset = (image.new_zeros(()) for _ in range(3))
    image_gradient = torch.empty_like(image) if gradient else None
    text_gradient = torch.zeros_like(text) if gradient else None
    for slab in plan.slabs(count):
        similarity = product.slab(slab)
        # Signed logits x = −z (k S + b): the loss is Σ softplus(x); its slope sigmoid(x) is exact for positives too.
        signed = (similarity * scale).add_(bias)
        if groups is None:
            positive = signed.diagonal(offset=start + slab.start)
            positive.neg_()
        else:
            mine = groups[start + slab.start : start + slab.stop, None] == groups[None, :]
            signed = torch.where(mine, -signed, signed)
        loss = loss + functional.softplus(signed).sum()
        if image_gradient is None or text_gradient is None:
            continue
        push = signed.sigmoid_()
        if groups is None:
            push.diagonal(offset=start + slab.start).neg_()
        else:
            push = torch.where(mine, -push, push)
        slope = slope + (push * similarity).sum()
        offset = offset + push.sum()
        torch.mm(push, text, out=image_gradient[slab])
        text_gradient.addmm_(push.T, image[slab])
    if image_gradient is not None and text_gradient is not None:
        image_gradient *= scale / pairs
        text_gradient *= scale / pairs
    return SigmoidParts(loss / pairs, image_gradient, text_gradient, slope / pairs, offset / pairs)
