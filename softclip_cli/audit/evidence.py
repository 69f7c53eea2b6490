"""What can be measured of an image and a caption that tells whether they belong together; for any pair, whether the corpus has it or not.

All of it is computed alike for the pairs of a corpus and for pairs drawn at random, which is what makes them comparable (`odds.py`).
A pair never testifies for itself: the caption itself and the image's own captions are left out of every comparison with others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 25  # similarities in memory at a time
NEIGHBOURS = 20
SHARPNESS = 10.0  # of the weights of neighbours: exp(SHARPNESS × cosine)
CHUNK = 65_536  # pairs at a time
DOUBT = 0.05  # added to the weight of an image's other captions
RIVALS = 1024  # images, and captions, that a pair competes with
MOST_REFERENCES = 16_384  # images that others are compared with: time is linear in the corpus


@dataclass(frozen=True)
class Pairs:
    """Pairs to look at.

    Attributes:
        image: int64 (P,), numbers of images.
        caption: int64 (P,), numbers of captions.
        place: int64 (P,), the caption of the image in whose place this one is looked at: the caption itself for a pair that the
            corpus has, else one that this one would replace.
    """

    image: np.ndarray
    caption: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


def pairs_of(owner: np.ndarray) -> Pairs:
    """The pairs that a corpus has.

    Args:
        owner: int64 (captions,), the image of each.
    """
    numbers = np.arange(len(owner))
    return Pairs(owner, numbers, numbers)


def made_mismatches(owner: np.ndarray, times: int, rng: np.random.Generator) -> Pairs:
    """For each caption, its image with a random caption of another image in its place.

    Args:
        owner: int64 (captions,), the image of each; at least two images.
        times: pairs made for each caption.
        rng: draws them.
    """
    place = np.tile(np.arange(len(owner)), times)
    other = rng.integers(len(owner), size=len(place))
    while len(same := np.flatnonzero(owner[other] == owner[place])):
        other[same] = rng.integers(len(owner), size=len(same))
    return Pairs(owner[place], other, place)


def rows_at_a_time(columns: int) -> int:
    """How many rows of a matrix of similarities are computed at a time."""
    return max(1, min(1024, BLOCK // max(1, columns)))


def log_sums(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """ln Σ exp(scale × cosine) over the keys, of each query: float32 (N,).

    Args:
        queries: (N, d), L2-normalised.
        keys: (M, d), L2-normalised.
        scale: the model's logit scale.
    """
    return torch.cat([(scale * part @ keys.T).logsumexp(dim=1) for part in queries.split(rows_at_a_time(len(keys)))])


class Competition:
    """What a model says of pairs, in competition with a fixed sample of other images and captions.

    Args:
        images, captions: how many there are.
        seed: draws those that are competed with: at most RIVALS each.
    """

    def __init__(self, images: int, captions: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images, self.captions = (
            torch.from_numpy(np.sort(rng.choice(count, min(count, RIVALS), replace=False)))
            for count in (images, captions)
        )

    def __call__(self, image: Tensor, text: Tensor, scale: float, *several: Pairs) -> list[dict[str, np.ndarray]]:
        """The evidence of some sets of pairs.

        Args:
            image: float32 (N, d), L2-normalised.
            text: float32 (M, d), L2-normalised.
            scale: the model's logit scale k.
            several: sets of P pairs.

        Returns:
            For each set float32 (P,) under `cosine`, and under `image_to_text` and `text_to_image`: k × cosine − ln Σ exp over captions
            for this image, and over images for this caption, so that what is generic gets little.
        """
        of_image = log_sums(image, text[self.captions], scale)
        of_text = log_sums(text, image[self.images], scale)
        found = []
        for pairs in several:
            one, other = torch.from_numpy(pairs.image), torch.from_numpy(pairs.caption)
            parts = zip(one.split(CHUNK), other.split(CHUNK), strict=True)
            cosine = torch.cat([(image[i] * text[t]).sum(dim=1) for i, t in parts])
            to_text, to_image = scale * cosine - of_image[one], scale * cosine - of_text[other]
            found.append(
                {"cosine": cosine.numpy(), "image_to_text": to_text.numpy(), "text_to_image": to_image.numpy()}
            )
        return found


class Siblings:
    """Agreement with the image's other captions, each counting as much as it is trusted.

    Args:
        text: float32 (M, w), features of the captions in a space of texts alone.
        owner: int64 (M,), the image of each.
        trust: float (M,), in [0, 1]: that the caption belongs to its image; default: 1.
    """

    def __init__(self, text: Tensor, owner: np.ndarray, trust: np.ndarray | None = None) -> None:
        self.text, index = F.normalize(text, dim=-1), torch.from_numpy(owner)
        self.trust = torch.ones(len(text)) if trust is None else torch.from_numpy(trust).float()
        images = int(owner.max()) + 1 if len(owner) else 0
        self.total = torch.zeros(images, text.shape[1]).index_add_(0, index, self.text * self.trust[:, None])
        self.weight = torch.zeros(images).index_add_(0, index, self.trust)
        self.count = torch.bincount(index, minlength=images)

    def __call__(self, pairs: Pairs) -> np.ndarray:
        """Mean cosine of the caption and the image's other captions: float32 (P,), NaN where there is no other.

        Near 0 where hardly any of them is trusted: then they say nothing.
        """
        found = []
        for start in range(0, len(pairs), CHUNK):
            part = slice(start, start + CHUNK)
            image, place = torch.from_numpy(pairs.image[part]), torch.from_numpy(pairs.place[part])
            weight = self.weight[image] - self.trust[place]
            others = self.total[image] - self.trust[place, None] * self.text[place]
            score = (self.text[torch.from_numpy(pairs.caption[part])] * others).sum(dim=1) / (weight + DOUBT)
            found.append(score.masked_fill(self.count[image] < 2, torch.nan))
        return torch.cat(found).numpy() if found else np.zeros(0, np.float32)


class Neighbours:
    """Agreement with the pairs around: what is said of images like this one, and what is seen where like things are said.

    After LEMoN (Zhang et al. 2025), which finds label errors by the neighbours of a pair in both modalities.

    Args:
        image: float32 (N, v), features of the images in a space of images alone.
        text: float32 (M, w), features of the captions in a space of texts alone.
        owner: int64 (M,), the image of each.
        seed: decides who the references are where there are more than MOST_REFERENCES images.
    """

    def __init__(self, image: Tensor, text: Tensor, owner: np.ndarray, seed: int = 0) -> None:
        # Trunk features share a large mean, beside which differences look small.
        self.image = F.normalize(image - image.mean(dim=0), dim=-1)
        self.text, self.owner = F.normalize(text - text.mean(dim=0), dim=-1), torch.from_numpy(owner)
        count = len(image)
        self.known = np.arange(count)
        if count > MOST_REFERENCES:
            self.known = np.sort(np.random.default_rng(seed).choice(count, MOST_REFERENCES, replace=False))
        self.known_captions = np.flatnonzero(np.isin(owner, self.known))
        self.near_images = nearest(self.image, self.image, self.known, NEIGHBOURS + 1)
        self.near_captions = nearest(self.text, self.text, self.known_captions, NEIGHBOURS + 8)
        self.total = torch.zeros(count, text.shape[1]).index_add_(0, self.owner, self.text)
        self.count = torch.bincount(self.owner, minlength=count)

    def __call__(self, pairs: Pairs) -> dict[str, np.ndarray]:
        """`image_neighbours` and `caption_neighbours`, float32 (P,) each: weighted mean cosines of the caption with the captions of
        images like this one, and of the image with the images of captions like this one."""
        of_images, of_captions = [], []
        for start in range(0, len(pairs), 4096):
            part = slice(start, start + 4096)
            image, caption = torch.from_numpy(pairs.image[part]), torch.from_numpy(pairs.caption[part])
            place = torch.from_numpy(pairs.place[part])
            of_images.append(self._of_images(image, caption))
            of_captions.append(self._of_captions(image, caption, place))
        joined = [torch.cat(found) if found else torch.zeros(0) for found in (of_images, of_captions)]
        return {"image_neighbours": joined[0].numpy(), "caption_neighbours": joined[1].numpy()}

    def _of_images(self, image: Tensor, caption: Tensor) -> Tensor:
        cosines, near = (part[image] for part in self.near_images)
        text = self.text[caption]
        said = torch.einsum("pd,pkd->pk", text, self.total[near])
        count = self.count[near].float()
        # The caption itself does not count where it is one of a neighbour's.
        its = near == self.owner[caption][:, None]
        said, count = said - its.float(), count - its.float()
        usable = (near != image[:, None]) & (count > 0)
        weight = torch.where(usable, (SHARPNESS * cosines).exp(), 0)
        return (weight * said / count.clamp_min(1)).sum(dim=1) / weight.sum(dim=1).clamp_min(1e-9)

    def _of_captions(self, image: Tensor, caption: Tensor, place: Tensor) -> Tensor:
        cosines, near = (part[caption] for part in self.near_captions)
        of = self.owner[near]
        usable = (near != caption[:, None]) & (of != image[:, None])
        seen = torch.einsum("pd,pkd->pk", self.image[image], self.image[of])
        weight = torch.where(usable, (SHARPNESS * cosines).exp(), 0)
        return (weight * seen).sum(dim=1) / weight.sum(dim=1).clamp_min(1e-9)


def nearest(queries: Tensor, keys: Tensor, among: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """The nearest keys of each query: cosines float32 (N, k) and numbers int64 (N, k), a block of queries at a time.

    Args:
        queries: (N, d), L2-normalised.
        keys: (M, d), L2-normalised.
        among: int64, the numbers of the keys that may be found.
        count: k, or as many as there are.
    """
    chosen = torch.from_numpy(among)
    candidates = keys[chosen]
    found = [
        (part @ candidates.T).topk(min(count, len(candidates)), dim=1)
        for part in queries.split(rows_at_a_time(len(candidates)))
    ]
    return torch.cat([one.values for one in found]), chosen[torch.cat([one.indices for one in found])]
