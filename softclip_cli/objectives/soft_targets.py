"""Soft targets of full rank: softmax or Sinkhorn of the teacher's similarities, streamed by slabs of rows.

With Z the teacher's logits, both rules have the form A_v = softmax_j(Z_ij + b_j) for image→text and
A_t = softmax_i(Z_ij + a_i) for text→image: plain softmax has a = b = 0; Sinkhorn's scalings are those potentials.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softclip_cli.objectives.streaming import Block, ColumnLogSum, Plan, Product, Transposed, is_bounded

# OTTER removes the own pair by subtracting 100 for each similarity that has it [code].
DIAGONAL_PENALTY = 100.0


class SoftTargets:
    """The soft targets of some rows against all columns.

    Args:
        product: the teacher's similarities by slabs; may be the student's own product (self-teacher).
        scale: what the similarities are multiplied with: the teacher's logit scale, or 1/λ of Sinkhorn; a scalar.
        plan: the slabs.
        drop: (n,) the column of each row's own pair, if its similarity is to be pushed out of the targets.
        iterations: rounds of Sinkhorn; None for the softmax rule.
        penalty: how much is subtracted from a dropped similarity.
    """

    def __init__(
        self,
        product: Product | Transposed,
        scale: Tensor,
        plan: Plan,
        *,
        drop: Tensor | None = None,
        iterations: int | None = None,
        penalty: float = DIAGONAL_PENALTY,
    ) -> None:
        self.product, self.scale, self.plan, self.iterations, self.penalty = product, scale, plan, iterations, penalty
        count, columns = product.shape
        # Without its own pair a batch of one would have no target at all.
        self.drop = drop if drop is not None and columns > 1 else None
        # Sinkhorn's potentials can add as much again as the logits themselves.
        self.bounded = is_bounded(scale, product.limit * (2 if iterations else 1))
        self._work = scale.new_empty((min(plan.rows, count), columns))
        self._columns = ColumnLogSum(columns, self._work, self.bounded)
        self.row_log_sum = self._work.new_empty(count)
        self.column_log_sum = self._work.new_empty(columns)
        self.image_bias: Tensor | None = None
        self.text_bias: Tensor | None = None
        self._reverse: Tensor | None = None
        if iterations:
            self._sinkhorn(iterations)

    def logits(self, rows: slice) -> Tensor:
        """Z of a slab, (rows, M), in memory that the next call reuses."""
        out = self._work[: rows.stop - rows.start]
        torch.mul(self.product.slab(rows), self.scale, out=out)
        if self.drop is not None:
            out[torch.arange(out.shape[0], device=out.device), self.drop[rows]] -= self.penalty * self.scale
        return out

    def _sinkhorn(self, iterations: int) -> None:
        """Potentials after `iterations` rounds of {rows, columns} on Z, and the same on Zᵀ, in the log domain.

        One pass over Z a round serves both: a slab holds whole rows, so their scaling is known before the slab's
        part of the column sums is taken. (Wu et al., ICLR 2022; [code].)
        """
        count, columns = self.product.shape
        forward, backward = self._work.new_zeros(columns), None
        for _ in range(iterations):
            forward_sums = ColumnLogSum(columns, self._work, self.bounded)
            backward_sums = ColumnLogSum(columns, self._work, self.bounded)
            for rows in self.plan.slabs(count):
                block = Block(self.logits(rows), self.bounded)
                forward_sums.add(block, -block.row_log_sum(forward))
                # Zᵀ starts with its rows, which are the columns here: its row scaling lags by one pass.
                backward_sums.add(block, None if backward is None else -block.row_log_sum(backward))
            forward, backward = -forward_sums.close(), -backward_sums.close()
        self.text_bias, self._reverse = forward, backward
        self.image_bias = self._work.new_empty(count)

    def measure(self, rows: slice) -> None:
        """Take in a slab's row and column log-sums (first pass)."""
        block = Block(self.logits(rows), self.bounded)
        self.row_log_sum[rows] = block.row_log_sum(self.text_bias)
        bias = None
        if self._reverse is not None and self.image_bias is not None:
            bias = -block.row_log_sum(self._reverse)
            self.image_bias[rows] = bias
        self._columns.add(block, bias)

    def close(self) -> None:
        """End the first pass: the column log-sums are complete."""
        self.column_log_sum = self._columns.close()

    def weighted(
        self, rows: slice, image_weight: Tensor, text_weight: Tensor, scratch: Tensor, *, information: bool
    ) -> tuple[Tensor, Tensor | None]:
        """image_weight_i A_v[i, j] + text_weight_j A_t[j, i] of a slab (second pass).

        Args:
            rows: the slab.
            image_weight: (n,) of the rows here.
            text_weight: (M,).
            scratch: (rows, M) working memory.
            information: also sum the weighted A · (Z + bias), which is A · log A up to the log-sums.

        Returns:
            The matrix (rows, M), valid until the next call, and that sum (None unless asked for).
        """
        logits = self.logits(rows)
        kept = logits.clone() if information else None
        row = image_weight[rows].log() - self.row_log_sum[rows]
        column = text_weight.log() - self.column_log_sum
        block = Block(logits, self.bounded)
        total = None
        if self.text_bias is None or self.image_bias is None:
            matrix = block.weighted(row, column, scratch)
            if kept is not None:
                total = kept.mul_(matrix).sum()
            return matrix, total
        image_part = block.biased(row, self.text_bias, out=scratch)
        text_part = block.biased(self.image_bias[rows], column, out=block.values)
        if kept is not None:
            total = image_part.sum(dim=0) @ self.text_bias + text_part.sum(dim=1) @ self.image_bias[rows]
            matrix = text_part.add_(image_part)
            return matrix, total + kept.mul_(matrix).sum()
        return text_part.add_(image_part), None
