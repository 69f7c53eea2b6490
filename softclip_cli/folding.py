"""Attention's input projection without gradient on a CPU: one matrix product instead of one for each position.

`nn.MultiheadAttention` transposes its input before it projects it. For such a tensor torch multiplies position by position, with a copy of
the weight for each, unless the weight needs a gradient: then it flattens the tensor first (`should_fold` in ATen's LinearAlgebra.cpp).
Under autocast without gradient no weight does, so that a forward pass of ViT-S-32-alt in bfloat16 took 1.5 times as long without gradient
as with it. A contiguous tensor is flattened either way.
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
    """A context for a tower's forward pass: flattens where it helps, on a CPU without gradient, and else does nothing."""
    return nullcontext() if torch.is_grad_enabled() or device.type != "cpu" else _Folded()
