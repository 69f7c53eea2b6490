"""Matrix products by slabs of rows, and the row and column log-sums of what is in them.

A slab is (rows, M): some rows of the logit matrix against all its columns. In the dense plan there is one slab of all
rows, which is kept; in the tiled plan slabs are small and computed anew each time: memory is linear in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from softclip_cli.objectives import distributed

# exp() of a logit within ±40 neither overflows nor vanishes in float32, in sums over any batch: no maximum is needed.
SAFE_LOGIT = 40.0
DENSE_LIMIT = 2**30
WORKING_MATRICES = 4


@dataclass(frozen=True)
class Plan:
    """How many rows are computed at a time, whether the products are kept, and why."""

    rows: int
    keep: bool
    reason: str

    def slabs(self, count: int, *, backwards: bool = False) -> Iterator[slice]:
        """The slabs of `count` rows, if any. Backwards, a second pass finds the last one still there."""
        starts = range(0, count, self.rows)
        for start in reversed(starts) if backwards else starts:
            yield slice(start, min(start + self.rows, count))


def make_plan(
    rows: int,
    columns: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    tiled: str = "auto",
    tile_rows: int | None = None,
) -> Plan:
    """Choose between the dense and the tiled plan for `rows` × `columns` logits, and say why."""
    dense_bytes = WORKING_MATRICES * rows * columns * dtype.itemsize
    size = f"{rows} x {columns} logits need about {dense_bytes / 2**20:,.0f} MiB"
    if tiled == "never" or (tiled == "auto" and dense_bytes <= DENSE_LIMIT):
        why = "objective.tiled = never" if tiled == "never" else f"within {DENSE_LIMIT / 2**20:,.0f} MiB"
        return Plan(max(rows, 1), True, f"dense: {size} ({why})")
    if tile_rows is None:
        # A slab that stays in or near the cache of a CPU, and is large enough to fill a GPU.
        slab_bytes = 2**25 if device.type == "cpu" else 2**28
        tile_rows = max(64, slab_bytes // max(1, columns * dtype.itemsize))
    tile_rows = max(1, min(tile_rows, rows))
    why = "objective.tiled = always" if tiled == "always" else f"above {DENSE_LIMIT / 2**20:,.0f} MiB"
    return Plan(tile_rows, False, f"tiled, {tile_rows} rows at a time: {size} ({why})")


class Product:
    """`Σ left @ right.T` over `factors`, by slabs of rows. A slab must not be changed by who gets it.

    Args:
        factors: pairs of (n, e) and (M, e); their products are added.
        plan: which slabs, and whether to keep them.

    Attributes:
        limit: no entry is larger in size.
    """

    def __init__(self, factors: list[tuple[Tensor, Tensor]], plan: Plan) -> None:
        self.factors, self.plan = factors, plan
        self.limit = largest_product(factors)
        left, right = factors[0]
        self.shape = (left.shape[0], right.shape[0])
        self._buffer = left.new_empty((min(plan.rows, self.shape[0]), self.shape[1]))
        self._held: slice | None = None

    def slab(self, rows: slice) -> Tensor:
        """The product's rows, (rows, M). The last slab asked for is still there: one slab of all rows is kept."""
        out = self._buffer[: rows.stop - rows.start]
        if self._held == rows:
            return out
        (left, right), *more = self.factors
        torch.mm(left[rows], right.T, out=out)
        for left, right in more:
            out.addmm_(left[rows], right.T)
        self._held = rows
        return out


class Transposed:
    """The transpose of a square product that is kept whole: the same slabs, without another product."""

    def __init__(self, product: Product) -> None:
        self.product, self.shape, self.limit = product, product.shape, product.limit

    def slab(self, rows: slice) -> Tensor:
        """All rows of the transpose."""
        return self.product.slab(rows).T


class Block:
    """A slab of logits in working memory, held as they are or already exponentiated when that is safe.

    Args:
        logits: (rows, M), taken over: its memory is reused.
        bounded: every logit is at most SAFE_LOGIT in size (or minus infinity), so exp() needs no shift.
    """

    def __init__(self, logits: Tensor, bounded: bool) -> None:
        self.bounded = bounded
        self.values = logits.exp_() if bounded else logits

    def row_log_sum(self, column_bias: Tensor | None = None) -> Tensor:
        """log Σ_j exp(x_ij + column_bias_j): (rows,)."""
        if self.bounded:
            return (self.values.sum(dim=1) if column_bias is None else self.values @ column_bias.exp()).log()
        return torch.logsumexp(self.values if column_bias is None else self.values + column_bias, dim=1)

    def weighted(self, row: Tensor, column: Tensor, scratch: Tensor) -> Tensor:
        """exp(x_ij + row_i) + exp(x_ij + column_j): (rows, M). Uses up the block; `scratch` is (rows, M)."""
        if self.bounded:
            torch.add(row.exp()[:, None], column.exp(), out=scratch)
            return self.values.mul_(scratch)
        torch.add(self.values, row[:, None], out=scratch).exp_()
        return self.values.add_(column).exp_().add_(scratch)

    def biased(self, row: Tensor, column: Tensor, out: Tensor) -> Tensor:
        """exp(x_ij + row_i + column_j): (rows, M), in `out`."""
        if self.bounded:
            return torch.mul(self.values, row.exp()[:, None], out=out).mul_(column.exp())
        return torch.add(self.values, row[:, None], out=out).add_(column).exp_()


class ColumnLogSum:
    """log Σ_i exp(x_ij + row_bias_i) over all slabs and all processes."""

    def __init__(self, columns: int, like: Tensor, bounded: bool) -> None:
        self.bounded = bounded
        self.total = like.new_zeros(columns)
        self.top = like.new_full((columns,), -torch.inf)

    def add(self, block: Block, row_bias: Tensor | None = None) -> None:
        """Take in one slab."""
        if self.bounded:
            self.total += block.values.sum(dim=0) if row_bias is None else row_bias.exp() @ block.values
            return
        values = block.values if row_bias is None else block.values + row_bias[:, None]
        top = torch.maximum(self.top, values.amax(dim=0))
        shifted = torch.sub(values, top).exp_()
        self.total = self.total * torch.exp(self.top - top) + shifted.sum(dim=0)
        self.top = top

    def close(self) -> Tensor:
        """The log-sums over all rows of all processes: (M,)."""
        local = self.total.log()
        if not self.bounded:
            local += torch.nan_to_num(self.top, neginf=0.0)
        return distributed.log_sum_everywhere(local)


def largest_product(factors: list[tuple[Tensor, Tensor]]) -> float:
    """A bound on the size of `Σ left @ right.T`: 1 for one pair of normalised embeddings. Infinite off the CPU.

    Only asked on a CPU: reading a value would make a GPU wait, and there a shifted softmax costs nothing to speak of.
    """
    if factors[0][0].device.type != "cpu" or any(0 in side.shape for pair in factors for side in pair):
        return float("inf")
    return sum(float(left.norm(dim=1).amax() * right.norm(dim=1).amax()) for left, right in factors)


def is_bounded(scale: Tensor, limit: float) -> bool:
    """Whether logits of `scale` times similarities up to `limit` may be exponentiated without a shift."""
    return limit < float("inf") and float(scale) * limit <= SAFE_LOGIT
