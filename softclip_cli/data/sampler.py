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


@dataclass
class WindowSampler(EpochSampler):
    """Shuffles data that is read best in stretches: the blocks of an epoch anew, then the samples within windows of blocks.

    A window is as many of the shuffled blocks, one after another, as have `window` bytes together: what is read at a time
    lies in these blocks, which are from all over the data. Data that fits in one window is shuffled as by `EpochSampler`.

    Attributes:
        rows: int64 (blocks,), samples in each block; blocks are stretches of consecutive samples.
        bytes: int64 (blocks,), size of each.
        window: bytes of a window.
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    bytes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    window: int = 128 << 20
    _windows: OrderedDict[tuple[int, int], np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        assert int(self.rows.sum()) == self.size
        self._starts = np.cumsum(self.rows) - self.rows
        self._plan: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def _epoch_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The order of the blocks in an epoch, the first block of each window in it, and the first position of each."""
        if self._plan is None or self._plan[0] != epoch:
            order = generator(self.seed, epoch).permutation(len(self.rows))
            before = np.cumsum(self.bytes[order]) - self.bytes[order]
            _, first = np.unique(before // self.window, return_index=True)
            place = (np.cumsum(self.rows[order]) - self.rows[order])[first]
            self._plan = (epoch, order, first, place)
        return self._plan[1:]

    def _window_rows(self, epoch: int, number: int) -> np.ndarray:
        key = (epoch, number)
        if key not in self._windows:
            order, first, _ = self._epoch_plan(epoch)
            end = first[number + 1] if number + 1 < len(first) else len(order)
            blocks = order[first[number] : end]
            rows = np.concatenate([np.arange(self.rows[block]) + self._starts[block] for block in blocks])
            self._windows[key] = rows[generator(self.seed, epoch, 1, number).permutation(len(rows))]
            if len(self._windows) > 2:
                self._windows.popitem(last=False)
        return self._windows[key]

    def indices(self, step: int) -> np.ndarray:
        """Indices (batch_size,), int64, of the samples of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        place = self._epoch_plan(epoch)[2]
        start, found = position * self.batch_size, []
        end = start + self.batch_size
        number = int(np.searchsorted(place, start, side="right")) - 1
        while start < end:
            rows = self._window_rows(epoch, number)[start - place[number] : end - place[number]]
            found.append(rows)
            start += len(rows)
            number += 1
        return np.concatenate(found)
