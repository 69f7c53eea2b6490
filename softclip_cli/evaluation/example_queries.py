"""A few random queries of a retrieval with what the model found for them, kept in the result: reports show them with pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from softclip_cli.evaluation.embed import ImageFeatures
from softclip_cli.evaluation.ranks import Ranks
from softclip_cli.evaluation.sets import RetrievalSet

QUERIES = 16  # in each direction; the same ones for every model on this data
SHOWN = 5
SEED = 0


def example_queries(
    features: ImageFeatures, texts: Tensor, rows: np.ndarray, data: RetrievalSet, to_text: Ranks, to_image: Ranks
) -> dict[str, Any]:
    """Queries drawn at random in both directions, with the best answers.

    Args:
        features: projected, of the N images.
        texts: float32 (U, d), the different texts.
        rows: int64 (M,), the row of `texts` that each text of `data` is.
        data: the images and their texts.
        to_text, to_image: the ranks, image→text and text→image.

    Returns:
        `where` (the data's folder on the machine that evaluated), `images` (number → its key, 64 bits of BLAKE2b of its
        bytes in hexadecimal, and a caption), and the two lists of queries. An image is a number into the split.
    """
    assert features.projected is not None
    rng = np.random.default_rng(SEED)
    images = features.projected
    asked_images = np.sort(rng.choice(len(images), min(QUERIES, len(images)), replace=False))
    asked_texts = np.sort(rng.choice(len(rows), min(QUERIES, len(rows)), replace=False))
    first_use = np.zeros(len(texts), dtype=np.int64)
    first_use[rows[::-1]] = np.arange(len(rows))[::-1]
    for_images = torch.topk(images[torch.from_numpy(asked_images)] @ texts.T, min(SHOWN, len(texts)), dim=1)
    for_texts = torch.topk(texts[torch.from_numpy(rows[asked_texts])] @ images.T, min(SHOWN, len(images)), dim=1)
    shown: set[int] = set()
    of_images, of_texts = [], []
    for place, image in enumerate(asked_images.tolist()):
        mine = set(rows[data.owner == image].tolist())
        found = zip(for_images.indices[place].tolist(), for_images.values[place].tolist(), strict=True)
        answers = [
            {"text": data.texts[first_use[row]], "score": round(score, 4), "correct": row in mine}
            for row, score in found
        ]
        shown.add(image)
        of_images.append({"image": image, "rank": round(float(to_text.expected()[image]), 1), "results": answers})
    for place, text in enumerate(asked_texts.tolist()):
        found = zip(for_texts.indices[place].tolist(), for_texts.values[place].tolist(), strict=True)
        owner = int(data.owner[text])
        results = [{"image": image, "score": round(score, 4), "correct": image == owner} for image, score in found]
        shown |= {owner, *(result["image"] for result in results)}
        rank = round(float(to_image.expected()[text]), 1)
        of_texts.append({"text": data.texts[text], "image": owner, "rank": rank, "results": results})
    about = {
        str(image): {
            "key": data.images.key(image),
            "hash": format(int(features.hashes[image]) & (2**64 - 1), "016x"),
            "caption": data.captions[image][0],
        }
        for image in sorted(shown)
    }
    return {
        "where": data.where,
        "chosen": f"{QUERIES} queries a direction, drawn at random (seed {SEED}), the same for every model",
        "gallery": {"images": len(images), "texts": len(rows)},
        "images": about,
        "image_to_text": of_images,
        "text_to_image": of_texts,
    }
