"""Compositionality: does the true caption score above captions made false by a small edit? (as in SugarCrepe)"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from softclip_cli.evaluation import outcomes, result
from softclip_cli.evaluation.embed import (
    EmbeddingModel,
    EmbedOptions,
    ImageFeatures,
    Progress,
    embed_images,
    embed_texts,
)
from softclip_cli.evaluation.images import Subset
from softclip_cli.evaluation.intervals import bootstrap_class_mean, metric, share_metric
from softclip_cli.evaluation.sets import CompositionSet


def true_caption_wins(
    images: torch.Tensor, truths: torch.Tensor, negatives: torch.Tensor, owner: np.ndarray
) -> np.ndarray:
    """Whether each image's true caption scores above every one of its negatives; an equal score is no win.

    Args:
        images: float32 (N, d).
        truths: float32 (N, d), one a row of `images`.
        negatives: float32 (K, d).
        owner: int64 (K,), the image of each negative.

    Returns:
        bool (N,).
    """
    index = torch.from_numpy(owner)
    # One product for both, so that equal captions score the same to the last bit.
    scores = (torch.cat([images, images[index]]) * torch.cat([truths, negatives])).sum(dim=1)
    true, false = scores[: len(images)], scores[len(images) :]
    best = torch.full((len(images),), -torch.inf).scatter_reduce(0, index, false, "amax")
    return (true > best).numpy()


def composition(
    model: EmbeddingModel,
    data: CompositionSet,
    *,
    options: EmbedOptions | None = None,
    features: ImageFeatures | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate compositionality: the share of images for which the true caption wins, in all and for each kind of edit.

    Returns:
        A result document (docs/design.md) with `accuracy` and one `accuracy_EDIT` for each kind of edit.

    Raises:
        DataError: an image cannot be decoded.
        ModelError: an embedding is not finite.
    """
    started = time.perf_counter()
    options = options or EmbedOptions()
    if features is None:
        features = _embed(model, data, options, progress)
    assert features.projected is not None
    owner = np.repeat(np.arange(len(data.negatives)), [len(texts) for texts in data.negatives])
    texts = [*data.captions, *(text for texts in data.negatives for text in texts)]
    encoded = embed_texts(model, texts, options=options, progress=progress)
    count = len(data.captions)
    wins = true_caption_wins(features.projected, encoded[:count], encoded[count:], owner)
    edits = np.array(data.edits)
    chances = 1 / (1 + np.bincount(owner, minlength=count))
    metrics = {"accuracy": share_metric(wins)}
    kinds, kind = np.unique(edits, return_inverse=True)
    metrics |= {f"accuracy_{edit}": share_metric(wins[kind == number]) for number, edit in enumerate(kinds)}
    if len(kinds) > 1:
        totals = np.bincount(kind)
        correct = np.bincount(kind, weights=wins).astype(np.int64)
        bounds = bootstrap_class_mean(correct, totals)
        mean = float((correct / totals).mean())
        metrics["mean_per_edit"] = metric(mean, count, bounds, interval="bootstrap within edits, 95 %")
    details = {
        "chance": float(chances.mean()),
        "edits": {edit: int((edits == edit).sum()) for edit in sorted(set(data.edits))},
    }
    dataset = {
        "name": data.name,
        "split": data.split,
        "size": count,
        "negatives": len(owner),
        "layout": data.layout,
        "fingerprint": features.fingerprint(data.content()),
    }
    return result.build(
        task="composition",
        dataset=dataset,
        protocol={"hit": "the true caption scores above all its hard negatives; a tie is a miss", **options.protocol()},
        model=model,
        metrics=metrics,
        details=details,
        outcomes=outcomes.composition(wins, edits),
        seconds=time.perf_counter() - started,
    )


def _embed(
    model: EmbeddingModel, data: CompositionSet, options: EmbedOptions, progress: Progress | None
) -> ImageFeatures:
    """The features of the set's images; one that is there several times is embedded once."""
    images, rows = data.images, None
    if isinstance(images, Subset):
        used, rows = np.unique(images.indices, return_inverse=True)
        images = Subset(images.source, used.tolist())
    features = embed_images(model, images, name=data.name, split=data.split, options=options, progress=progress)
    return features if rows is None else features.take(rows)
