"""How fast a corpus can be read, decoded and handed over: short measurements on this machine."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from softclip_cli.data.batches import StepDataset, batches
from softclip_cli.data.decode import Augment, Preprocess, train_view
from softclip_cli.data.sampler import generator
from softclip_cli.data.shrink import shrink
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets

READ_ROWS = 32  # at a time, as the share of a batch
SAMPLE_BYTES = 64 << 20  # of encoded images that decoding is measured on


@dataclass(frozen=True)
class Reading:
    """How fast one process reads encoded images.

    Attributes:
        samples_per_second, bytes_per_second: of image files.
        from_storage: bytes that the system fetched from the disk for each byte read, at most 1; near 0 where they were in memory
            already, None where the system does not tell.
    """

    samples_per_second: float
    bytes_per_second: float
    from_storage: float | None


def read_rate(data: datasets.Dataset, order: str, seconds: float, seed: int = 0) -> Reading:
    """Read rows for a while, as training does, after asking the system to forget what it has of the files in memory.

    Args:
        data: a split of a corpus, images undecoded.
        order: "random" or "sequential".
        seconds: at most; it ends earlier with the last row.
        seed: of the random order.
    """
    images = data.select_columns(["image"])
    rows = np.arange(len(data)) if order == "sequential" else generator(seed).permutation(len(data))
    forget(Path(file["filename"]) for file in data.cache_files)
    before, began = _storage_bytes(), time.perf_counter()
    samples = size = 0
    for start in range(0, len(rows), READ_ROWS):
        found = images[rows[start : start + READ_ROWS].tolist()]["image"]
        samples += len(found)
        size += sum(len(image["bytes"]) for image in found)
        if time.perf_counter() - began > seconds:
            break
    spent, after = time.perf_counter() - began, _storage_bytes()
    share = None if before is None or after is None else min(1.0, (after - before) / max(1, size))
    return Reading(samples / spent, size / spent, share)


def forget(files: Iterator[Path]) -> None:
    """Ask the system to drop its copies of these files from memory; it may keep what another process uses."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _storage_bytes() -> int | None:
    """What this process has had fetched from storage, in bytes (Linux)."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
    except (OSError, StopIteration, ValueError):
        return None


def sample_images(data: datasets.Dataset, count: int, seed: int = 0) -> list[bytes]:
    """Some encoded images, drawn at random, of 64 MB in all at most (but one at least)."""
    images, found, size = data.select_columns(["image"]), [], 0
    for row in generator(seed).permutation(len(data))[:count].tolist():
        found.append(images[row]["image"]["bytes"])
        size += len(found[-1])
        if size > SAMPLE_BYTES:
            break
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one core inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode_rate(images: list[bytes], spec: Preprocess, augment: Augment, seconds: float) -> float:
    """Training views (bytes to augmented uint8 pixels) a second of processor time, on one core.

    Raises:
        DataError: none of the images can be decoded.
    """
    rng = generator(0)
    with one_thread():
        began, made = time.process_time(), 0
        for place in itertools.count():
            try:
                train_view(images[place % len(images)], spec, augment, rng)
                made += 1
            except DataError:
                if place >= len(images) and not made:
                    raise
            if made and time.process_time() - began > seconds:
                return made / (time.process_time() - began)
    raise AssertionError("unreachable")


def shrink_gain(
    images: list[bytes], spec: Preprocess, augment: Augment, short_side: int, seconds: float
) -> tuple[float, float]:
    """What `data prepare --short-side` would bring: (decoding rate, bytes), each as a multiple of what it is now."""
    smaller = []
    for image in images:
        try:
            smaller.append(shrink(image, short_side, 90)[1] or image)
        except DataError:
            continue
    if not smaller:
        return 1.0, 1.0
    rates = []
    for _ in range(2):  # interleaved, for the machine may do other things meanwhile
        now = decode_rate(images, spec, augment, seconds / 4)
        rates.append(decode_rate(smaller, spec, augment, seconds / 4) / now)
    return float(np.mean(rates)), sum(map(len, smaller)) / max(1, sum(map(len, images)))


def loading_rate(dataset: StepDataset, workers: int, seconds: float) -> float:
    """Samples a second that `workers` processes (0: this one) hand over as whole batches to a trainer that only waits.

    The first batches, while the processes start, do not count.
    """
    steps, size = batches(dataset, 0, 1 << 30, workers), dataset.sampler.batch_size // dataset.world
    try:
        with one_thread():  # as a worker, and so that no workers is one core
            for _ in range(workers + 1):
                next(steps)
            began = time.perf_counter()
            for made in itertools.count(1):
                next(steps)
                spent = time.perf_counter() - began
                if spent > seconds and made >= max(2, workers):
                    return made * size / spent
    finally:
        steps.close()  # type: ignore[attr-defined]
    raise AssertionError("unreachable")
