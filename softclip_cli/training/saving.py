"""Checkpoints written beside the training: the step waits for a copy in the host's memory, a thread does the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softclip_cli.model import Model
from softclip_cli.training import checkpoint

Files = Mapping[str, Mapping[str, Tensor]]


def copied(files: Files) -> dict[str, dict[str, Tensor]]:
    """The same tensors in the host's memory, in C order: training may go on with the originals.

    What lies in two files (averaged weights) is copied once; within a file each tensor has its own memory, as safetensors wants it.
    """
    shared: dict[tuple[Any, ...], Tensor] = {}
    made: dict[str, dict[str, Tensor]] = {}
    for name, content in files.items():
        used: set[tuple[Any, ...]] = set()
        made[name] = {}
        for key, tensor in content.items():
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if place in used or place not in shared:
                copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                shared.setdefault(place, copy)
            else:
                copy = shared[place]
            used.add(place)
            made[name][key] = copy
    return made


@dataclass(frozen=True)
class Written:
    """A checkpoint that is on the disk.

    Attributes:
        step: number of steps done.
        path: its folder.
        best: whether it is the best so far.
    """

    step: int
    path: Path
    best: bool


class CheckpointWriter:
    """Writes checkpoints one after another in a thread of its own.

    At most one is on its way: the next waits for it, so the memory needed besides the training's own is one checkpoint's, whatever the disk
    does. What goes wrong in the thread is raised by the next call. Only the training's own thread may call.

    Args:
        folder: the run's `checkpoints` folder.
        model: how `model.safetensors` is to be read.
        keep: how many of the newest stay.
        told: called, in the caller's thread, for each checkpoint that is written.
    """

    def __init__(self, folder: Path, model: Model, keep: int, told: Callable[[Written], None]) -> None:
        self.folder, self.model, self.keep, self.told = folder, model, keep, told
        self._thread: threading.Thread | None = None
        self._written: Written | None = None
        self._error: BaseException | None = None

    def save(self, step: int, files: Files, facts: Mapping[str, Any], best: tuple[str, float] | None = None) -> None:
        """Copy the tensors and start to write them.

        Args:
            step: number of steps done.
            files: see `checkpoint.save`.
            facts: see `checkpoint.save`.
            best: metric and value, where this is the best checkpoint so far.

        Raises:
            HostError: the checkpoint before could not be written.
        """
        self.finish()
        work = (step, copied(files), dict(facts), best)
        self._thread = threading.Thread(target=self._write, args=work, name=f"checkpoint-{step}")
        self._thread.start()

    def poll(self) -> None:
        """Tell of a checkpoint that has been written meanwhile; costs nothing where none has.

        Raises:
            HostError: it could not be written.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait until everything handed in is on the disk.

        Raises:
            HostError: it could not be written.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        written, error = self._written, self._error
        self._written = self._error = None
        if error is not None:
            raise error
        if written is not None:
            self.told(written)

    def _write(
        self, step: int, files: dict[str, dict[str, Tensor]], facts: dict[str, Any], best: tuple[str, float] | None
    ) -> None:
        try:
            with checkpoint.writing(self.folder, step):
                path = checkpoint.save(self.folder, step, self.model, files, facts)
                if best is not None:
                    checkpoint.mark_best(self.folder, step, *best)
                checkpoint.prune(self.folder, self.keep, step)
            self._written = Written(step, path, best is not None)
        except BaseException as error:  # raised in the training's thread
            self._error = error
