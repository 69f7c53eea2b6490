"""Batches of a prepared corpus: read, decoded, augmented and tokenised in worker processes, each a function of (seed, step)."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from softclip_cli.data.decode import Augment, Preprocess, ResizeCrop, eval_view, open_for_crops, random_crop
from softclip_cli.data.loader import surviving, unheard
from softclip_cli.data.sampler import EpochSampler, generator
from softclip_cli.data.sharded.corpus import ShardedSplit
from softclip_cli.errors import DataError
from softclip_cli.resources import usable_cores, what_limits_cores

if TYPE_CHECKING:
    import datasets

KEEP_BYTES = (
    512 << 20
)  # decoded images that a trainer's processes keep: a small corpus is decoded once, not every epoch
KEEP_SHARE = 0.25  # of the corpus, that must fit for keeping to be worth the memory
PREFETCH = 4  # batches that each worker has ready
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
        caption: int64 (N,), which of its row's captions a sample has, from 0.
        replaced: rows whose image could not be decoded, with the reason; `index` holds what stands in for them.
        teacher_text: token ids of a frozen teacher's own tokenizer, int64 (N, L'), where it reads along.
    """

    step: int
    image: Tensor
    text: Tensor
    index: Tensor
    group: Tensor
    caption: Tensor
    replaced: list[tuple[int, str]] = field(default_factory=list)
    teacher_text: Tensor | None = None

    def pin_memory(self) -> Batch:
        """Move the tensors to page-locked memory, from which copies to a GPU are asynchronous."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, all but `index` and `caption`: by these, things in the host's memory are looked up."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        read = None if self.teacher_text is None else move(self.teacher_text)
        return replace(self, image=move(self.image), text=move(self.text), group=move(self.group), teacher_text=read)


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
        teacher_tokenize: a frozen teacher's own, where it is to read the captions too.
        keep_bytes: of decoded images, over all workers; 0 decodes anew every time.
    """

    def __init__(
        self,
        data: datasets.Dataset | ShardedSplit,
        sampler: EpochSampler,
        spec: Preprocess,
        augment: Augment | ResizeCrop | None,
        tokenize: Callable[[list[str]], Tensor],
        captions: str = "random",
        rank: int = 0,
        world: int = 1,
        teacher_tokenize: Callable[[list[str]], Tensor] | None = None,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self.data: Any = data.select_columns(["image", "captions"])
        self.sampler, self.spec, self.augment = sampler, spec, augment
        self.tokenize, self.captions, self.rank, self.world = tokenize, captions, rank, world
        self.teacher_tokenize = teacher_tokenize
        # The groups of shards come with their samples: there may be too many for a table.
        self.groups = None if isinstance(data, ShardedSplit) else group_ids(data)
        self.kept = _Kept(len(data), keep_bytes)

    def __getitem__(self, step: int) -> Batch:
        rows = local_rows(self.sampler, step, self.rank, self.world)
        epoch = self.sampler.epoch(step)
        records = self.data[rows.tolist()]
        views, texts, picks, groups, replaced = [], [], [], [], []
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
            picks.append(choose_caption(len(record["captions"]), rng, self.captions))
            texts.append(record["captions"][picks[-1]])
            groups.append(group_id(record.get("group"), row))
        index = torch.from_numpy(rows)
        return Batch(
            step,
            torch.from_numpy(np.stack(views)),
            self.tokenize(texts),
            index,
            self.groups[index] if self.groups is not None else torch.tensor(groups),
            torch.tensor(picks),
            replaced,
            None if self.teacher_tokenize is None else self.teacher_tokenize(texts),
        )

    def view(self, row: int, data: bytes, rng: np.random.Generator) -> np.ndarray:
        """The training view where augmenting, else the evaluation view."""
        if self.augment is None:
            return eval_view(data, self.spec)
        pixels = self.kept.get(row)
        if pixels is None:
            pixels = open_for_crops(data, self.spec, self.augment)
            self.kept.add(row, pixels)
        return random_crop(pixels, self.spec, self.augment, rng)


class _Kept:
    """Decoded images that a process keeps, within its share of the memory that all workers have for it together.

    An epoch's order hands rows to other workers than the last one's, so each worker comes to keep a part of all rows. Where only a
    small part of the corpus would fit, hits are too rare to be worth anything and nothing is kept.
    """

    def __init__(self, rows: int, total: int) -> None:
        self.rows, self.total = rows, total
        self.images: dict[int, np.ndarray] = {}
        self.used = self.seen = self.seen_bytes = 0

    def get(self, row: int) -> np.ndarray | None:
        return self.images.get(row)

    def add(self, row: int, pixels: np.ndarray) -> None:
        worker = get_worker_info()
        room = self.total // (worker.num_workers if worker else 1)
        self.seen += 1
        self.seen_bytes += pixels.nbytes
        expected = self.rows * self.seen_bytes / self.seen
        if room >= KEEP_SHARE * expected and self.used + pixels.nbytes <= room:
            self.images[row] = pixels
            self.used += pixels.nbytes


def choose_caption(count: int, rng: np.random.Generator, how: str) -> int:
    """Which of an image's `count` captions, by the sample's own generator."""
    return 0 if how == "first" or count == 1 else int(rng.integers(count))


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


def group_ids(data: datasets.Dataset | ShardedSplit) -> Tensor:
    """int64 (rows,): equal for rows of one group; a row without a group is a group of its own."""
    if "group" not in data.column_names:
        return torch.arange(len(data))
    names: dict[str, int] = {}
    ids = [names.setdefault(name, row) if name is not None else row for row, name in enumerate(data["group"])]
    return torch.tensor(ids)


def batches(
    dataset: StepDataset, first: int, last: int, workers: int, pin: bool = False, warn: Callable[[str], None] = unheard
) -> Iterator[Batch]:
    """Yield the batches of the steps `first` … `last` − 1, in order, whatever the number of workers and whether some are killed.

    Args:
        pin: copy them to page-locked memory.
        warn: told of each worker that was killed.

    Raises:
        HostError: workers die again and again.
    """

    def load(step: int) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=range(step, last),  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=pin,
            worker_init_fn=start_worker if workers else None,
        )

    return surviving(load, first, last, warn)


def start_worker(_: int) -> None:
    """A worker leaves the other cores, and Ctrl-C, to the trainer."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def choose_workers(wanted: int | None, device: str, processes: int = 1, batch_bytes: int = 0) -> tuple[int, str]:
    """The number of worker processes of one trainer, with the reason.

    Args:
        wanted: by the user; taken as it is.
        device: "cpu", "cuda", ...: what does the training step.
        processes: trainers on this machine, which share its cores.
        batch_bytes: of one trainer's batch, which travels through shared memory; 0 where unknown.
    """
    if wanted is not None:
        return wanted, "as asked"
    share, limit = max(1, usable_cores() // processes), what_limits_cores()
    said = f"{share} core{'s' if share > 1 else ''} a process" + (f" ({limit})" if limit else "")
    if device == "cpu":
        # A core decodes what several cores can train on (docs/benchmarks.md); and measured on two cores, a worker beside
        # two computing threads costs more than it saves, since every parallel operation waits for the slower thread.
        workers = min(8, share // 4)
        reason = f"{said}, which the training step needs" if not workers else f"a quarter of {said}; the rest trains"
    else:
        workers = min(16, max(1, share - 1))
        reason = f"{said}; the {device} device does the training step"
    free = shared_memory_free()
    if free is not None and batch_bytes:
        # Half of it, for a worker that finds it full is killed (SIGBUS).
        fitting = int(free / 2 / processes / batch_bytes / (PREFETCH + 1))
        if fitting < workers:
            return fitting, f"the {free >> 20} MB of shared memory hold no more batches (docker run --shm-size=8g)"
    return workers, reason


def shared_memory_free() -> int | None:
    """Free bytes of /dev/shm, through which workers hand over their batches; None where there is none. Containers often have 64 MB."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux: no such limit
        return None
