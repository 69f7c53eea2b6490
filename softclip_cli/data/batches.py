"""Batches of a prepared corpus: read, decoded, augmented and tokenised in worker processes, each a function of (seed, step)."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from softclip_cli.data.decode import Augment, Preprocess, eval_view, open_for_crops, random_crop
from softclip_cli.data.sampler import EpochSampler, generator
from softclip_cli.data.sharded.corpus import ShardedSplit
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets

KEEP_BYTES = 512 << 20  # decoded images that each process keeps: a small corpus is decoded once, not every epoch
MAX_REPLACEMENTS = 16  # neighbours tried in the place of a damaged image before the batch is given up


@dataclass
class Batch:
    """One process's share of a step.

    Attributes:
        step: the step that it belongs to.
        image: uint8 (N, H, W, 3), or float32 features (N, width) where the trunk is frozen.
        text: token ids int64 (N, L), or float32 features (N, width).
        index: int64 (N,), rows of the split: samples of one row are positives of each other.
        group: int64 (N,), equal where samples belong together (the row itself where the corpus has no groups).
        replaced: rows whose image could not be decoded, with the reason.
    """

    step: int
    image: Tensor
    text: Tensor
    index: Tensor
    group: Tensor
    replaced: list[tuple[int, str]] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Move the tensors to page-locked memory, from which copies to a GPU are asynchronous."""
        return replace(self, image=self.image.pin_memory(), text=self.text.pin_memory())


class StepDataset(Dataset):
    """Item `step` is the whole local batch of that step, so that collating and tokenising happen in the worker.

    Args:
        data: a split of a corpus, images undecoded, or of shards.
        sampler: which rows a step sees.
        spec: the pixels that the model wants.
        augment: the training view; None for the evaluation view.
        tokenize: texts → token ids.
        captions: "random" draws one of an image's captions each time, "first" takes the first.
        rank, world: this process's share is a contiguous slice of the global batch.
    """

    def __init__(
        self,
        data: datasets.Dataset | ShardedSplit,
        sampler: EpochSampler,
        spec: Preprocess,
        augment: Augment | None,
        tokenize: Callable[[list[str]], Tensor],
        captions: str = "random",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data: Any = data.select_columns(["image", "captions"])
        self.sampler, self.spec, self.augment = sampler, spec, augment
        self.tokenize, self.captions, self.rank, self.world = tokenize, captions, rank, world
        # The groups of shards come with their samples: there may be too many for a table.
        self.groups = None if isinstance(data, ShardedSplit) else group_ids(data)
        self._decoded: dict[int, Image.Image] = {}
        self._room = KEEP_BYTES

    def __getitem__(self, step: int) -> Batch:
        rows = local_rows(self.sampler, step, self.rank, self.world)
        epoch = self.sampler.epoch(step)
        records = self.data[rows.tolist()]
        views, texts, groups, replaced = [], [], [], []
        for place, row in enumerate(rows.tolist()):
            record = {name: values[place] for name, values in records.items()}
            rng = generator(self.sampler.seed, epoch, row)
            for attempt in range(1, MAX_REPLACEMENTS + 2):
                try:
                    _check_read(record)
                    views.append(self.view(row, record["image"]["bytes"], rng))
                    break
                except DataError as error:
                    replaced.append((row, error.why))
                    if attempt > MAX_REPLACEMENTS:
                        raise DataError(
                            f"{MAX_REPLACEMENTS} images in a row cannot be decoded, from row {rows[place]} on",
                            error.why,
                            "prepare the corpus again: softclip data prepare checks every image",
                        ) from None
                    row = (row + 1) % len(self.data)
                    record = self.data[row]
            rows[place] = row
            texts.append(choose_caption(record["captions"], rng, self.captions))
            groups.append(group_id(record.get("group"), row))
        index = torch.from_numpy(rows)
        group = self.groups[index] if self.groups is not None else torch.tensor(groups)
        return Batch(step, torch.from_numpy(np.stack(views)), self.tokenize(texts), index, group, replaced)

    def view(self, row: int, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """The training view where augmenting, else the evaluation view."""
        if self.augment is None:
            return eval_view(data, self.spec)
        image = self._decoded.get(row)
        if image is None:
            image = open_for_crops(data, self.spec, self.augment)
            size = 3 * image.width * image.height
            if size <= self._room:
                self._decoded[row] = image
                self._room -= size
        return random_crop(image, self.spec, self.augment, rng)


def choose_caption(captions: list[str], rng: np.random.Generator, how: str) -> str:
    """One of an image's captions, by the sample's own generator."""
    return captions[0] if how == "first" or len(captions) == 1 else captions[int(rng.integers(len(captions)))]


def local_rows(sampler: EpochSampler, step: int, rank: int, world: int) -> np.ndarray:
    """This process's slice of a step's rows. Slices are contiguous and differ by at most one row in length."""
    rows = sampler.indices(step)
    return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world].copy()


def _check_read(record: dict[str, Any]) -> None:
    """Samples of shards are read while training: they may turn out to lack something.

    Raises:
        DataError: the sample cannot be used.
    """
    if record.get("problem"):
        raise DataError("the sample cannot be read", record["problem"])


def group_id(name: str | None, row: int) -> int:
    """A number that is the same for samples of the same group, and the row itself for a sample without one."""
    if name is None:
        return row
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2 | 1 << 62


def group_ids(data: datasets.Dataset) -> Tensor:
    """int64 (rows,): equal for rows of one group; a row without a group is a group of its own."""
    if "group" not in data.column_names:
        return torch.arange(len(data))
    names: dict[str, int] = {}
    ids = [names.setdefault(name, row) if name is not None else row for row, name in enumerate(data["group"])]
    return torch.tensor(ids)


def batches(dataset: StepDataset, first: int, last: int, workers: int, pin: bool = False) -> Iterator[Batch]:
    """Yield the batches of the steps `first` … `last` − 1, in order, whatever the number of workers."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first, last),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        worker_init_fn=start_worker if workers else None,
    )
    yield from loader


def start_worker(_: int) -> None:
    """A worker leaves the other cores, and Ctrl-C, to the trainer."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def choose_workers(wanted: int | None, world: int = 1) -> tuple[int, str]:
    """The number of worker processes, with the reason."""
    if wanted is not None:
        return wanted, "as asked"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // world)
    if not torch.cuda.is_available():
        # Measured on two cores: a worker beside two computing threads costs more than it saves, since every parallel
        # operation waits for the slower thread.
        return max(
            0, share // 2 - 1
        ), f"{share} core{'s' if share > 1 else ''} a process, which the training step needs"
    return min(16, max(1, share - 1)), f"{share} cores a process; the device does the training step"
