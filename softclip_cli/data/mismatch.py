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
    # Each takes the caption of the next in the ring. Where that is of the same image, the next changes places with any other.
    while len(same := np.flatnonzero(owner[ring] == owner[np.roll(ring, -1)])):
        for place in (same + 1) % chosen:
            other = int(rng.integers(chosen))
            ring[place], ring[other] = ring[other], ring[place]
    source[ring] = np.roll(ring, -1)
    return CaptionExchange(first, source)
