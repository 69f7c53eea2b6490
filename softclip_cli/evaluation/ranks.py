"""Ranks of the right answers in retrieval, ties in random order; without torch, so that comparisons can read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where each query's best own item stands among the gallery.

    Attributes:
        better: int64 (Q,), other items that score above the best own one.
        equal: int64 (Q,), other items that score exactly the same.
        own: int64 (Q,), own items that reach that score, at least 1.
    """

    better: np.ndarray
    equal: np.ndarray
    own: np.ndarray

    def hits(self, k: int) -> np.ndarray:
        """For each query the probability that an own item is among the first k, ties being put in random order.

        Without ties it is 0 or 1. The m places that are left after the better items are filled from `equal` others and
        `own` own items: all are others with probability C(equal, m) / C(equal + own, m).
        """
        places = k - self.better
        miss = np.ones(len(places))
        for drawn in range(k):
            left = np.maximum(self.equal - drawn, 0)
            miss = np.where(drawn < places, miss * left / np.maximum(left + self.own, 1), miss)
        return np.where(places > 0, 1.0 - miss, 0.0)

    def expected(self) -> np.ndarray:
        """float64 (Q,): the rank of the best own item, 1 being the first, ties being put in random order."""
        return self.better + (self.equal + self.own + 1) / (self.own + 1)
