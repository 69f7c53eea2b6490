"""The few collectives an objective needs; every one is the identity in a single process.

Each process holds n pairs of the global batch of N = n × processes, in the order of the ranks. It computes its own n
rows against all N columns; what sums over rows of all processes (column log-sums, columns' gradients) is reduced here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.14 renamed them, and warns of the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size() -> int:
    """Number of processes; 1 when torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which process this is."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_rows(local: Tensor) -> Tensor:
    """(n, ...) of every process, one below the other: (N, ...), without gradient. n must be the same everywhere."""
    if world_size() == 1:
        return local
    local = local.contiguous()
    everyone = local.new_empty((world_size() * local.shape[0], *local.shape[1:]))
    _all_gather(everyone, local)
    return everyone


def scatter_sum_rows(partial: Tensor) -> Tensor:
    """Sum (N, ...) over the processes and keep the own n rows."""
    size = world_size()
    if size == 1:
        return partial
    count = partial.shape[0] // size
    if partial.device.type == "cpu":  # gloo reduces and scatters in two steps anyway
        dist.all_reduce(partial)
        return partial[rank() * count : (rank() + 1) * count]
    own = partial.new_empty((count, *partial.shape[1:]))
    _reduce_scatter(own, partial.contiguous())
    return own


def sum_everywhere(value: Tensor) -> Tensor:
    """The sum over the processes, on each of them (in place)."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def log_sum_everywhere(value: Tensor) -> Tensor:
    """log Σ exp over the processes, elementwise: (M,) of partial log-sums to (M,)."""
    if world_size() == 1:
        return value
    everyone = value.new_empty((world_size(), *value.shape))
    _all_gather(everyone.view(-1, *value.shape[1:]), value.contiguous())
    return torch.logsumexp(everyone, dim=0)


def own_part(tensor: Tensor) -> Tensor:
    """What of a sharded tensor (DTensor) lies on this process, in the same memory; a whole tensor as it is. Call it without gradient.

    For operations on lists of tensors, which take no mixture of sharded and whole ones.
    """
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]
