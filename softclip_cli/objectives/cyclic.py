"""Cyclic consistency (CyCLIP, Goel et al., NeurIPS 2022), without any N×N matrix.

With A = V − T and B = V + T: VVᵀ − TTᵀ = ½(ABᵀ + BAᵀ) and VTᵀ − TVᵀ = ½(ABᵀ − BAᵀ), so that both sums of squares follow
from the d×d products AᵀA, BᵀB and AᵀB:

    Σ(VVᵀ − TTᵀ)² = ½(⟨AᵀA, BᵀB⟩ + ⟨AᵀB, BᵀA⟩)        Σ(S − Sᵀ)² = ½(⟨AᵀA, BᵀB⟩ − ⟨AᵀB, BᵀA⟩)

A, the difference, is a factor of every term: nothing large cancels when the two spaces agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softclip_cli.objectives import distributed


def cyclic_consistency(
    image: Tensor, text: Tensor, intra: float, cross: float, *, pairs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """intra/N · Σ(VVᵀ − TTᵀ)² + cross/N · Σ(S − Sᵀ)² over the batch of all processes.

    Args:
        image: V of this process, (n, d).
        text: T of this process, (n, d).
        intra: weight of the first term.
        cross: weight of the second.
        pairs: N of the whole batch.

    Returns:
        The value for the *whole* batch, and its gradient for the rows here, (n, d) each.
    """
    difference, total = image - text, image + text
    products = distributed.sum_everywhere(
        torch.stack([difference.T @ difference, total.T @ total, difference.T @ total])
    )
    aa, bb, ab = products[0], products[1], products[2]
    both, one = 0.5 * (intra + cross) / pairs, 0.5 * (intra - cross) / pairs
    value = both * (aa * bb).sum() + one * (ab * ab.T).sum()
    # d⟨AᵀA, BᵀB⟩/dA = 2 A BᵀB;  d⟨AᵀB, BᵀA⟩/dA = 2 B AᵀB;  and the same with A and B exchanged.
    to_difference = 2 * both * (difference @ bb) + 2 * one * (total @ ab)
    to_total = 2 * both * (total @ aa) + 2 * one * (difference @ ab.T)
    return value, to_total + to_difference, to_total - to_difference
