"""Winoground's scores: which of two captions fits which of two images? (Thrush et al. 2022)"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from softclip_cli.evaluation import result
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, Progress, embed_images, embed_texts
from softclip_cli.evaluation.intervals import share_metric
from softclip_cli.evaluation.sets import PairedSet

CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}  # of four scores in random order


def pair_wins(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each example is won, by each of Winoground's scores; an equal score is no win.

    Args:
        scores: (N, 2, 2), image × caption; image i belongs to caption i.

    Returns:
        bool (N,) each: `text_score`, for each image its caption is above the other one; `image_score`, for each caption its
        image is; `group_score`, both.
    """
    text = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    image = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    return {"text_score": text, "image_score": image, "group_score": text & image}


def paired_composition(
    model: EmbeddingModel, data: PairedSet, *, options: EmbedOptions | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate text, image and group score, in all and for each tag of the examples.

    Returns:
        A result document (docs/design.md).

    Raises:
        DataError: an image cannot be decoded.
        ModelError: an embedding is not finite.
    """
    started = time.perf_counter()
    options = options or EmbedOptions()
    features = embed_images(model, data.images, name=data.name, split=data.split, options=options, progress=progress)
    assert features.projected is not None
    texts = embed_texts(model, data.captions, options=options, progress=progress)
    count = len(data.tags)
    images, captions = features.projected.view(count, 2, 1, -1), texts.view(count, 1, 2, -1)
    wins = pair_wins((images * captions).sum(dim=-1).numpy())
    metrics = {name: share_metric(won) for name, won in wins.items()}
    tags = np.array(data.tags)
    named = sorted(set(data.tags) - {""})
    metrics |= {f"{name}_{tag}": share_metric(won[tags == tag]) for name, won in wins.items() for tag in named}
    return result.build(
        task="composition",
        dataset={
            "name": data.name,
            "split": data.split,
            "size": count,
            "layout": data.layout,
            "fingerprint": features.fingerprint(data.content()),
        },
        protocol={"hit": "both comparisons of an example are won; a tie is a miss", **options.protocol()},
        model=model,
        metrics=metrics,
        details={"chance": CHANCE, "tags": {tag: int((tags == tag).sum()) for tag in named}},
        seconds=time.perf_counter() - started,
    )
