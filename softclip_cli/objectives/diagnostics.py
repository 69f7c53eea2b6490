"""What is worth logging about a batch: how soft the targets are, who agrees with whom, whether the space collapses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from softclip_cli.objectives import distributed
from softclip_cli.objectives.settings import ResolvedObjective
from softclip_cli.objectives.soft_targets import DIAGONAL_PENALTY

# Rows of this process that are looked at (against all columns): enough for a curve, and cheap at any batch size.
SAMPLED_ROWS = 1024
# Random unit vectors have a mean cosine near 0; trained towers stay well below this one.
COLLAPSED_COSINE = 0.95


@dataclass
class Situation:
    """One global batch with the weights of its targets; see `Objective`. Nothing here has gradient.

    Attributes:
        image, text: (N, d) the student's.
        own: the rows of this process.
        teacher: (left, right) factors of the teacher's similarities, (N, e) each.
        hard_image, hard_text, soft_image, soft_text: (N,) weights; soft_image is None when no row is soft.
        image_keys, text_keys: what texts and images are compared with, (M, d).
        blocks: (N,) which sub-batch a pair is in, when the batch is split.
        text_bias, image_bias: (N,) Sinkhorn's potentials, put here by the loss; image_bias is 0 but for `own`.
    """

    choice: ResolvedObjective
    alpha: float
    image: Tensor
    text: Tensor
    own: slice
    groups: Tensor | None
    scale: Tensor
    teacher: list[tuple[Tensor, Tensor]]
    teacher_scale: Tensor
    hard_image: Tensor
    hard_text: Tensor
    soft_image: Tensor | None
    soft_text: Tensor
    image_keys: Tensor
    text_keys: Tensor
    teacher_image_keys: Tensor | None
    teacher_text_keys: Tensor | None
    blocks: Tensor | None
    text_bias: Tensor | None = None
    image_bias: Tensor | None = None


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine between different rows of (N, d), without the N×N matrix: a scalar, 0 for a single row."""
    count = embeddings.shape[0]
    total = embeddings.sum(dim=0).square().sum()
    return (total - embeddings.square().sum()) / max(1, count * (count - 1))


def diagnose(case: Situation) -> dict[str, Tensor]:
    """Detached scalars, the same on every process; those about rows are taken over the first SAMPLED_ROWS of each.

    Always: `accuracy_image_to_text`, `accuracy_text_to_image` (share of rows closest to their own pair, or to one of
    its group, among the keys), `image_cosine`, `text_cosine` (mean cosine of different pairs). With soft targets also:
    `alpha`, `soft_share` (share of rows with a soft target), `target_entropy` (nats, mean over rows), `own_weight`
    (what the targets give to the own pair) and, with a teacher, `agreement` (share of rows whose soft target peaks
    where the student does).
    """
    rows = torch.arange(case.own.start, min(case.own.stop, case.own.start + SAMPLED_ROWS), device=case.image.device)
    to_text = case.image[rows] @ case.text_keys.T
    to_image = case.text[rows] @ case.image_keys.T
    count = case.scale.new_tensor(len(rows))
    sums = {
        "accuracy_image_to_text": (_hits(to_text, rows, case.groups), count),
        "accuracy_text_to_image": (_hits(to_image, rows, case.groups), count),
    }
    report = {"image_cosine": mean_cosine(case.image), "text_cosine": mean_cosine(case.text)}
    if case.choice.has_soft_targets:
        report["alpha"] = case.scale.new_tensor(case.alpha)
        if case.soft_image is None:
            report["soft_share"] = torch.zeros_like(count)
        else:
            report["soft_share"] = ((case.soft_image > 0).to(count) + (case.soft_text > 0).to(count)).mean() / 2
        sums |= _target_sums(case, rows, to_text, to_image)
    stacked = distributed.sum_everywhere(torch.stack([value for pair in sums.values() for value in pair]))
    for name, (total, number) in zip(sums, stacked.view(-1, 2), strict=True):
        report[name] = total / number
    return report


def _target_sums(case: Situation, rows: Tensor, to_text: Tensor, to_image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, number of rows) of what is said about targets, over both directions."""
    if case.image_bias is not None:
        case.image_bias = distributed.sum_everywhere(case.image_bias)
    entropy, own, agree, compared = (case.scale.new_zeros(()) for _ in range(4))
    forward = [(left[rows], right) for left, right in case.teacher]
    backward = [(right[rows], left) for left, right in case.teacher]
    if case.choice.directional and case.teacher:
        (image, _), (_, text) = case.teacher[0], case.teacher[0]
        if case.choice.targets == "swapped":
            image, text = text, image
        assert case.teacher_image_keys is not None and case.teacher_text_keys is not None
        forward, backward = [(image[rows], case.teacher_text_keys)], [(text[rows], case.teacher_image_keys)]
        if case.choice.targets == "swapped":
            forward, backward = backward, forward
    soft_image = torch.zeros_like(case.hard_image) if case.soft_image is None else case.soft_image
    soft_text = torch.zeros_like(case.hard_text) if case.soft_image is None else case.soft_text
    one_way = case.choice.soft_directions == "image-to-text"
    for sides, hard, soft, bias, similarity, taught in (
        (forward, case.hard_image, soft_image, case.text_bias, to_text, bool(forward)),
        (backward, case.hard_text, soft_text, case.image_bias, to_image, bool(backward) and not one_way),
    ):
        a = soft_target_rows(case, sides, rows, bias, similarity.shape[1])
        i = _hard_target_rows(case, rows, similarity)
        y = (hard[rows][:, None] * i + soft[rows][:, None] * a) / (hard + soft)[rows][:, None]
        entropy = entropy - torch.xlogy(y, y).sum()
        own = own + y[torch.arange(len(rows), device=rows.device), rows].sum()
        if taught:
            compared = compared + len(rows)
            seen = similarity.clone()
            if case.choice.target_diagonal == "drop" and seen.shape[1] > 1:
                seen[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
            if case.blocks is not None:
                seen[case.blocks[rows][:, None] != case.blocks[None, :]] = -torch.inf
            agree = agree + (seen.argmax(dim=1) == a.argmax(dim=1)).to(similarity).sum()
    number = case.scale.new_tensor(2 * len(rows))
    sums = {"target_entropy": (entropy, number), "own_weight": (own, number)}
    return sums | {"agreement": (agree, compared)} if case.teacher else sums


def soft_target_rows(
    case: Situation, sides: list[tuple[Tensor, Tensor]], rows: Tensor, bias: Tensor | None, columns: int
) -> Tensor:
    """Some rows of A written out, (rows, columns); each sums to one.

    Args:
        case: the batch.
        sides: factors of the teacher's similarities in this direction, the left ones of `rows` alone.
        rows: which pairs these are.
        bias: (columns,) Sinkhorn's potentials.
        columns: number of keys.
    """
    choice, index = case.choice, torch.arange(len(rows), device=rows.device)
    apart = None if case.blocks is None else case.blocks[rows][:, None] != case.blocks[None, :]
    if choice.rule == "uniform":
        a = case.scale.new_ones(len(rows), columns)
        if columns > 1:
            a[index, rows] = 0
    else:
        similarity = torch.stack([left @ right.T for left, right in sides]).sum(dim=0)
        if choice.rule == "cosine":
            a = (similarity + 1) / 2
        else:
            if choice.target_diagonal == "drop" and columns > 1:
                both = choice.intra_weight_image + choice.intra_weight_text
                similarity[index, rows] -= DIAGONAL_PENALTY * (both if choice.similarity == "cross+intra" else 1)
            logits = similarity * case.teacher_scale + (0 if bias is None else bias)
            return (logits if apart is None else logits.masked_fill(apart, -torch.inf)).softmax(dim=1)
    a = a if apart is None else a.masked_fill(apart, 0)
    return a / a.sum(dim=1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)


def _hard_target_rows(case: Situation, rows: Tensor, similarity: Tensor) -> Tensor:
    """Some rows of I written out, over all keys."""
    own = torch.zeros_like(similarity)
    if case.groups is None:
        own[torch.arange(len(rows), device=rows.device), rows] = 1
        return own
    same = case.groups[rows][:, None] == case.groups[None, :]
    if case.blocks is not None:
        same &= case.blocks[rows][:, None] == case.blocks[None, :]
    own[:, : case.groups.shape[0]] = same.to(own)
    return own / own.sum(dim=1, keepdim=True)


def _hits(similarity: Tensor, rows: Tensor, groups: Tensor | None) -> Tensor:
    """How many rows are closest to their own pair, or to one of its group."""
    best = similarity.argmax(dim=1)
    hit = best == rows
    if groups is not None:
        inside = best < groups.shape[0]
        hit |= inside & (groups[best.clamp_max(groups.shape[0] - 1)] == groups[rows])
    return hit.to(similarity.dtype).sum()


def collapse_warning(diagnostics: Mapping[str, float | Tensor]) -> str | None:
    """A sentence when images or texts have all become alike, from the diagnostics of one step; else None."""
    for key, what in (("image_cosine", "image"), ("text_cosine", "text")):
        value = diagnostics.get(key)
        if value is not None and float(value) > COLLAPSED_COSINE:
            return (
                f"the {what} embeddings have collapsed: their mean cosine is {float(value):.3f}; "
                "lower the learning rate or objective.alpha_end"
            )
    return None
