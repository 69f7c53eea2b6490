"""Encoded images to the pixels that an evaluation sees, in worker processes."""

from __future__ import annotations

import hashlib
import shutil
import sys
from typing import Any

import numpy as np
import torch

from softclip_cli.data.decode import Preprocess, eval_view
from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import ImageSource
from softclip_cli.resources import usable_cores

SMALL = 512  # images below which starting worker processes costs more than they save


class Views(torch.utils.data.Dataset):
    """Decoded evaluation views for a DataLoader: (pixels, hash), or (black, reason) for an image that cannot be read."""

    def __init__(self, images: ImageSource, spec: Preprocess) -> None:
        self.images = images
        self.spec = spec

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        # An exception would lose its parts on the way from a worker process to the main one.
        try:
            data = self.images[index]
            return eval_view(data, self.spec), hash64(data)
        except DataError as error:
            return np.zeros((self.spec.size, self.spec.size, 3), np.uint8), (index, error.what, error.why)


def collate(items: list[tuple[Any, Any]], shared: bool) -> tuple[Any, np.ndarray, list[Any]]:
    """Stack views to uint8 (B, H, W, 3), with their hashes (0 for a failure) and the reasons of the failures.

    A tensor reaches the main process through shared memory, an array through a pipe at a third of the rate.
    """
    failures = [value for _, value in items if isinstance(value, tuple)]
    batch = np.stack([pixels for pixels, _ in items])
    hashes = np.array([0 if isinstance(value, tuple) else value for _, value in items], dtype=np.int64)
    return torch.from_numpy(batch) if shared else batch, hashes, failures


def shared_memory_suffices(needed: int) -> bool:
    """Whether tensors of `needed` bytes in all fit the shared memory; in a container it is often 64 MB only."""
    try:
        return shutil.disk_usage("/dev/shm").free > 2 * needed
    except OSError:  # not a Linux machine: no such limit
        return True


def hash64(data: bytes) -> int:
    """64 bits of BLAKE2b, as a signed integer."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def choose_workers(count: int, device: torch.device, asked: int | None = None, processes: int = 1) -> tuple[int, str]:
    """How many processes decode, and why.

    Args:
        count: images to decode.
        device: of the model.
        asked: by the user.
        processes: that share the machine's cores.
    """
    if asked is not None:
        return asked, "as asked for"
    if count < SMALL:
        return 0, f"{count} images are too few to start processes for"
    cores = max(1, usable_cores() // processes)
    if sys.platform == "darwin" and device.type == "cpu":
        return 0, "starting processes is slow on macOS and the model needs the cores"
    if device.type == "cpu":
        return max(1, cores // 2), f"half of {cores} cores decode, the model needs the rest"
    return max(1, min(cores, 16)), f"{cores} cores decode for the {device.type} device"
