"""What is frozen never changes: compute it once for a whole split, keep it, and look it up in each step.

The outputs of the student's trunks, when both are frozen and the projections train on them, and a frozen teacher's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softclip_cli.data.altered import Alteration
from softclip_cli.data.batches import Batch, group_ids, local_rows
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.sampler import EpochSampler, generator
from softclip_cli.data.sharded.corpus import ShardedCorpus, ShardedSplit
from softclip_cli.evaluation.cache import FeatureCache
from softclip_cli.evaluation.embed import EmbedOptions, embed_images, embed_texts, evaluating, text_cache_key
from softclip_cli.evaluation.images import ArrowImages, digest

if TYPE_CHECKING:
    import datasets

    from softclip_cli.model import Model


@dataclass
class FeatureStore:
    """Features of a split, in memory.

    Attributes:
        image: float32 (rows, image width).
        text: float32 (captions, text width), all captions of all rows.
        first: int64 (rows + 1,): the captions of row i are first[i] … first[i+1] − 1.
        group: int64 (rows,).
        cached: whether the image features came from the cache.
    """

    image: Tensor
    text: Tensor
    first: Tensor
    group: Tensor
    cached: bool

    def lookup(self, rows: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Features of some images, and of one caption each; without any texts, (0, text width).

        Args:
            rows: int64 (N,).
            captions: int64 (N,), which of its row's captions, from 0.
        """
        return self.image[rows], self.text[self.first[rows] + captions] if len(self.text) else self.text

    def altered(self, change: Alteration | None) -> FeatureStore:
        """The features of what an alteration leaves, in its order."""
        if change is None:
            return self
        rows = torch.from_numpy(change.rows)
        text = self.text[torch.from_numpy(change.source)] if len(self.text) else self.text
        return FeatureStore(self.image[rows], text, torch.from_numpy(change.first), self.group[rows], self.cached)


def trunk_features(
    model: Model,
    corpus: Corpus | ShardedCorpus,
    split: str,
    data: datasets.Dataset | ShardedSplit,
    *,
    options: EmbedOptions,
    progress: Callable[[str, int, int], None] | None = None,
) -> FeatureStore:
    """Compute (or find in the cache) the trunk features of all images and captions of a split.

    The images are seen in the evaluation view: there is no augmentation behind a frozen trunk.
    """
    report = progress or (lambda what, done, total: None)
    images = embed_images(
        model,
        ArrowImages(data, f"{corpus.fingerprint}/{split}"),
        name=Path(corpus.path).name,
        features="trunk",
        options=options,
        progress=lambda done, total: report("image features", done, total),
    )
    captions = data["captions"][:]
    texts = [text for several in captions for text in several]
    text = text_trunk_features(model, texts, options, lambda done, total: report("caption features", done, total))
    first = torch.from_numpy(np.cumsum([0, *(len(several) for several in captions)]))
    assert images.trunk is not None
    return FeatureStore(images.trunk, text, first, group_ids(data), images.cached)


def text_trunk_features(
    model: Model, texts: list[str], options: EmbedOptions, progress: Callable[[int, int], None]
) -> Tensor:
    """float32 (M, width) before the projection, in the order of `texts`; long with long, so that little is padded."""
    key = {
        "model": model.fingerprint("text trunk"),
        "texts": digest(texts),
        "precision": options.precision,
        "features": "text-trunk",
    }
    found = options.cache.load(key) if options.cache else None
    if found is not None and len(found["features"]) == len(texts):
        return found["features"]
    size = 4 * options.images_a_batch(model.device)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    features: Tensor | None = None
    with evaluating(model.net), torch.no_grad():
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            with torch.autocast(model.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                part = model.text_trunk(model.tokenize([texts[i] for i in rows])).float().cpu()
            features = features if features is not None else torch.empty(len(texts), part.shape[1])
            features[torch.tensor(rows)] = part
            progress(start + len(rows), len(texts))
    assert features is not None
    if options.cache:
        options.cache.store(key, {"features": features})
    return features


def teacher_embeddings(
    model: Model,
    corpus: Corpus | ShardedCorpus,
    split: str,
    data: datasets.Dataset | ShardedSplit,
    *,
    captions: str,
    texts: bool = True,
    trunk: bool = False,
    options: EmbedOptions,
    progress: Callable[[str, int, int], None] | None = None,
) -> FeatureStore:
    """Compute (or find in the cache) a teacher's embeddings of the images and captions of a split, L2-normalised.

    Args:
        model: the teacher; the images are seen in its own evaluation view, the captions by its own tokenizer.
        corpus, split, data: what is trained on. An image that cannot be decoded gets a row of NaN: no batch has it.
        captions: "first" leaves out all captions but the first of each row.
        texts: whether captions are embedded at all.
        trunk: images before the projection.
        options: how to embed.
        progress: (what, done, total).
    """
    report = progress or (lambda what, done, total: None)
    images = embed_images(
        model,
        ArrowImages(data, f"{corpus.fingerprint}/{split}"),
        name=Path(corpus.path).name,
        features="trunk" if trunk else "projected",
        skip_damaged=True,
        options=options,
        progress=lambda done, total: report("teacher: images", done, total),
    )
    image = images.trunk if trunk else images.projected
    assert image is not None
    said: list[list[str]] = data["captions"][:]
    if captions == "first":
        said = [several[:1] for several in said]
    first = torch.from_numpy(np.cumsum([0, *(len(several) for several in said)]))
    text = torch.empty(0, image.shape[1])
    if texts:
        text = _text_embeddings(
            model,
            [text for several in said for text in several],
            options,
            lambda done, total: report("teacher: captions", done, total),
        )
    return FeatureStore(F.normalize(image, dim=-1) if trunk else image, text, first, group_ids(data), images.cached)


def _text_embeddings(
    model: Model, texts: list[str], options: EmbedOptions, progress: Callable[[int, int], None]
) -> Tensor:
    """float32 (M, embed_dim), L2-normalised, in the order of `texts`."""
    key = text_cache_key(model, options, digest(texts)) | {"features": "texts"}
    found = options.cache.load(key) if options.cache else None
    if found is not None and len(found["features"]) == len(texts):
        return found["features"]
    features = embed_texts(model, texts, options=options, progress=progress)
    if options.cache:
        options.cache.store(key, {"features": features})
    return features


def feature_batches(
    store: FeatureStore, sampler: EpochSampler, first: int, last: int, how: str, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Yield the batches of the steps `first` … `last` − 1 from stored features."""
    for step in range(first, last):
        rows = local_rows(sampler, step, rank, world)
        index = torch.from_numpy(rows)
        count = store.first[index + 1] - store.first[index]
        if how == "first":
            pick = torch.zeros_like(count)
        else:
            # One generator a step, and a draw for the whole global batch, so that the choice is the same on any number of processes.
            share = torch.from_numpy(generator(sampler.seed, 1, step).random(sampler.batch_size))
            share = share[rank * sampler.batch_size // world : (rank + 1) * sampler.batch_size // world]
            pick = (share * count).long()
        yield Batch(step, *store.lookup(index, pick), index, store.group[index], pick)


def default_options(batch_size: int | None, workers: int | None, precision: str, cache: bool = True) -> EmbedOptions:
    """Embedding options of a training run: features are kept for the next run over the same data."""
    return EmbedOptions(
        batch_size=batch_size, workers=workers, precision=precision, cache=FeatureCache() if cache else None
    )
