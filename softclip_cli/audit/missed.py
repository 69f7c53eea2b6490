"""Missed positives: captions of other images that describe this one as well as its own do."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softclip_cli.audit.evidence import BLOCK, MOST_REFERENCES, log_sums

SAME_TEXT = 0.95  # cosine of two captions, in a space of texts alone, from which on they say the same
SPARE = 20  # candidates for each one wanted: many are of the same two images, or say what a caption of the image says


@dataclass(frozen=True, eq=False)
class Found:
    """Pairs that a corpus does not have, the strongest first.

    Attributes:
        image: int64 (K,).
        caption: int64 (K,), of another image.
        score: float32 (K,): k × cosine − the mean of ln Σ exp over all captions for this image and over all images for this caption.
    """

    image: np.ndarray
    caption: np.ndarray
    score: np.ndarray


def alignment_scores(image: Tensor, text: Tensor, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What to subtract from k × cosine: half of ln Σ exp of each image, and of each caption, over at most MOST_REFERENCES others."""
    rng = np.random.default_rng(seed)

    def some(of: Tensor) -> Tensor:
        if len(of) <= MOST_REFERENCES:
            return of
        return of[torch.from_numpy(rng.choice(len(of), MOST_REFERENCES, replace=False))]

    return log_sums(image, some(text), scale) / 2, log_sums(text, some(image), scale) / 2


def missed_positives(
    image: Tensor,
    text: Tensor,
    scale: float,
    owner: np.ndarray,
    group: np.ndarray,
    captions: list[str],
    said: Tensor,
    count: int,
    least: float,
) -> Found:
    """The strongest pairs of an image and another image's caption; memory is linear in the corpus, time is not.

    Left out are captions of images of the same group, and those that say what a caption of the image says already. Of two images
    there is the strongest pair only.

    Args:
        image: float32 (N, d), L2-normalised.
        text: float32 (M, d), L2-normalised.
        scale: the model's logit scale.
        owner: int64 (M,), the image of each caption.
        group: int64 (N,).
        captions: their M texts.
        said: float32 (M, w), L2-normalised features of the captions in a space of texts alone.
        count: how many are wanted.
        least: the score below which none is taken.
    """
    of_image, of_text = alignment_scores(image, text, scale)
    of = torch.from_numpy(group[owner])
    groups = torch.from_numpy(group)
    best, where = torch.full((0,), -torch.inf), torch.zeros(0, dtype=torch.int64)
    wanted = SPARE * count
    for start in range(0, len(image), BLOCK):
        rows = slice(start, min(start + BLOCK, len(image)))
        scores = scale * image[rows] @ text.T - of_image[rows, None] - of_text
        scores.masked_fill_(groups[rows, None] == of[None, :], -torch.inf)
        top = scores.flatten().topk(min(wanted, scores.numel()))
        best, where = torch.cat([best, top.values]), torch.cat([where, top.indices + start * len(text)])
        kept = best.topk(min(wanted, len(best))).indices
        best, where = best[kept], where[kept]
    order = torch.argsort(best, descending=True)
    best, where = best[order], where[order]
    keys = [plain(caption) for caption in captions]
    starts = np.searchsorted(owner, np.arange(len(image) + 1))
    chosen: list[int] = []
    seen: set[tuple[int, int]] = set()
    for place, (score, number) in enumerate(zip(best.tolist(), where.tolist(), strict=True)):
        one, caption = divmod(number, len(text))
        pair = (min(one, int(owner[caption])), max(one, int(owner[caption])))
        if score < least or pair in seen:
            continue
        theirs = slice(int(starts[one]), int(starts[one + 1]))
        if keys[caption] in keys[theirs] or float((said[theirs] @ said[caption]).max()) >= SAME_TEXT:
            continue
        seen.add(pair)
        chosen.append(place)
        if len(chosen) == count:
            break
    index = torch.tensor(chosen, dtype=torch.int64)
    found = where[index].numpy()
    return Found(found // len(text), found % len(text), best[index].numpy())


def preferred(image: Tensor, text: Tensor, scale: float, owner: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For some images the caption of another image that fits best: int64 (len(wanted),).

    Args:
        image, text, scale, owner: as for `missed_positives`.
        wanted: int64, numbers of images.
    """
    _, of_text = alignment_scores(image, text, scale)
    of, found = torch.from_numpy(owner), []
    for part in torch.from_numpy(wanted).split(BLOCK):
        scores = scale * image[part] @ text.T - of_text
        scores.masked_fill_(of[None, :] == part[:, None], -torch.inf)
        found.append(scores.argmax(dim=1))
    return torch.cat(found).numpy() if found else np.zeros(0, np.int64)


def plain(text: str) -> str:
    """A caption without case, punctuation and spacing: equal for what reads the same."""
    return " ".join(re.findall(r"\w+", text.lower()))
