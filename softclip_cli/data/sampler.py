"""Which samples a step sees: pure arithmetic on (seed, epoch, step), so that resuming needs no saved queue."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from softclip_cli.errors import UsageError


def generator(*key: int) -> np.random.Generator:
    """A random generator that is a function of the given integers only."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass
class EpochSampler:
    """Shuffles `size` samples anew each epoch and cuts them into batches; the samples left over at an epoch's end are skipped.

    Attributes:
        size: number of samples.
        batch_size: samples a step, over all processes.
        seed: of the shuffling.

    Raises:
        UsageError: a batch larger than the data.
    """

    size: int
    batch_size: int
    seed: int = 0
    _orders: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size > self.size:
            raise UsageError(
                f"a batch of {self.batch_size} is larger than the data",
                f"the training split has {self.size} samples",
                f"choose a smaller one: --batch-size {max(2, self.size // 2)}",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.size // self.batch_size

    def epoch(self, step: int) -> int:
        """The epoch, counted from 0, that a step belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> np.ndarray:
        """Indices (batch_size,), int64, of the samples of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders[epoch] = generator(self.seed, epoch).permutation(self.size)
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        start = position * self.batch_size
        return self._orders[epoch][start : start + self.batch_size]
