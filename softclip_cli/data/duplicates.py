"""Duplicates among images, by their signatures: exact ones by the digest of the pixels, near ones by the index, then compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from softclip_cli.data.near_index import HashIndex
from softclip_cli.data.perceptual import (
    FINE_WINDOWS,
    WINDOWS,
    Hasher,
    colour_distance,
    is_flat,
    likeness,
    packed,
    spread,
)
from softclip_cli.data.signature import Signatures

CHUNK = 2048  # queries at a time: bounds the memory
PAIRS = 4096  # pairs compared at a time
ALIKE = 0.80  # correlation of details from which two images are near-duplicates [ours: benchmarks/duplicates.py]
# A few strokes on an empty ground are like other strokes: of drawings and logos only what is nearly the same counts.
FEW_STROKES, ALIKE_STROKES = 0.10, 0.96  # the spread of details below which a view is such a one; what it must reach
WORTH_A_LOOK = 0.55  # of the coarse comparison, from which the fine one is made
COLOURS_APART = 16.0  # levels of 255: the same shapes in other colours are another picture

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pairs:
    """Pairs of duplicates.

    Attributes:
        one, other: int64 (n,), numbers of images; sorted by `one`, then `other`.
        alike: float32 (n,): 1 for the same pixels, else the correlation of the details.
        exact: bool (n,): the same pixels.
    """

    one: np.ndarray
    other: np.ndarray
    alike: np.ndarray
    exact: np.ndarray

    def __len__(self) -> int:
        return len(self.one)

    def where(self, mask: np.ndarray) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.one[mask], self.other[mask], self.alike[mask], self.exact[mask])


def duplicates_within(signatures: Signatures, progress: Progress | None = None) -> Pairs:
    """The duplicates among some images, each pair once, `one` < `other`.

    Copies of the same pixels are paired with the first of them only, and it alone is compared with other images.
    """
    first = first_copies(signatures.digests())
    copies = np.flatnonzero(first != np.arange(len(first)))
    unlike = np.flatnonzero(first == np.arange(len(first)))
    near = _near(signatures, unlike, signatures, unlike, progress)
    low, high = np.minimum(near.one, near.other), np.maximum(near.one, near.other)
    return _sorted(
        np.concatenate([first[copies], low]),
        np.concatenate([copies, high]),
        np.concatenate([np.ones(len(copies), np.float32), near.alike]),
        np.arange(len(copies) + len(low)) < len(copies),
    )


def duplicates_between(images: Signatures, others: Signatures, progress: Progress | None = None) -> Pairs:
    """The duplicates of `images` (as `one`) among `others` (as `other`), which may be crops of each other either way."""
    mine, theirs = images.digests(), others.digests()
    first = first_copies(np.concatenate([theirs, mine]))
    same = np.flatnonzero(first[len(theirs) :] < len(theirs))
    rest = np.flatnonzero(first[len(theirs) :] >= len(theirs))
    unlike = np.flatnonzero(first[: len(theirs)] == np.arange(len(theirs)))
    near = _near(images, rest, others, unlike, progress)
    back = _near(others, unlike, images, rest, None)
    return _sorted(
        np.concatenate([same, near.one, back.other]),
        np.concatenate([first[len(theirs) + same], near.other, back.one]),
        np.concatenate([np.ones(len(same), np.float32), near.alike, back.alike]),
        np.arange(len(same) + len(near) + len(back)) < len(same),
    )


def first_copies(digests: np.ndarray) -> np.ndarray:
    """(N, 2) uint64 → int64 (N,): the first number with the same digest (an image's own where it is the first)."""
    if not len(digests):
        return np.empty(0, np.int64)
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: within a digest the numbers ascend
    ordered = digests[order]
    begins = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)])
    first = np.empty(len(digests), np.int64)
    first[order] = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first


def _near(
    images: Signatures, askers: np.ndarray, others: Signatures, rows: np.ndarray, progress: Progress | None
) -> Pairs:
    """Near-duplicates of `images[askers]` among `others[rows]`, the askers being looked up by all their windows."""
    within = images is others
    whole, windows = Hasher([WINDOWS[0]]), Hasher(WINDOWS)
    rows = _with_detail(others, rows)
    askers = rows if within else _with_detail(images, askers)
    parts = [packed(whole.coefficients(others.views(part).luma)[:, 0] > 0) for part in _cut(rows, CHUNK)]
    index = HashIndex(np.concatenate([np.empty(0, np.uint64), *parts]))
    found: list[Pairs] = []
    done = 0
    for part in _cut(askers, CHUNK):
        candidates = index.candidates(windows.coefficients(images.views(part).luma))
        one, other = part[candidates.query], rows[candidates.row]
        if within:
            one, other = one[one != other], other[one != other]
        found.append(_compared(images, one, others, other))
        done += len(part)
        if progress:
            progress(done, len(askers))
    if not found:
        nothing = np.empty(0, np.int64)
        return Pairs(nothing, nothing, np.empty(0, np.float32), np.empty(0, bool))
    return Pairs(*(np.concatenate([getattr(pairs, name) for pairs in found]) for name in Pairs.__annotations__))


def _compared(images: Signatures, one: np.ndarray, others: Signatures, other: np.ndarray) -> Pairs:
    """The candidates that are near-duplicates indeed: alike in detail under some window, and in colour."""
    kept_one, kept_other, kept_alike = [one[:0]], [other[:0]], [np.empty(0, np.float32)]
    for pair in _cut(np.arange(len(one)), PAIRS):
        for looked_at, least in ((WINDOWS, WORTH_A_LOOK), (FINE_WINDOWS, ALIKE)):
            mine, theirs = images.views(one[pair]), others.views(other[pair])
            alike, which = likeness(mine, theirs, looked_at)
            near = alike >= least
            pair, alike, which = pair[near], alike[near], which[near]
        if not len(pair):
            continue
        mine, theirs = images.views(one[pair]), others.views(other[pair])
        least_spread = np.minimum(spread(mine.luma), spread(theirs.luma))
        near = (alike >= ALIKE_STROKES) | (least_spread >= FEW_STROKES)
        seen = [FINE_WINDOWS[number] for number in which]
        near &= colour_distance(mine, theirs, seen) <= COLOURS_APART
        pair, alike = pair[near], alike[near]
        kept_one.append(one[pair])
        kept_other.append(other[pair])
        kept_alike.append(alike)
    alike = np.concatenate(kept_alike)
    return Pairs(np.concatenate(kept_one), np.concatenate(kept_other), alike, np.zeros(len(alike), bool))


def _with_detail(signatures: Signatures, numbers: np.ndarray) -> np.ndarray:
    """Those that are no blank pages."""
    parts = [part[~is_flat(signatures.views(part).luma)] for part in _cut(numbers, CHUNK)]
    return np.concatenate(parts) if parts else numbers


def _cut(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _sorted(one: np.ndarray, other: np.ndarray, alike: np.ndarray, exact: np.ndarray) -> Pairs:
    """Each pair once, with its highest likeness, in order."""
    order = np.lexsort((-alike, other, one))
    one, other, alike, exact = one[order], other[order], alike[order], exact[order]
    new = np.ones(len(one), bool)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return Pairs(one[new], other[new], alike[new], exact[new])


def clusters(count: int, pairs: Pairs) -> np.ndarray:
    """int64 (count,): the smallest number of the set that each image belongs to; pairs are followed transitively."""
    root = np.arange(count)

    def top(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = int(root[number])
        return number

    for one, other in zip(pairs.one.tolist(), pairs.other.tolist(), strict=True):
        a, b = top(one), top(other)
        root[max(a, b)] = min(a, b)
    for number in np.flatnonzero(root != np.arange(count)).tolist():
        root[number] = top(number)
    return root
