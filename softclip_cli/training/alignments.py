"""What each step says of each of its pairs, kept over the whole run: the evidence that `softclip audit` reads.

`alignments/epoch-00000.npy` in the run folder has a row for each place in the order of the data in that epoch. A place is a function
of the step, so a resumed run writes the same values over those of steps that it repeats, and nothing must be cut back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from softclip_cli.data.batches import Batch
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import HostError
from softclip_cli.objectives.alignments import COLUMNS
from softclip_cli.objectives.distributed import gather_rows

FOLDER = "alignments"
LIMIT = 60000.0  # float16 ends a little above
DTYPE = np.dtype([("row", "<i4"), ("caption", "<i2"), *((name, "<f2") for name in COLUMNS)])


class AlignmentRecorder:
    """Collects the alignments of the last steps and writes them now and then.

    Args:
        run: the run folder.
        sampler: which samples a step sees.
        first: whether this process writes.
    """

    def __init__(self, run: Path, sampler: EpochSampler, first: bool) -> None:
        self.folder, self.sampler, self.first = run / FOLDER, sampler, first
        self._steps: list[int] = []
        self._places: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, batch: Batch, values: Tensor) -> None:
        """Take those of one step: they stay on their device.

        Args:
            batch: of this process.
            values: float32 (n, len(COLUMNS)).
        """
        self._steps.append(batch.step)
        self._places.append(torch.stack([batch.index, batch.caption]))
        self._values.append(values)

    def flush(self) -> None:
        """Write what was taken; every process must come here together.

        Raises:
            HostError: the disk is full or not writable.
        """
        if not self._steps:
            return
        steps, values = self._steps, torch.stack(self._values)
        places = torch.stack(self._places).to(values.device)  # a collective may want it there
        self._steps, self._places, self._values = [], [], []
        # (n, steps, …): processes stand one below the other, as in the global batch.
        values, places = gather_rows(values.transpose(0, 1)), gather_rows(places.permute(2, 0, 1))
        if not self.first:
            return
        table = np.empty(values.shape[:2], DTYPE)
        table["row"], table["caption"] = places[..., 0].cpu().numpy(), places[..., 1].cpu().numpy()
        found = values.clamp(-LIMIT, LIMIT).cpu().numpy()
        for place, name in enumerate(COLUMNS):
            table[name] = found[..., place]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for place, step in enumerate(steps):
                self._write(step, table[:, place])
        except OSError as error:
            raise HostError(
                f"{self.folder} could not be written",
                f"{error}; training ended, what the last checkpoint holds is whole",
                "make room, or set log.alignments = false",
            ) from error

    def _write(self, step: int, rows: np.ndarray) -> None:
        epoch, position = divmod(step, self.sampler.steps_per_epoch)
        size = self.sampler.batch_size
        path = self.folder / f"epoch-{epoch:05d}.npy"
        shape = (self.sampler.steps_per_epoch * size,)
        stored = np.lib.format.open_memmap(path, mode="r+") if path.is_file() else None
        if stored is None or stored.shape != shape or stored.dtype != DTYPE:
            stored = np.lib.format.open_memmap(path, mode="w+", dtype=DTYPE, shape=shape)
            stored["row"] = -1
        stored[position * size : position * size + len(rows)] = rows


def read_alignments(run: Path) -> Iterator[np.ndarray]:
    """The records of each epoch in turn, of `DTYPE`, without places that no step has come to; nothing where none were kept."""
    for path in sorted((run / FOLDER).glob("epoch-*.npy")):
        stored = np.load(path, mmap_mode="r")
        yield np.array(stored[stored["row"] >= 0])
