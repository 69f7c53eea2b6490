"""Processes under `torchrun`: who am I, and gradients averaged over all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank: on this machine; picks the GPU.
        local_size: number of processes on this machine, which share its cores and memory.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started; a world of one where it did not."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    size = int(os.environ["WORLD_SIZE"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")), local_size)
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()


@contextmanager
def first_ahead(world: World) -> Iterator[None]:
    """Inside, the first process of each machine goes ahead; the others follow when it is done, and find its work in the cache.

    They wait as long as that takes: the time limit of the messages between training steps does not apply.
    """
    if world.size == 1:
        yield
        return
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    try:
        if world.local_rank:
            dist.barrier(group)
        yield
    finally:
        if not world.local_rank:
            dist.barrier(group)
        dist.destroy_process_group(group)


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace each gradient by its mean over all processes, in one message a dtype."""
    if world.size == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                # Every process must send the same tensors.
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world.size
        torch._foreach_copy_(
            gradients,
            [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)],
        )


def from_first(value: Any, world: World) -> Any:
    """The first process's value, on every process."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any, world: World) -> list[Any]:
    """Every process's value, in the order of the ranks."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool, world: World, device: torch.device) -> bool:
    """Whether the flag is raised on any process, so that all act alike."""
    if world.size == 1:
        return flag
    tensor = torch.tensor([int(flag)], device=device if device.type == "cuda" else "cpu")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def largest_everywhere(values: list[int], world: World, device: torch.device) -> list[int]:
    """The largest of each value over all processes, so that all act alike."""
    if world.size == 1:
        return values
    tensor = torch.tensor(values, device=device if device.type == "cuda" else "cpu")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()
