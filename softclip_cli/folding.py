"""A teacher's attention on a CPU: its input is projected by one matrix product instead of one for each position.

`nn.MultiheadAttention` transposes its input before it projects it. For such a tensor torch multiplies position by position, with a copy of
the weight for each, unless the weight requires a gradient: then it flattens the tensor first (`should_fold` in ATen's
LinearAlgebra.cpp). The weights of a teacher and of a locked tower require none, so that ViT-S-32-alt's forward pass in bfloat16 took 1.5
times as long in a teacher as in its student. A contiguous tensor is flattened either way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _Folded(TorchFunctionMode):
    """Attention gets its inputs in contiguous memory, which a linear layer flattens by itself."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.multi_head_attention_forward:
            # Self-attention is recognised by its inputs being one and the same tensor.
            copies = {id(tensor): tensor.contiguous() for tensor in args[:3]}
            args = (*(copies[id(tensor)] for tensor in args[:3]), *args[3:])
        return func(*args, **(kwargs or {}))


def folded(device: torch.device) -> AbstractContextManager[Any]:
    """A context for a tower's forward pass: flattens where it helps, under autocast on a CPU without gradient.

    In float32 it does nothing: there torch has a fast path of its own for attention without gradient.
    """
    helps = device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
    return _Folded() if helps else nullcontext()
