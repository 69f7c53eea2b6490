"""Noise whose truth is known: which pairs are mismatched, vague or partial, and what stands in their captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from softclip_cli.data.generated.captions import (
    CAPTIONS,
    SHORT,
    SHORT_MANY,
    Caption,
    caption_of,
    partial_caption,
    vague_caption,
)
from softclip_cli.data.generated.scene import Scene

NOISE_KINDS = ("clean", "mismatched", "vague", "partial")
# How the noisy pairs are shared out. Mismatched captions are what web corpora suffer from most.
SHARES = {"mismatched": 0.6, "vague": 0.2, "partial": 0.2}
MOST_TRIES = 64  # sources looked at for a mismatched pair, until one has no caption that happens to fit


@dataclass(frozen=True)
class NoisePlan:
    """Which noise each pair has, and where a mismatched pair takes its captions from.

    Attributes:
        codes: uint8 (pairs,), indices of `NOISE_KINDS`.
        ring: int64 (mismatched pairs,), the mismatched pairs in a random order: each takes the captions of the next.
        places: int64 (pairs,), a mismatched pair's place in `ring`.
    """

    codes: np.ndarray
    ring: np.ndarray
    places: np.ndarray

    def kind(self, index: int) -> str:
        """The noise of one pair."""
        return NOISE_KINDS[self.codes[index]]

    def counts(self) -> dict[str, int]:
        """How many pairs there are of each kind of noise."""
        counted = Counter(self.codes.tolist())
        return {name: counted[code] for code, name in enumerate(NOISE_KINDS)}

    def sources(self, index: int) -> Iterator[int]:
        """Pairs whose captions a mismatched pair may take, the intended one first; never the pair itself."""
        pairs, others = len(self.codes), len(self.ring) - 1
        for step in range(min(others, MOST_TRIES)):
            yield int(self.ring[(self.places[index] + 1 + step) % len(self.ring)])
        for step in range(min(pairs - 1, MOST_TRIES)):
            yield (index + 1 + step) % pairs


@lru_cache(maxsize=2)
def plan_noise(pairs: int, share: float, seed: int) -> NoisePlan:
    """Choose the noisy pairs: exactly round(share · pairs) of them, shared out by `SHARES`.

    Args:
        pairs: how many pairs there are.
        share: the share of noisy ones, in [0, 1].
        seed: of the corpus.
    """
    order = np.random.default_rng((seed, 0, 0)).permutation(pairs)
    noisy = round(share * pairs)
    vague, partial = round(SHARES["vague"] * noisy), round(SHARES["partial"] * noisy)
    mismatched = noisy - vague - partial
    codes = np.zeros(pairs, dtype=np.uint8)
    start = 0
    for name, count in (("mismatched", mismatched), ("vague", vague), ("partial", partial)):
        codes[order[start : start + count]] = NOISE_KINDS.index(name)
        start += count
    ring = order[:mismatched].astype(np.int64)
    places = np.zeros(pairs, dtype=np.int64)
    places[ring] = np.arange(mismatched)
    return NoisePlan(codes, ring, places)


def vague_captions(rng: np.random.Generator, scene: Scene) -> list[Caption]:
    """Five captions of which three to five say nothing; the others are short and true."""
    silent = int(rng.integers(3, CAPTIONS + 1))
    short = SHORT_MANY if len(scene.things) > 1 else SHORT
    captions = [vague_caption(rng) if place < silent else caption_of(rng, scene, short) for place in range(CAPTIONS)]
    return [captions[place] for place in rng.permutation(CAPTIONS)]


def partial_captions(rng: np.random.Generator, scene: Scene) -> list[Caption]:
    """Five true captions that each tell one unspecific part of the scene."""
    return [partial_caption(rng, scene) for _ in range(CAPTIONS)]
