"""Pairs judged by models that were not trained on them: projections on frozen features, one set for each part of the corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from softclip_cli.audit.evidence import Pairs, model_evidence
from softclip_cli.data.sampler import generator
from softclip_cli.model import Model
from softclip_cli.training.encoder import ProjectionEncoder
from softclip_cli.training.features import FeatureStore
from softclip_cli.training.projections import fit_projections
from softclip_cli.training.settings import TrainSettings

STREAM = 7  # keeps these random numbers apart from others of the same seed
FOLDS = 4
WARM = 0.25  # of the epochs are not looked at: nothing is learnt yet
CHUNK = 4096

Progress = Callable[[int, int], None]


def folds_of(store: FeatureStore, count: int, seed: int) -> np.ndarray:
    """int64 (rows,): the part of each image; images of one group are in one part."""
    _, group = np.unique(store.group.numpy(), return_inverse=True)
    return (generator(seed, STREAM).permutation(int(group.max()) + 1) % count)[group]


def rows_of(store: FeatureStore, rows: np.ndarray) -> tuple[FeatureStore, np.ndarray]:
    """The features of some images, and the numbers of their captions in the whole store."""
    first = store.first.numpy()
    counts = np.diff(first)[rows]
    starts = np.concatenate([[0], np.cumsum(counts)])
    captions = np.arange(starts[-1]) - np.repeat(starts[:-1] - first[rows], counts)
    index = torch.from_numpy(rows)
    picked = replace(
        store,
        image=store.image[index],
        text=store.text[torch.from_numpy(captions)],
        first=torch.from_numpy(starts),
        group=store.group[index],
    )
    return picked, captions


def embedded(encoder: ProjectionEncoder, store: FeatureStore) -> tuple[Tensor, Tensor]:
    """All images and captions through the projections, on the CPU."""
    device = encoder.logit_scale.device
    with torch.no_grad():
        image = torch.cat([encoder.image(part.to(device)).cpu() for part in store.image.split(CHUNK)])
        text = torch.cat([encoder.text(part.to(device)).cpu() for part in store.text.split(CHUNK)])
    return image, text


def cross_fitted(
    model: Model,
    starts: list[dict[str, Tensor]],
    store: FeatureStore,
    fold: np.ndarray,
    several: list[Pairs],
    settings: TrainSettings,
    progress: Progress | None = None,
) -> list[dict[str, np.ndarray]]:
    """The evidence of models that have not seen the pairs, mean over the epochs of their training.

    Args:
        model: both of whose trunks are locked; its projections are left in any state.
        starts: projections to start from; the evidence is the mean over all of them.
        store: the features of the corpus.
        fold: int64 (rows,), see `folds_of`. The caption of a pair must be of the same part as its image.
        several: sets of pairs.
        settings: of each training.
        progress: called with (trainings done, in all).

    Returns:
        For each set of pairs what `evidence.model_evidence` gives, among the images and captions of the same part.
    """
    owner = np.repeat(np.arange(len(store.image)), np.diff(store.first.numpy()))
    place_of_image, place_of_caption = np.empty(len(store.image), np.int64), np.empty(len(owner), np.int64)
    found: list[dict[str, np.ndarray]] = [{} for _ in several]
    parts, done = np.unique(fold), 0
    for part in parts:
        held_out, captions = rows_of(store, np.flatnonzero(fold == part))
        trained_on, _ = rows_of(store, np.flatnonzero(fold != part))
        place_of_image[fold == part] = np.arange(len(held_out.image))
        place_of_caption[captions] = np.arange(len(captions))
        here = [np.flatnonzero(fold[pairs.image] == part) for pairs in several]
        local = [
            Pairs(place_of_image[p.image[i]], place_of_caption[p.caption[i]], place_of_caption[p.place[i]])
            for p, i in zip(several, here, strict=True)
        ]
        looks = 0
        first = max(1, round(WARM * settings.schedule.epochs))

        def look(epoch: int, encoder: ProjectionEncoder) -> None:
            nonlocal looks
            if epoch <= first and epoch < settings.schedule.epochs:
                return
            looks += 1
            v, t = embedded(encoder, held_out)
            for pairs, index, sums, whole in zip(local, here, found, several, strict=True):
                for name, values in model_evidence(v, t, float(encoder.logit_scale.detach()), pairs).items():
                    sums.setdefault(name, np.zeros(len(whole), np.float32))[index] += values

        for start in starts:
            fit_projections(model, start, trained_on, settings, look)
            done += 1
            if progress is not None:
                progress(done, len(parts) * len(starts))
        for sums, index in zip(found, here, strict=True):
            for values in sums.values():
                values[index] /= max(1, looks)
    return found
