"""Target matrices that never need to be written out: their products with embeddings cost O(N·d).

Σ_ij w_i Y_ij S_ij is bilinear in the embeddings, so a target Y enters value and gradient only through Y x and Yᵀ x.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LinearTarget(Protocol):
    """A row-stochastic (N, N) matrix, as an operator on (N, d)."""

    def apply(self, x: Tensor) -> Tensor:
        """Y x, (N, d)."""

    def apply_transposed(self, x: Tensor) -> Tensor:
        """Yᵀ x, (N, d)."""


class Identity:
    """Y = I: every pair's own partner."""

    def apply(self, x: Tensor) -> Tensor:
        """Y x = x."""
        return x

    apply_transposed = apply


class Groups:
    """Y_ij = 1/|group| where i and j are of one group: the identity spread over pairs of one image or one caption.

    Args:
        groups: (N,) int64 ids, any values.
    """

    def __init__(self, groups: Tensor) -> None:
        unique, self.index = torch.unique(groups, return_inverse=True)
        self.count = torch.bincount(self.index, minlength=unique.numel())

    def apply(self, x: Tensor) -> Tensor:
        """Y x: every row becomes the mean of its group."""
        sums = x.new_zeros(self.count.numel(), x.shape[1]).index_add_(0, self.index, x)
        return (sums / self.count.to(x.dtype)[:, None])[self.index]

    apply_transposed = apply


class Others:
    """Y_ij = 1/(N−1) for i ≠ j: the uniform part of label smoothing. A batch of one pair keeps its pair."""

    def apply(self, x: Tensor) -> Tensor:
        """Y x."""
        return x if x.shape[0] == 1 else (x.sum(dim=0) - x) / (x.shape[0] - 1)

    apply_transposed = apply


class CosineWeights:
    """Y_ij = w_ij / Σ_j w_ij with w_ij = (⟨a_i, b_j⟩ + 1)/2: continuously weighted positives (CWCL).

    Args:
        left: a, (N, e), L2-normalised rows.
        right: b, (N, e), L2-normalised rows.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right
        # Every weight is ≥ 0; only if all of a row's vanish (each b_j opposite to a_i) is there nothing to divide by.
        sums = (left @ right.sum(dim=0) + right.shape[0]) / 2
        self.row_sum = sums.clamp_min(torch.finfo(sums.dtype).tiny)[:, None]

    def apply(self, x: Tensor) -> Tensor:
        """Y x, through the (e, d) product rightᵀ x."""
        return (self.left @ (self.right.T @ x) + x.sum(dim=0)) / 2 / self.row_sum

    def apply_transposed(self, x: Tensor) -> Tensor:
        """Yᵀ x."""
        x = x / self.row_sum
        return (self.right @ (self.left.T @ x) + x.sum(dim=0)) / 2

    def transposed_similarity(self) -> CosineWeights:
        """The weights of the other direction: the rows of wᵀ, normalised in their turn."""
        return CosineWeights(self.right, self.left)


def identity(groups: Tensor | None) -> LinearTarget:
    """The hard target: the own pair, or evenly over the own group."""
    return Identity() if groups is None else Groups(groups)
