"""An index over perceptual hashes: candidates for near-duplicates in time that grows with the images, not with their pairs.

The 63 bits make three keys of 21 bits. An image is looked up under the keys of each of its windows, and under those keys with
their least certain bits turned over: the coefficients nearest to zero are the ones whose signs a small change flips
(query-directed multi-probe hashing, Lv et al. 2007). Two images whose hashes differ in at most two bits always share a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from softclip_cli.data.perceptual import BITS, packed

KEYS, KEY_BITS = 3, 21
TURNED = 3  # uncertain bits of a key, which make 2^TURNED keys to look under
MOST_DIFFERENT = 12  # bits of 63 in which a candidate's hash may differ from that of the best window
FULLEST = 256  # rows looked at under one key: the first ones; a set of copies larger than this hangs on its first
AT_ONCE = 1 << 20  # rows compared at a time
# Neighbouring frequencies fail together, so the keys take turns.
BIT_OF_KEY = np.arange(BITS).reshape(KEY_BITS, KEYS).T


@dataclass(frozen=True)
class Candidates:
    """Pairs that may be near-duplicates.

    Attributes:
        query, row: int64 (n,) each, without repetition.
    """

    query: np.ndarray
    row: np.ndarray


class HashIndex:
    """Finds the rows whose hash is near to one of those of a query.

    Args:
        hashes: uint64 (N,): the packed signs of the rows' coefficients, of the whole image.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes
        self.starts, self.rows = [], []
        for places in BIT_OF_KEY:
            keys = np.zeros(len(hashes), np.int64)
            for bit, place in enumerate(places):
                keys |= (hashes >> np.uint64(place) & np.uint64(1)).astype(np.int64) << bit
            self.rows.append(np.argsort(keys, kind="stable").astype(np.int32))
            counts = np.bincount(keys, minlength=1 << KEY_BITS)
            self.starts.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    @property
    def nbytes(self) -> int:
        """Memory that the index takes."""
        return sum(array.nbytes for array in (self.hashes, *self.starts, *self.rows))

    def candidates(self, coefficients: np.ndarray) -> Candidates:
        """Rows that share a key with a query under one of its windows and differ in at most MOST_DIFFERENT bits.

        Args:
            coefficients: float32 (Q, windows, 63).
        """
        count, windows = len(self.hashes), coefficients.shape[1]
        hashes = packed(coefficients > 0).ravel()  # (Q · windows,)
        found = [np.empty(0, np.int64)]
        for places, starts, rows in zip(BIT_OF_KEY, self.starts, self.rows, strict=True):
            part = coefficients[..., places].reshape(-1, KEY_BITS)
            keys = _turned(packed(part > 0).astype(np.int64), np.abs(part))  # (Q · windows, 2^TURNED)
            first = starts[keys].ravel()
            lengths = np.minimum(starts[keys + 1].ravel() - first, FULLEST)
            for some in _portions(lengths):
                asker = np.repeat(np.arange(some.start, some.stop) // keys.shape[1], lengths[some])
                before = np.cumsum(lengths[some]) - lengths[some]
                row = rows[np.arange(len(asker)) + np.repeat(first[some] - before, lengths[some])]
                near = np.bitwise_count(hashes[asker] ^ self.hashes[row]) <= MOST_DIFFERENT
                found.append(np.unique(asker[near] // windows * count + row[near]))
        pairs = np.unique(np.concatenate(found))
        return Candidates(*np.divmod(pairs, max(1, count)))


def _portions(lengths: np.ndarray) -> list[slice]:
    """Stretches of lookups that find at most about AT_ONCE rows together: bounds the memory."""
    ends = np.cumsum(lengths)
    cuts = np.searchsorted(ends, np.arange(0, (ends[-1] if len(ends) else 0) + AT_ONCE, AT_ONCE))
    cuts = np.unique(np.concatenate([[0], cuts, [len(lengths)]]))
    return [slice(int(start), int(stop)) for start, stop in pairwise(cuts)]


def _turned(keys: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    """Each key with every choice of its TURNED least certain bits turned over: int64 (n, 2^TURNED), the key itself first."""
    weakest = np.argpartition(certainty, TURNED, axis=1)[:, :TURNED]
    masks = np.zeros((len(keys), 1), np.int64)
    for place in range(TURNED):
        masks = np.concatenate([masks, masks ^ (np.int64(1) << weakest[:, place, None])], axis=1)
    return keys[:, None] ^ masks
