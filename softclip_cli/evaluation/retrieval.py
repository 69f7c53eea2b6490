"""Image-text retrieval with several captions an image: R@k in both directions, median rank, rsum."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softclip_cli.evaluation import outcomes, result
from softclip_cli.evaluation.embed import (
    EmbeddingModel,
    EmbedOptions,
    ImageFeatures,
    Progress,
    embed_images,
    embed_texts,
)
from softclip_cli.evaluation.example_queries import example_queries
from softclip_cli.evaluation.intervals import bootstrap_mean, ends, metric
from softclip_cli.evaluation.ranks import Ranks
from softclip_cli.evaluation.scoring import rank_both
from softclip_cli.evaluation.sets import RetrievalSet

DEPTHS = (1, 5, 10)
INTERVAL = "bootstrap over images, 95 %"


def retrieval_metrics(
    images: Tensor,
    texts: Tensor,
    owner: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    intervals: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recall and ranks from embeddings.

    Image→text counts a hit if any of the image's texts is among the first k (any-of); text→image has one right answer.
    Equal scores are put in random order, in expectation: a model that maps everything to one point gets chance.

    Args:
        images: float32 (N, d), normalised.
        texts: float32 (M, d), normalised; or (U, d) with `rows`.
        owner: int64 (M,), ascending: the image of each text.
        rows: int64 (M,), see `rank_texts`.
        device: where to multiply.
        intervals: whether to make them; they take half the time.

    Returns:
        metrics, and facts about ties for the details.
    """
    return metrics_of(*rank_both(images, texts, owner, rows=rows, device=device), owner, intervals=intervals)


def metrics_of(
    to_text: Ranks, to_image: Ranks, owner: np.ndarray, *, intervals: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recall from ranks: metrics, with or without intervals, and facts about ties for the details."""
    count = len(to_text.better)
    captions = np.bincount(owner, minlength=count)
    metrics: dict[str, Any] = {}
    sums = np.zeros(1)
    total = 0.0
    directions: tuple[tuple[str, Ranks, np.ndarray | None], ...] = (
        ("image_to_text", to_text, None),
        ("text_to_image", to_image, captions),
    )
    for name, ranks, weights in directions:
        hits = np.stack([ranks.hits(k) for k in DEPTHS], axis=1)
        # Images are resampled with all their captions, which are not independent of each other.
        units = hits if weights is None else np.stack([np.bincount(owner, column, count) for column in hits.T], axis=1)
        samples = bootstrap_mean(units, weights) if intervals else None
        for column, k in enumerate(DEPTHS):
            bounds = None if samples is None else ends(samples[:, column])
            metrics[f"{name}_r{k}"] = metric(hits[:, column].mean(), len(hits), bounds, interval=INTERVAL)
        metrics[f"{name}_median_rank"] = metric(float(np.median(ranks.expected())), len(hits), unit="rank")
        if samples is not None:
            sums = sums + 100 * samples.sum(axis=1)
        total += 100 * float(hits.mean(axis=0).sum())
    metrics["rsum"] = metric(total, count, ends(sums) if intervals else None, interval=INTERVAL, unit="points")
    tied = {"image_to_text": int((to_text.equal > 0).sum()), "text_to_image": int((to_image.equal > 0).sum())}
    return metrics, {"queries_with_ties": tied}


@dataclass(frozen=True, eq=False)
class Embedded:
    """A retrieval set's embeddings, on the CPU.

    Attributes:
        features: of the images; `projected` is there.
        texts: float32 (U, d), L2-normalised: each different text once.
        rows: int64 (M,), the row of `texts` that each caption is.
        seconds: how long they took.
    """

    features: ImageFeatures
    texts: Tensor
    rows: np.ndarray
    seconds: float


def embed_pairs(
    model: EmbeddingModel,
    data: RetrievalSet,
    *,
    options: EmbedOptions | None = None,
    features: ImageFeatures | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Embed a set's images and captions. Arguments and errors as for `retrieval`."""
    started = time.perf_counter()
    if features is None:
        features = embed_images(
            model, data.images, name=data.name, split=data.split, options=options, progress=progress
        )
    assert features.projected is not None
    first: dict[str, int] = {}
    rows = np.array([first.setdefault(text, len(first)) for text in data.texts])
    texts = embed_texts(model, list(first), options=options, progress=progress)
    return Embedded(features, texts, rows, time.perf_counter() - started)


def retrieval(
    model: EmbeddingModel,
    data: RetrievalSet,
    *,
    options: EmbedOptions | None = None,
    features: ImageFeatures | None = None,
    embedded: Embedded | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate retrieval in both directions.

    Args:
        model: the model; its training mode is left as it was.
        data: images and their captions.
        options: how to embed.
        features: the images' projected features, where they are already there.
        embedded: images and captions, where both are already there.
        progress: called with (done, total), over images and then texts.

    Returns:
        A result document (docs/design.md): `image_to_text_r1`, `_r5`, `_r10`, `_median_rank`, the same for
        `text_to_image`, and `rsum`, the six recalls added, in percentage points.

    Raises:
        DataError: an image cannot be decoded.
        ModelError: an embedding is not finite.
    """
    options = options or EmbedOptions()
    if embedded is None:
        embedded = embed_pairs(model, data, options=options, features=features, progress=progress)
    started = time.perf_counter() - embedded.seconds
    features, texts, rows = embedded.features, embedded.texts, embedded.rows
    assert features.projected is not None
    repeated = len(rows) - len(texts)
    to_text, to_image = rank_both(
        features.projected, texts, data.owner, rows=rows if repeated else None, device=model.device
    )
    metrics, details = metrics_of(to_text, to_image, data.owner)
    counts = np.bincount(data.owner, minlength=len(data.images))
    per_image = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    details |= {"gallery": data.gallery(), "repeated_texts": repeated, **data.notes}
    details["examples"] = example_queries(features, texts, rows, data, to_text, to_image)
    dataset = {
        "name": data.name,
        "split": data.split,
        "size": len(data.images),
        "texts": len(rows),
        "gallery": data.gallery(),
        "layout": data.layout,
        "fingerprint": features.fingerprint(data.content()),
    }
    protocol = {
        "hit": "image→text: any of the image's captions is among the first k; text→image: its one image is",
        "captions_per_image": per_image,
        "ties": "equal scores are put in random order, in expectation",
        "features": "projected, L2-normalised",
        **options.protocol(),
    }
    return result.build(
        task="retrieval",
        dataset=dataset,
        protocol=protocol,
        model=model,
        metrics=metrics,
        details=details,
        outcomes=outcomes.packed(outcomes.retrieval(to_text, to_image, data.owner)),
        seconds=time.perf_counter() - started,
    )
