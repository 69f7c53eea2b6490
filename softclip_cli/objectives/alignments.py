"""What a step says of each of its pairs: how strongly image and caption are taken for each other among the pairs of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from softclip_cli.objectives.batch import GlobalBatch
from softclip_cli.objectives.diagnostics import target_sides

COLUMNS = ("cosine", "image_to_text", "text_to_image", "image_margin", "text_margin", "own_weight")
ROWS = 1024  # looked at together, so that no N×N matrix is made


def pair_alignments(batch: GlobalBatch) -> Tensor:
    """The alignment of each pair of this process, before the step moves the weights.

    Pairs of the same group (`objective.multi_positive`) do not count against each other.

    Returns:
        float32 (n, len(COLUMNS)):
        cosine: of image and caption;
        image_to_text, text_to_image: natural logarithm of the share that the softmax over the global batch gives to the own
        caption, and to the own image; minus their mean is the pair's InfoNCE loss;
        image_margin, text_margin: cosine minus that of the best other caption for the image, and of the best other image
        for the caption;
        own_weight: of the own pair in its target, mean of both directions; 1 where targets are hard.
    """
    parts = []
    for start in range(batch.own.start, batch.own.stop, ROWS):
        rows = torch.arange(start, min(start + ROWS, batch.own.stop), device=batch.image.device)
        index = torch.arange(len(rows), device=rows.device)
        to_text, to_image = batch.image[rows] @ batch.text.T, batch.text[rows] @ batch.image.T
        cosine = to_text[index, rows]
        columns = [cosine]
        others = torch.zeros_like(to_text, dtype=torch.bool)
        if batch.groups is not None:
            others = batch.groups[rows][:, None] == batch.groups[None, :]
            others[index, rows] = False
        for similarity in (to_text, to_image):
            similarity.masked_fill_(others, -torch.inf)
            columns.append((similarity * batch.scale).log_softmax(dim=1)[index, rows])
        for similarity in (to_text, to_image):
            similarity[index, rows] = -torch.inf
            columns.append(cosine - similarity.amax(dim=1))
        columns.append(_own_weight(batch, rows, index))
        parts.append(torch.stack(columns, dim=1).float())
    return torch.cat(parts)


def _own_weight(batch: GlobalBatch, rows: Tensor, index: Tensor) -> Tensor:
    if not batch.choice.has_soft_targets:
        return batch.scale.new_ones(len(rows))
    to_text, to_image = batch.image[rows] @ batch.keys[1].T, batch.text[rows] @ batch.keys[0].T
    return torch.stack([side.target[index, rows] for side in target_sides(batch, rows, to_text, to_image)]).mean(dim=0)
