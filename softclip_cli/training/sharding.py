"""Towers that do not fit one device: their blocks and embedding tables sharded over all processes (FSDP2, `--shard fsdp`).

Each block of a tower and each table of embeddings is one unit of `torch.distributed.fsdp.fully_shard`: its matrices, their gradients and
optimiser state lie in equal parts on all processes, and are put together for its own forward and backward pass only. They hold nearly
all of a model. What is outside of them (patches, positions, projections, the logit scale) and what is small (norms, biases) stays whole on
every process, its gradient averaged by `distributed.average_gradients` as without sharding: the towers reach for projections and positions
by name, outside any module's forward, where FSDP's hooks do not run.

A sharded tensor is a DTensor. Checkpoints hold whole tensors, so that any number of processes reads them, sharded or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from softclip_cli.model import Model
from softclip_cli.objectives.distributed import own_part
from softclip_cli.objectives.teacher import EmaTeacher

LEAST = 2048  # parameters; a smaller unit costs more in messages than it saves in memory


def units(module: nn.Module) -> Iterator[nn.Module]:
    """What is sharded one by one: the elements of the tower's lists of blocks, and its tables of embeddings."""
    for child in module.children():
        if isinstance(child, nn.Embedding):
            found: Iterable[nn.Module] = (child,)
        elif isinstance(child, nn.ModuleList | nn.Sequential):
            found = _elements(child)
        else:
            found = units(child)
        yield from (unit for unit in found if sum(p.numel() for p in unit.parameters() if p.ndim > 1) >= LEAST)


def _elements(several: nn.ModuleList | nn.Sequential) -> Iterator[nn.Module]:
    for element in several:
        if isinstance(element, nn.ModuleList | nn.Sequential):
            yield from _elements(element)
        else:
            yield element


def shard(model: Model, ema: EmaTeacher | None, *, device: torch.device, dtype: torch.dtype) -> str:
    """Shard a model, and its average alike, over all processes, and move both to the device. Parameters are new objects afterwards.

    Args:
        model: may lie in the main memory: no more than one unit of it is whole on the device at a time.
        ema: made of the whole model before.
        device: of this process.
        dtype: arithmetic of the towers. With bfloat16 a block's matrices travel in bfloat16, rounded as autocast would round them. Autocast
            then has nothing to round; its copies of the whole model would stay until the backward pass. Gradients are added up in float32.

    Returns:
        How much is sharded, for the log.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for net in [model.net] if ema is None else [model.net, ema.module]:
        _shard(net, mesh, dtype)
        net.to(device)
    model.to(device)
    total = sum(p.numel() for p in model.net.parameters())
    parted = sum(p.numel() for p in model.net.parameters() if isinstance(p, DTensor))
    return f"{parted:,} of {total:,} parameters in parts, the rest whole on each"


def _shard(net: Any, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    low = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    fine = list(units(net))
    for unit in fine:
        # FSDP takes parameters in plain memory order only, so convolutions lose channels_last for their weights.
        unit.to(memory_format=torch.contiguous_format)
        table = isinstance(unit, nn.Embedding)  # autocast leaves tables as they are
        policy = low if dtype == torch.bfloat16 and not table else MixedPrecisionPolicy()
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=_flat(unit), reshard_after_forward=True)
    # A tower around its blocks owns no shard itself; it lets the weights of one block travel while another computes.
    whole = {parameter for parameter in net.parameters() if not isinstance(parameter, DTensor)}
    for root in _roots(net):
        fully_shard(root, mesh=mesh, ignored_params=whole)
    inside = {id(part) for root in _roots(net) for part in root.modules()}
    for first in [*_roots(net), *(unit for unit in fine if id(unit) not in inside)]:
        trains = any(parameter.requires_grad for parameter in first.parameters())
        first.register_forward_hook(partial(_forget, trains))
    # Nobody changes the features of a tower in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)


def _flat(unit: nn.Module) -> set[nn.Parameter]:
    """Norms and biases: few, kept whole, and in float32, as autocast has them."""
    return {parameter for parameter in unit.parameters() if parameter.ndim < 2}


def _forget(trains: bool, module: Any, inputs: Any, output: Any) -> None:
    """Forward hook: FSDP notes each forward pass for the backward pass, and without one its list would only grow."""
    if not (trains and torch.is_grad_enabled()) and hasattr(module, "reset_iter_state"):
        module.reset_iter_state()


def _roots(net: Any) -> list[nn.Module]:
    """Of each tower, the outermost module that every way of encoding calls (`towers.py`)."""
    image, text = net.visual, getattr(net, "text", net)
    return [getattr(image, "trunk", image), text.transformer]


def whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Put sharded tensors together, one after the other; every process must call it.

    Args:
        tensors: some sharded.
        keep: whether to return anything; other processes only give their parts.

    Returns:
        The tensors, those that were sharded in main memory; empty without `keep`.
    """
    found = {}
    for name, tensor in tensors.items():
        full = _whole(tensor) if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return found


@torch.no_grad()
def _whole(tensor: DTensor) -> Tensor:
    return tensor.full_tensor()


def sharded_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, sharded as `example` is; unchanged where that is whole. Nothing travels: each process keeps its part."""
    if not isinstance(example, DTensor):
        return tensor
    # A copy, so that the part does not keep the whole alive.
    spread = distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements, src_data_rank=None)
    return DTensor.from_local(
        spread.to_local().clone(), example.device_mesh, example.placements, shape=spread.shape, stride=spread.stride()
    )


def all_sharded_like(tensors: Mapping[str, Tensor], examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`sharded_like` for each; a name without an example stays as it is, for `load_state_dict` to complain of."""
    return {
        name: sharded_like(tensor, examples[name]) if name in examples else tensor for name, tensor in tensors.items()
    }


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients so that their common norm is at most `largest`, as `nn.utils.clip_grad_norm_` does; some are sharded.

    Args:
        parameters: with their gradients, averaged over the processes.
        largest: 0 leaves the gradients as they are.

    Returns:
        The norm before, the same on every process.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [own_part(gradient) for gradient in gradients if isinstance(gradient, DTensor)]
    rest = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    square = nn.utils.get_total_norm(parts).square()
    dist.all_reduce(square)
    norm = (square + nn.utils.get_total_norm(rest).square()).sqrt()
    if largest:
        torch._foreach_mul_(parts + rest, (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm
