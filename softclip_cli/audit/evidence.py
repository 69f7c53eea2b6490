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

BLOCK = 1024  # rows of similarities in memory at a time
NEIGHBOURS = 20
SHARPNESS = 10.0  # of the weights of neighbours: exp(SHARPNESS × cosine)
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


def made_mismatches(owner: np.ndarray, within: np.ndarray, times: int, rng: np.random.Generator) -> Pairs:
    """For each caption, its image with a random caption of another image of the same part in its place.

    Args:
        owner: int64 (captions,), the image of each.
        within: int64 (captions,), the part (fold) of each.
        times: pairs made for each caption.
        rng: draws them.
    """
    place = np.tile(np.arange(len(owner)), times)
    other = np.empty_like(place)
    for part in np.unique(within):
        members = np.flatnonzero(within == part)
        here = np.flatnonzero(within[place] == part)
        if len(np.unique(owner[members])) < 2:
            other[here] = place[here]
            continue
        while len(here):
            other[here] = rng.choice(members, len(here))
            here = here[owner[other[here]] == owner[place[here]]]
    real = owner[other] != owner[place]
    return Pairs(owner[place[real]], other[real], place[real])


def log_sums(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """ln Σ exp(scale × cosine) over the keys, of each query: float32 (N,).

    Args:
        queries: (N, d), L2-normalised.
        keys: (M, d), L2-normalised.
        scale: the model's logit scale.
    """
    return torch.cat([(scale * part @ keys.T).logsumexp(dim=1) for part in queries.split(BLOCK)])


def model_evidence(
    image: Tensor, text: Tensor, scale: float, pairs: Pairs, references: tuple[Tensor, Tensor] | None = None
) -> dict[str, np.ndarray]:
    """What a model says of pairs.

    Args:
        image: float32 (N, d), L2-normalised.
        text: float32 (M, d), L2-normalised.
        scale: its logit scale k.
        pairs: P of them.
        references: images and captions that compete; default: all.

    Returns:
        float32 (P,) each: `cosine`; `image_to_text` and `text_to_image`: k × cosine − ln Σ exp over all captions for this image, and
        over all images for this caption (what is generic gets little).
    """
    images, texts = references or (image, text)
    of_image, of_text = log_sums(image, texts, scale), log_sums(text, images, scale)
    one, other = torch.from_numpy(pairs.image), torch.from_numpy(pairs.caption)
    cosine = torch.cat([(image[i] * text[t]).sum(dim=1) for i, t in zip(one.split(65536), other.split(65536), strict=True)])
    return {
        "cosine": cosine.numpy(),
        "image_to_text": (scale * cosine - of_image[one]).numpy(),
        "text_to_image": (scale * cosine - of_text[other]).numpy(),
    }


class Siblings:
    """Agreement with the image's other captions.

    Args:
        text: float32 (M, w), features of the captions in a space of texts alone.
        owner: int64 (M,), the image of each.
    """

    def __init__(self, text: Tensor, owner: np.ndarray) -> None:
        self.text, self.owner = F.normalize(text, dim=-1), owner
        images = int(owner.max()) + 1 if len(owner) else 0
        index = torch.from_numpy(owner)
        self.total = torch.zeros(images, text.shape[1]).index_add_(0, index, self.text)
        self.count = torch.bincount(index, minlength=images)

    def __call__(self, pairs: Pairs) -> np.ndarray:
        """Mean cosine of the caption and the other captions of the image: float32 (P,), NaN where there is no other."""
        found = []
        for start in range(0, len(pairs), 65536):
            part = slice(start, start + 65536)
            image, caption = torch.from_numpy(pairs.image[part]), self.text[torch.from_numpy(pairs.caption[part])]
            others = self.total[image] - self.text[torch.from_numpy(pairs.place[part])]
            found.append((caption * others).sum(dim=1) / (self.count[image] - 1))
        scores = torch.cat(found) if found else torch.zeros(0)
        return torch.where(torch.isfinite(scores), scores, torch.nan).numpy()


class Neighbours:
    """Agreement with the pairs around: what is said of images like this one, and what is seen where like things are said.

    After LEMoN (Zhang et al. 2024), which finds label errors by the neighbours of a pair in both modalities.

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
    found = [(part @ candidates.T).topk(min(count, len(candidates)), dim=1) for part in queries.split(BLOCK)]
    return torch.cat([one.values for one in found]), chosen[torch.cat([one.indices for one in found])]
