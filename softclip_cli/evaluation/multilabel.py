"""Zero-shot evaluation of images with several true classes: VOC's 11-point mean average precision, and flat hit@k."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softclip_cli.evaluation import result
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, ImageFeatures, Progress, embed_images
from softclip_cli.evaluation.intervals import CHUNK, RESAMPLES, bootstrap_mean, ends, metric
from softclip_cli.evaluation.scoring import block_rows
from softclip_cli.evaluation.sets import MultiLabelSet
from softclip_cli.evaluation.zeroshot import (
    dataset_facts,
    repeated_names,
    require_class_names,
    with_prompts,
)

DEPTHS = (1, 2, 5, 10)
POINTS = 10  # recall 0/10, 1/10, ..., 10/10
INTERVAL = "bootstrap over images, 95 %"
MOST_CLASSES = 500  # beyond which average precision is not computed: such sets are reported by hit@k


def table_of(lists: Sequence[np.ndarray], class_count: int) -> np.ndarray:
    """bool (N, C) from N arrays of classes."""
    table = np.zeros((len(lists), class_count), dtype=bool)
    rows = np.repeat(np.arange(len(lists)), [len(found) for found in lists])
    if len(rows):
        table[rows, np.concatenate(lists)] = True
    return table


def eleven_points(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """VOC2007's average precision: the mean of the interpolated precision at recall 0, 0.1, ..., 1.

    The interpolated precision at recall r is the largest precision at any recall of at least r (Everingham et al., The
    PASCAL VOC Challenge, IJCV 2010, section 4.2). Images of equal score are taken in together, so that the order in
    which they come does not matter. Recalls are compared as whole numbers: 3 of 10 reach 0.3, which in floating point
    they may not.

    Args:
        scores: float (N,).
        truth: bool (N,).
        counts: int (R, N): how often each image counts in each of R draws.

    Returns:
        float64 (R,); NaN where no true image was drawn.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], truth[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of the images of one score
    block = np.cumsum(last) - last
    # Only where a true image comes in can precision be largest at a recall: elsewhere it falls.
    places = np.flatnonzero(last)[np.unique(block[right])]
    if len(places) == 0:
        return np.full(len(counts), np.nan)
    drawn = counts[:, order]
    seen = np.cumsum(drawn, axis=1)[:, places]
    found = np.cumsum(drawn[:, right], axis=1)[:, np.cumsum(right)[places] - 1]
    total = found[:, -1:]
    precision = found / np.maximum(seen, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    points = np.zeros(len(counts))
    for step in range(POINTS + 1):
        points += best[np.arange(len(best)), (POINTS * found >= step * total).argmax(axis=1)]
    return np.where(total[:, 0] > 0, points / (POINTS + 1), np.nan)


def mean_average_precision(
    scores: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None = None, seed: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """The mean of the classes' `eleven_points`, with a bootstrap over images.

    An image is left out of the ranking of a class that it has in `ignored`. Classes without a true image have no
    average precision and are left out of the mean; so are, in a bootstrap sample, classes that lost all theirs.

    Args:
        scores: float (N, C).
        truth, ignored: bool (N, C).
        seed: of the bootstrap.

    Returns:
        The metric, and float64 (C,), NaN for classes without a true image.
    """
    total, classes = scores.shape
    rng = np.random.default_rng(seed)
    sums, kept = [], []
    single = np.full(classes, np.nan)
    rows = max(1, CHUNK // total)
    for start in range(0, RESAMPLES + 1, rows):
        size = min(rows, RESAMPLES + 1 - start)
        picks = rng.integers(0, total, size=(size, total))
        counts = np.stack([np.bincount(row, minlength=total) for row in picks])
        if start == 0:
            counts[0] = 1  # the images as they are, before the samples
        values = np.empty((size, classes))
        for index in range(classes):
            ranked = slice(None) if ignored is None else ~ignored[:, index]
            values[:, index] = eleven_points(scores[ranked, index], truth[ranked, index], counts[:, ranked])
        if start == 0:
            single = values[0].copy()
            values = values[1:]
        there = ~np.isnan(values)
        sums.append(np.where(there, values, 0).sum(axis=1))
        kept.append(there.sum(axis=1))
    samples = np.concatenate(sums) / np.maximum(np.concatenate(kept), 1)
    return metric(float(np.nanmean(single)), total, ends(samples), interval=INTERVAL), single


def score_classes(
    images: Tensor, classes: Tensor, ignored: Sequence[np.ndarray] | None, k: int, keep: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The k best classes of each image, those it ignores left out, and on request all scores.

    Args:
        images: float32 (N, d), normalised.
        classes: float32 (C, d), normalised.
        ignored: N arrays of classes, or None.
        k: at most C are returned.
        keep: whether to return the scores.

    Returns:
        int64 (N, min(k, C)), best first, and float32 (N, C) or None.
    """
    k, step = min(k, len(classes)), block_rows(len(classes))
    best, kept = [], []
    for start in range(0, len(images), step):
        scores = images[start : start + step] @ classes.T
        if keep:
            kept.append(scores.numpy().copy())
        for row, left_out in enumerate(ignored[start : start + step] if ignored is not None else ()):
            scores[row, torch.from_numpy(np.asarray(left_out, dtype=np.int64))] = -torch.inf
        best.append(torch.topk(scores, k, dim=1).indices.numpy())
    return np.concatenate(best), np.concatenate(kept) if keep else None


def flat_hits(best: np.ndarray, labels: Sequence[np.ndarray], class_count: int) -> dict[str, Any]:
    """`hit1`, `hit2`, `hit5`, `hit10`: the share of images whose first k classes meet their true ones.

    The flat hit@k of Cheng et al. 2021 (arXiv 2104.08945). Images without a true class are left out; a depth is
    reported where there are more classes than it.

    Args:
        best: int64 (N, K), the best classes of each image, best first.
        labels: N arrays of true classes.
        class_count: number of classes.
    """
    labelled = np.array([len(found) > 0 for found in labels])
    rows = np.repeat(np.arange(len(labels)), [len(found) for found in labels])
    true = rows * class_count + np.concatenate(labels)
    right = np.isin(best + np.arange(len(best))[:, None] * class_count, true)[labelled]
    depths = [k for k in DEPTHS if k < class_count] or [1]
    hits = np.stack([right[:, :k].any(axis=1) for k in depths], axis=1)
    samples = bootstrap_mean(hits)
    return {
        f"hit{k}": metric(hits[:, column].mean(), len(hits), ends(samples[:, column]), interval=INTERVAL)
        for column, k in enumerate(depths)
    }


def multi_label(
    model: EmbeddingModel,
    data: MultiLabelSet,
    *,
    options: EmbedOptions | None = None,
    features: ImageFeatures | None = None,
    single_only: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate zero-shot classification where an image may have several true classes.

    Args: as for `zeroshot.zero_shot`, for a `MultiLabelSet`.

    Returns:
        A result document (docs/design.md) with `map11` (with at most `MOST_CLASSES` classes) and `hit1` to `hit10`, for
        the ensemble of prompts and as `single_prompt_*` for the single one.

    Raises:
        DataError: no class names, or an image cannot be decoded.
        ModelError: an embedding is not finite.
    """
    started = time.perf_counter()
    options = options or EmbedOptions()
    require_class_names(data)
    if features is None:
        features = embed_images(
            model, data.images, name=data.name, split=data.split, options=options, progress=progress
        )
    projected = features.projected
    assert projected is not None
    precise = data.class_count <= MOST_CLASSES
    truth = table_of(data.labels, data.class_count) if precise else None
    ignored = table_of(data.ignored, data.class_count) if precise and data.ignored is not None else None

    def judge(classes: Tensor) -> tuple[dict[str, Any], np.ndarray | None]:
        best, scores = score_classes(projected, classes, data.ignored, max(DEPTHS), precise)
        hits = flat_hits(best, data.labels, data.class_count)
        if scores is None or truth is None:
            return hits, None
        mean, of_class = mean_average_precision(scores, truth, ignored)
        return {"map11": mean, **hits}, of_class

    metrics, of_class, protocol = with_prompts(
        model, data, judge, options=options, single_only=single_only, progress=progress
    )
    positives = np.bincount(np.concatenate(data.labels), minlength=data.class_count)
    labelled = sum(len(found) > 0 for found in data.labels)
    details: dict[str, Any] = {
        "chance": float(positives.sum() / labelled / data.class_count),
        "labels_per_image": float(positives.sum() / labelled),
        "images_without_label": len(data.labels) - labelled,
        "labels_ignored": sum(len(found) for found in data.ignored) if data.ignored is not None else 0,
        **repeated_names(data),
    }
    if of_class is not None:
        details["per_class"] = [
            {
                "class": data.class_label(index),
                "n": int(positives[index]),
                "average_precision": None if np.isnan(value) else float(value),
            }
            for index, value in enumerate(of_class)
        ]
    protocol |= {
        "hit": "flat hit@k: one of the first k classes is true; images without a true class are left out",
        "average_precision": f"11 points (VOC2007), mean over classes; with at most {MOST_CLASSES} classes",
        "ignored_labels": "neither right nor wrong: the image is left out of that class's ranking",
    }
    return result.build(
        task="zeroshot",
        dataset=dataset_facts(data, features),
        protocol=protocol,
        model=model,
        metrics=metrics,
        details=details,
        seconds=time.perf_counter() - started,
    )
