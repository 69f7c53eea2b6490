"""What is worth logging about a batch: how soft the targets are, who agrees with whom, whether the space collapses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from softclip_cli.objectives import distributed
from softclip_cli.objectives.batch import GlobalBatch
from softclip_cli.objectives.soft_targets import DIAGONAL_PENALTY

# Rows of this process that are looked at (against all columns): enough for a curve, and cheap at any batch size.
SAMPLED_ROWS = 512
# Random unit vectors have a mean cosine near 0; trained towers stay well below this one.
COLLAPSED_COSINE = 0.95


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine between different rows of (N, d), without the N×N matrix: a scalar, 0 for a single row."""
    count = embeddings.shape[0]
    total = embeddings.sum(dim=0).square().sum()
    return (total - embeddings.square().sum()) / max(1, count * (count - 1))


def diagnose(batch: GlobalBatch) -> dict[str, Tensor]:
    """Detached scalars, the same on every process; those about rows are taken over the first SAMPLED_ROWS of each.

    Always: `accuracy_image_to_text`, `accuracy_text_to_image` (share of rows closest to their own pair, or to one of
    its group, among the keys), `image_cosine`, `text_cosine` (mean cosine of different pairs). With soft targets also:
    `alpha`, `soft_share` (share of rows with a soft target), `target_entropy` (nats, mean over rows; with loss = sigmoid
    the sum over a row's yes-or-no targets), `own_weight`
    (what the targets give to the own pair) and, with a teacher, `agreement` (share of rows whose soft target peaks
    where the student does). Where pairs are weighed: `clean_share`, `separation`, `judged`, `pair_weight` (`pair_weights.py`).
    Sinkhorn's potentials are to be those of all processes.
    """
    rows = torch.arange(batch.own.start, min(batch.own.stop, batch.own.start + SAMPLED_ROWS), device=batch.image.device)
    to_text = batch.image[rows] @ batch.keys[1].T
    to_image = batch.text[rows] @ batch.keys[0].T
    count = batch.scale.new_tensor(len(rows))
    sums = {
        "accuracy_image_to_text": (_hits(to_text, rows, batch.groups), count),
        "accuracy_text_to_image": (_hits(to_image, rows, batch.groups), count),
    }
    report = {"image_cosine": mean_cosine(batch.image), "text_cosine": mean_cosine(batch.text), **batch.weighing}
    if batch.choice.has_soft_targets:
        report["alpha"] = batch.scale.new_tensor(batch.alpha)
        if batch.soft_image is None or batch.soft_text is None:
            report["soft_share"] = torch.zeros_like(count)
        else:
            report["soft_share"] = ((batch.soft_image > 0).to(count) + (batch.soft_text > 0).to(count)).mean() / 2
        sums |= _target_sums(batch, rows, to_text, to_image)
    stacked = distributed.sum_everywhere(torch.stack([value for pair in sums.values() for value in pair]))
    for name, (total, number) in zip(sums, stacked.view(-1, 2), strict=True):
        report[name] = total / number
    return report


class TargetSide(NamedTuple):
    """Some rows of the targets of one direction, written out.

    Attributes:
        target: (rows, keys): Y, hard and soft target together; each row sums to one, or is of probabilities (loss = sigmoid).
        soft: (rows, keys): A alone.
        similarity: (rows, keys) the student's, of the same direction.
        taught: whether a teacher has a say in it.
    """

    target: Tensor
    soft: Tensor
    similarity: Tensor
    taught: bool


def target_sides(batch: GlobalBatch, rows: Tensor, to_text: Tensor, to_image: Tensor) -> Iterator[TargetSide]:
    """The targets of image→text, then of text→image; Sinkhorn's potentials are to be those of all processes.

    Args:
        batch: of an objective with soft targets.
        rows: which pairs.
        to_text, to_image: (rows, keys) the student's similarities.
    """
    forward = [(left[rows], right) for left, right in batch.teacher]
    backward = [(right[rows], left) for left, right in batch.teacher]
    if batch.choice.directional and batch.teacher:
        (image, _), (_, text) = batch.teacher[0], batch.teacher[0]
        if batch.choice.targets == "swapped":
            image, text = text, image
        assert batch.teacher_keys is not None
        forward, backward = [(image[rows], batch.teacher_keys[1])], [(text[rows], batch.teacher_keys[0])]
        if batch.choice.targets == "swapped":
            forward, backward = backward, forward
    soft_image = torch.zeros_like(batch.hard_image) if batch.soft_image is None else batch.soft_image
    soft_text = torch.zeros_like(batch.hard_text) if batch.soft_text is None else batch.soft_text
    one_way = batch.choice.soft_directions == "image-to-text"
    for sides, hard, soft, bias, similarity, taught in (
        (forward, batch.hard_image, soft_image, batch.text_bias, to_text, bool(forward)),
        (backward, batch.hard_text, soft_text, batch.image_bias, to_image, bool(backward) and not one_way),
    ):
        a = soft_target_rows(batch, sides, rows, bias, similarity.shape[1])
        i = _hard_target_rows(batch, rows, similarity)
        if batch.choice.loss == "sigmoid":
            yield TargetSide(i.lerp(a, batch.alpha), a, similarity, taught)
            continue
        y = (hard[rows][:, None] * i + soft[rows][:, None] * a) / (hard + soft)[rows][:, None]
        yield TargetSide(y, a, similarity, taught)


def _target_sums(
    batch: GlobalBatch, rows: Tensor, to_text: Tensor, to_image: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """(sum, number of rows) of what is said about targets, over both directions."""
    entropy, own, agree, compared = (batch.scale.new_zeros(()) for _ in range(4))
    for y, a, similarity, taught in target_sides(batch, rows, to_text, to_image):
        entropy = entropy - torch.xlogy(y, y).sum()
        if batch.choice.loss == "sigmoid":
            entropy = entropy - torch.xlogy(1 - y, 1 - y).sum()
        own = own + y[torch.arange(len(rows), device=rows.device), rows].sum()
        if taught:
            compared = compared + len(rows)
            seen = similarity.clone()
            if batch.choice.target_diagonal == "drop" and seen.shape[1] > 1:
                seen[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
            if batch.blocks is not None:
                seen[batch.blocks[rows][:, None] != batch.blocks[None, :]] = -torch.inf
            agree = agree + (seen.argmax(dim=1) == a.argmax(dim=1)).to(similarity).sum()
    number = batch.scale.new_tensor(2 * len(rows))
    sums = {"target_entropy": (entropy, number), "own_weight": (own, number)}
    return sums | {"agreement": (agree, compared)} if batch.teacher else sums


def soft_target_rows(
    batch: GlobalBatch, sides: list[tuple[Tensor, Tensor]], rows: Tensor, bias: Tensor | None, columns: int
) -> Tensor:
    """Some rows of A written out, (rows, columns); each sums to one, but with loss = sigmoid.

    Args:
        batch: the batch.
        sides: factors of the teacher's similarities in this direction, the left ones of `rows` alone.
        rows: which pairs these are.
        bias: (columns,) Sinkhorn's potentials.
        columns: number of keys.
    """
    choice, index = batch.choice, torch.arange(len(rows), device=rows.device)
    apart = None if batch.blocks is None else batch.blocks[rows][:, None] != batch.blocks[None, :]
    if choice.rule == "uniform":
        a = batch.scale.new_ones(len(rows), columns)
        if columns > 1:
            a[index, rows] = 0
    else:
        similarity = torch.stack([left @ right.T for left, right in sides]).sum(dim=0)
        if choice.rule == "sigmoid":
            assert batch.bias is not None
            return ((similarity * batch.scale + batch.bias) * (batch.teacher_scale / batch.scale)).sigmoid()
        if choice.rule == "cosine":
            a = (similarity + 1) / 2
        else:
            if choice.target_diagonal == "drop" and columns > 1:
                both = choice.intra_weight_image + choice.intra_weight_text
                similarity[index, rows] -= DIAGONAL_PENALTY * (both if choice.similarity == "cross+intra" else 1)
            logits = similarity * batch.teacher_scale + (0 if bias is None else bias)
            return (logits if apart is None else logits.masked_fill(apart, -torch.inf)).softmax(dim=1)
    a = a if apart is None else a.masked_fill(apart, 0)
    return a / a.sum(dim=1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)


def _hard_target_rows(batch: GlobalBatch, rows: Tensor, similarity: Tensor) -> Tensor:
    """Some rows of I written out, over all keys."""
    own = torch.zeros_like(similarity)
    if batch.groups is None:
        own[torch.arange(len(rows), device=rows.device), rows] = 1
        return own
    same = batch.groups[rows][:, None] == batch.groups[None, :]
    if batch.blocks is not None:
        same &= batch.blocks[rows][:, None] == batch.blocks[None, :]
    own[:, : batch.groups.shape[0]] = same.to(own)
    if batch.choice.loss == "sigmoid":
        return own
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
