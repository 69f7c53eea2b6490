"""Captions exchanged on purpose: the effect of mismatched pairs can then be studied where the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softclip_cli.data.sampler import generator
from softclip_cli.errors import UsageError

STREAM = 3  # keeps these random numbers apart from those of the order of the data and of the captions


@dataclass(frozen=True)
class CaptionExchange:
    """Which caption stands in the place of which.

    Attributes:
        first: int64 (rows + 1,): the captions of row i have the numbers first[i] … first[i+1] − 1.
        source: int64 (captions,): the number of the caption that stands in each one's place, most often its own.
    """

    first: np.ndarray
    source: np.ndarray

    @property
    def mismatched(self) -> np.ndarray:
        """bool (captions,): whether another image's caption stands there."""
        return self.source != np.arange(len(self.source))


def exchange_captions(counts: np.ndarray, share: float, seed: int) -> CaptionExchange:
    """Pass a random share of all captions round, each to another image; the others stay.

    Args:
        counts: int64 (rows,), captions of each row.
        share: of all captions, in [0, 1]; exactly this many, rounded.
        seed: decides which.

    Raises:
        UsageError: too few captions, or images, to exchange any.
    """
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    source = np.arange(len(owner))
    chosen = round(share * len(owner))
    if chosen == 0:
        return CaptionExchange(first, source)
    rng = generator(seed, STREAM)
    ring = rng.permutation(len(owner))[:chosen]
    _, most = np.unique(owner[ring], return_counts=True)
    if 2 * most.max() > chosen:
        raise UsageError(
            f"data.mismatched = {share:g} chooses {chosen} captions, most of them of one image",
            "a caption is exchanged for one of another image",
            "set a larger share, or 0",
        )
    pass_round(ring, owner, rng)
    source[ring] = np.roll(ring, -1)
    return CaptionExchange(first, source)


def pass_round(ring: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> None:
    """Put captions in an order in which each can take the next one's place, for it is of another image; in place.

    Args:
        ring: int64, captions, at most half of them of one image.
        owner: int64, the image of each caption.
        rng: a caption that follows one of the same image changes places with any other.
    """
    while len(same := np.flatnonzero(owner[ring] == owner[np.roll(ring, -1)])):
        for place in (same + 1) % len(ring):
            other = int(rng.integers(len(ring)))
            ring[place], ring[other] = ring[other], ring[place]
