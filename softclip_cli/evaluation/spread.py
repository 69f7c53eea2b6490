"""Embedding spread over the processes of a group: each computes its share of the batches, and all end up with all rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softclip_cli.errors import SoftclipError


@dataclass(frozen=True)
class Spread:
    """Which of a list of batches this process computes. The batches are those of a single process, so the rows are the same to the bit.

    Attributes:
        rank, size: of this process among those that share the work; 0 and 1: it works alone.
        local_size: of them on this machine, which share its cores.
        device: where tensors must lie to be exchanged.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def numbers(self, batches: int) -> list[int]:
        """The numbers of the batches to compute, in order.

        Every process gets as many, since a model that is sharded over them can only be called by all at once: where they do not
        divide, the last batch is computed by several, and `own` says whose it is.
        """
        return [min(turn * self.size + self.rank, batches - 1) for turn in range(math.ceil(batches / self.size))]

    def own(self, number: int) -> bool:
        """Whether the rows of a batch are this process's to give."""
        return number % self.size == self.rank

    def finished(self, number: int) -> int:
        """How many batches are done, after this process's `number`, if the others are as fast."""
        return (number // self.size + 1) * self.size

    def together(self, rows: Tensor) -> Tensor:
        """All rows on every process: (N, ...) with zeros where they are not its own, in place, on the CPU."""
        if self.size == 1:
            return rows
        summed = rows.to(self.device)
        dist.all_reduce(summed)  # x + 0 is x to the bit
        return rows.copy_(summed)

    def agreed(self, flag: bool) -> bool:
        """Whether all processes say so."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        return bool(votes)

    def failures(self) -> Failures:
        """Where this share's errors are kept until all processes can hear of them."""
        return Failures(self)


@dataclass
class Failures:
    """Errors of one share: the first is kept while the work goes on, and raised by all processes when all are done.

    A process that stopped by itself would leave the others waiting for its rows. One that works alone stops at once.
    """

    spread: Spread
    first: SoftclipError | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep a `SoftclipError` of the `with` block."""
        try:
            yield
        except SoftclipError as error:
            if self.spread.size == 1:
                raise
            self.first = self.first or error

    def settle(self) -> None:
        """Raise what the first process to fail, by rank, has met."""
        if self.spread.size == 1:
            return
        told: list[Any] = [None] * self.spread.size
        mine = self.first
        dist.all_gather_object(told, mine and (type(mine), mine.what, mine.why, mine.hint))
        for found in told:
            if found is not None:
                kind, *parts = found
                raise kind(*parts)
