"""Retrieval on a held-out split while training: cheap, on the weights in memory, and what the best checkpoint is chosen by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.sharded.corpus import ShardedCorpus, ShardedSplit
from softclip_cli.evaluation.embed import EmbedOptions, embed_images, embed_texts, evaluating
from softclip_cli.evaluation.images import as_images
from softclip_cli.evaluation.retrieval import retrieval_metrics
from softclip_cli.training.encoder import Encoder, ProjectionEncoder
from softclip_cli.training.features import trunk_features

if TYPE_CHECKING:
    import datasets

    from softclip_cli.model import Model

SHOWN = ("image_to_text_r1", "text_to_image_r1", "rsum")


@dataclass
class Validator:
    """Retrieval over a split with all captions of each image.

    Attributes:
        name: the split.
        metric: what the best checkpoint has most of.
    """

    model: Model
    data: datasets.Dataset | ShardedSplit
    options: EmbedOptions
    owner: np.ndarray
    texts: list[str]
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    name: str = "val"
    metric: str = "rsum"

    @classmethod
    def open(
        cls,
        model: Model,
        corpus: Corpus | ShardedCorpus,
        split: str,
        limit: int,
        options: EmbedOptions,
        frozen: bool,
        precision: str,
        progress: Callable[[str, int, int], None],
    ) -> Validator | None:
        """A validator for a split of the training corpus; None where it has no such split or no captions in it.

        Args:
            frozen: both trunks are frozen: their features are computed now, once.
            precision: of the towers where they are not frozen.
        """
        if split not in corpus.splits:
            return None
        data = corpus.split(split)
        data = data.select(range(min(limit, len(data))))
        captions = data["captions"][:]
        owner = np.repeat(np.arange(len(captions)), [len(several) for several in captions])
        if len(data) < 2 or len(np.unique(owner)) < len(data):
            return None
        texts = [text for several in captions for text in several]
        validator = cls(model, data, replace(options, precision=precision, cache=None), owner, texts, name=split)
        if frozen:
            store = trunk_features(model, corpus, split, data, options=options, progress=progress)
            validator.image_features, validator.text_features = store.image, store.text
        return validator

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Recalls as shares and rsum in points, of the weights as they are now. With `options.spread`, every process must call it."""
        if isinstance(encoder, ProjectionEncoder):
            device = encoder.logit_scale.device
            assert self.image_features is not None and self.text_features is not None
            with evaluating(encoder.module):
                image = encoder.image(self.image_features.to(device)).cpu()
                text = encoder.text(self.text_features.to(device)).cpu()
        else:
            images = embed_images(self.model, as_images(self.data), name=self.name, options=self.options)
            assert images.projected is not None
            image, text = images.projected, embed_texts(self.model, self.texts, options=self.options)
        metrics: dict[str, Any] = retrieval_metrics(image, text, self.owner)[0]
        return {name: float(metrics[name]["value"]) for name in SHOWN}
