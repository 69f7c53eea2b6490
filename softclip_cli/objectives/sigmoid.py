"""The pairwise sigmoid loss (SigLIP, Zhai et al., ICCV 2023): −(1/N) Σ_ij log σ(z_ij x_ij), z = ±1, x = k S + b.

With soft targets each pair is the blend of that and of the binary cross entropy to what the teacher says, and own pairs may have
weights in the first of the two [ours]:

    L = (1/N) Σ_ij { (1 − α) w_ij [−log σ(z_ij x_ij)] + α [−A_ij log σ(x_ij) − (1 − A_ij) log σ(−x_ij)] },   A = σ(c x̄),  x̄ = k S̄ + b

w is 1 but for own pairs: the N² − N others do not belong together, whoever the own pairs are.
"""

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


@dataclass
class PairTargets:
    """What is asked of some rows beyond yes and no.

    Attributes:
        own: w of the own pairs, (n,).
        alpha: α, 0 where nobody teaches.
        taught: S̄ of these rows by slabs, (n, N); None where nobody teaches.
        sharpness: c, the teacher's logit scale over the student's, a scalar.
    """

    own: Tensor
    alpha: float = 0.0
    taught: Product | None = None
    sharpness: Tensor | None = None

    def rows(
        self, slab: slice, like: Tensor, positive: Tensor | None, diagonal: int, scale: Tensor, bias: Tensor
    ) -> Tensor:
        """The weight of −log σ(x), (1 − α) w [z = 1] + α A, of a slab: (rows, N).

        Args:
            slab: which of these rows.
            like: (rows, N), for shape and type.
            positive: bool (rows, N), z = 1; None: own pairs only.
            diagonal: offset of the own pairs in it.
            scale, bias: the student's k and b.
        """
        target = torch.zeros_like(like) if positive is None else positive.to(like)
        target.diagonal(offset=diagonal).copy_(self.own[slab])
        if self.taught is not None and self.sharpness is not None:
            logits = (self.taught.slab(slab) * scale).add_(bias).mul_(self.sharpness)
            target.lerp_(logits.sigmoid_(), self.alpha)
        return target

    def surplus(self, slab: slice) -> Tensor:
        """By how much more than one each own pair counts, (rows,)."""
        return (1 - self.alpha) * (self.own[slab] - 1)


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    rows: slice,
    product: Product,
    scale: Tensor,
    bias: Tensor,
    groups: Tensor | None,
    targets: PairTargets | None,
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
        targets: weights and soft targets; None: yes and no, each as much as any other.
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
        logits = (similarity * scale).add_(bias)
        diagonal = start + slab.start
        positive = None if groups is None else groups[diagonal : start + slab.stop, None] == groups[None, :]
        if targets is None:
            value, push = _yes_and_no(logits, positive, diagonal)
        else:
            target = targets.rows(slab, logits, positive, diagonal, scale, bias)
            value, push = _weighed(logits, target, targets.surplus(slab), diagonal)
        loss = loss + value
        if image_gradient is None or text_gradient is None:
            continue
        slope = slope + (push * similarity).sum()
        offset = offset + push.sum()
        torch.mm(push, text, out=image_gradient[slab])
        text_gradient.addmm_(push.T, image[slab])
    if image_gradient is not None and text_gradient is not None:
        image_gradient *= scale / pairs
        text_gradient *= scale / pairs
    return SigmoidParts(loss / pairs, image_gradient, text_gradient, slope / pairs, offset / pairs)


def _yes_and_no(logits: Tensor, positive: Tensor | None, diagonal: int) -> tuple[Tensor, Tensor]:
    """Sum of the losses, and its slope by the logits, whose memory is reused."""
    # Of −z x the loss is softplus and its slope sigmoid, which is exact for positives, too.
    signed = _turned(logits, positive, diagonal)
    value = functional.softplus(signed).sum()
    return value, _turned(signed.sigmoid_(), positive, diagonal)


def _turned(values: Tensor, positive: Tensor | None, diagonal: int) -> Tensor:
    """The sign of positive pairs changed: in place where these are the own pairs alone, without another matrix."""
    if positive is not None:
        return torch.where(positive, -values, values)
    values.diagonal(offset=diagonal).neg_()
    return values


def _weighed(logits: Tensor, target: Tensor, surplus: Tensor, diagonal: int) -> tuple[Tensor, Tensor]:
    """The same of Σ −target log σ(x) − (1 − target) log σ(−x), with more, or less, of the last on the diagonal by `surplus`."""
    # As −log σ(x) is −log σ(−x) − x, every pair has the softplus once, and own pairs (1 − α) w + α times.
    value = functional.softplus(logits).sum() - (target * logits).sum()
    value = value + (surplus * functional.softplus(logits.diagonal(offset=diagonal))).sum()
    push = logits.sigmoid_()
    push.diagonal(offset=diagonal).mul_(1 + surplus)
    return value, push.sub_(target)
