"""Missed positives: captions of other images that describe this one as well as its own do."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softclip_cli.audit.evidence import CHUNK, MOST_REFERENCES, log_sums, rows_at_a_time

SAME_TEXT = 0.95  # cosine of two captions, in a space of texts alone, from which on they say the same
SPARE = 20  # candidates for each one wanted: many are of the same two images, or say what a caption of the image says


@dataclass(frozen=True, eq=False)
class Found:
    """Pairs that a corpus does not have, the strongest first.

    Attributes:
        image: int64 (K,).
        caption: int64 (K,), of another image.
        score: float32 (K,), see `Fits`.
    """

    image: np.ndarray
    caption: np.ndarray
    score: np.ndarray


class Fits:
    """How well any caption fits any image, for a model: the logarithm of their soft alignment, mean of both directions.

    s(i, t) = k × cosine − ½ ln Σ exp over captions for image i − ½ ln Σ exp over images for caption t, the sums being over all, or over a
    random MOST_REFERENCES of them.

    Args:
        image: float32 (N, d), L2-normalised.
        text: float32 (M, d), L2-normalised.
        scale: the model's logit scale k.
        owner: int64 (M,), the image of each caption, rising.
        seed: draws those that the sums are over.
    """

    def __init__(self, image: Tensor, text: Tensor, scale: float, owner: np.ndarray, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def some(of: Tensor) -> Tensor:
            if len(of) <= MOST_REFERENCES:
                return of
            return of[torch.from_numpy(rng.choice(len(of), MOST_REFERENCES, replace=False))]

        self.image, self.text, self.scale, self.owner = image, text, scale, owner
        self.of_image = log_sums(image, some(text), scale) / 2
        self.of_text = log_sums(text, some(image), scale) / 2

    def block(self, images: Tensor) -> Tensor:
        """The scores of some images with all captions: float32 (len(images), M)."""
        return self.scale * self.image[images] @ self.text.T - self.of_image[images, None] - self.of_text

    def own(self) -> np.ndarray:
        """The scores of the corpus's own pairs: float32 (M,)."""
        index = torch.from_numpy(self.owner)
        cosine = torch.cat(
            [(self.image[i] * t).sum(dim=1) for i, t in zip(index.split(CHUNK), self.text.split(CHUNK), strict=True)]
        )
        return (self.scale * cosine - self.of_image[index] - self.of_text).numpy()

    def missed(self, group: np.ndarray, captions: list[str], said: Tensor, count: int, least: float) -> Found:
        """The strongest pairs of an image and another image's caption; memory is linear in the corpus, time is not.

        Left out are captions of images of the same group, and those that say what a caption of the image says already. Of two images
        there is the strongest pair only.

        Args:
            group: int64 (N,).
            captions: their M texts.
            said: float32 (M, w), L2-normalised features of the captions in a space of texts alone.
            count: how many are wanted.
            least: the score below which none is taken.
        """
        best, where = self._strongest(group, SPARE * count)
        keys = [plain(caption) for caption in captions]
        starts = np.searchsorted(self.owner, np.arange(len(self.image) + 1))
        chosen: list[int] = []
        seen: set[tuple[int, int]] = set()
        for place, (score, number) in enumerate(zip(best.tolist(), where.tolist(), strict=True)):
            if score < least or len(chosen) == count:
                break
            one, caption = divmod(number, len(self.text))
            other = int(self.owner[caption])
            theirs = slice(int(starts[one]), int(starts[one + 1]))
            known = keys[caption] in keys[theirs] or bool((said[theirs] @ said[caption] >= SAME_TEXT).any())
            if known or (min(one, other), max(one, other)) in seen:
                continue
            seen.add((min(one, other), max(one, other)))
            chosen.append(place)
        index = torch.tensor(chosen, dtype=torch.int64)
        found = where[index].numpy()
        return Found(found // len(self.text), found % len(self.text), best[index].numpy())

    def _strongest(self, group: np.ndarray, wanted: int) -> tuple[Tensor, Tensor]:
        """Scores, falling, and image × M + caption of the strongest pairs of different groups."""
        groups, of = torch.from_numpy(group), torch.from_numpy(group[self.owner])
        best, where = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        for images in torch.arange(len(self.image)).split(rows_at_a_time(len(self.text))):
            scores = self.block(images)
            scores.masked_fill_(groups[images, None] == of[None, :], -torch.inf)
            top = scores.flatten().topk(min(wanted, scores.numel()))
            best = torch.cat([best, top.values])
            where = torch.cat([where, top.indices + int(images[0]) * len(self.text)])
            kept = best.topk(min(wanted, len(best)))
            best, where = kept.values, where[kept.indices]
        return best, where

    def preferred(self, images: np.ndarray) -> np.ndarray:
        """For some images the caption of another image that fits best: int64 (len(images),)."""
        of, found = torch.from_numpy(self.owner), []
        for part in torch.from_numpy(images).split(rows_at_a_time(len(self.text))):
            scores = self.block(part)
            found.append(scores.masked_fill_(of[None, :] == part[:, None], -torch.inf).argmax(dim=1))
        return torch.cat(found).numpy() if found else np.zeros(0, np.int64)


def plain(text: str) -> str:
    """A caption without case, punctuation and spacing: equal for what reads the same."""
    return " ".join(re.findall(r"\w+", text.lower()))
