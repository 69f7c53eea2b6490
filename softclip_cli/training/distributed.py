"""Processes under `torchrun`: who am I, how long to wait for another, and gradients averaged over all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from softclip_cli.errors import HostError, UsageError

TIME_LIMIT = "SOFTCLIP_RANK_TIMEOUT"


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
    """Join the processes that `torchrun` started; a world of one where it did not.

    Messages between them have a time limit: see `time_limit`.

    Raises:
        HostError: they do not find each other.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    size = int(os.environ["WORLD_SIZE"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")), local_size)
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(world.local_rank)
    limit = time_limit()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=limit)))
        store.set_timeout(timedelta(seconds=limit))
        # torchrun keeps its store when it starts the processes again: addresses of the dead ones must not be taken for new ones.
        store = dist.PrefixStore(f"{attempt()}/group", store)
        # Gloo beside NCCL: what hosts agree on in each step must not wait for their GPUs.
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=limit))
    except RuntimeError as error:  # DistError, or a plain one of gloo's
        raise HostError(
            f"rank {world.rank} does not find the other {size - 1} processes within {limit:.0f} s",
            str(error).partition("\n")[0],
            f"are all started, and can {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} be reached from each machine?",
        ) from error
    try:
        yield world
    except BaseException:
        if not cuda:  # NCCL would first wait for messages that may never come
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def attempt() -> str:
    """Which start of the processes this is: torchrun starts them again where it may (`--max-restarts`)."""
    return f"softclip/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def time_limit() -> float:
    """Seconds that a process waits for another in a message, from the environment: 600 unless set.

    Raises:
        UsageError: it is no positive number.
    """
    text = os.environ.get(TIME_LIMIT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e7:
        raise UsageError(f"{TIME_LIMIT}={text} is no time", "it is a number of seconds above 0", f"{TIME_LIMIT}=600")
    return seconds


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


@contextmanager
def patient_gathering(world: World) -> Iterator[Callable[[Any], list[Any]]]:
    """A function like `from_all` for work that ends at very different times: it waits as long as that takes."""
    if world.size == 1:
        yield lambda value: [value]
        return
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=30))

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * world.size
        dist.all_gather_object(values, value, group=group)
        return values

    yield gather
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


def any_process(flag: bool, world: World) -> bool:
    """Whether the flag is raised on any process, so that all act alike."""
    return bool(largest_everywhere([int(flag)], world)[0])


def largest_everywhere(values: list[int], world: World) -> list[int]:
    """The largest of each value over all processes, so that all act alike. Between hosts: no GPU is waited for."""
    if world.size == 1:
        return values
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()
