"""The teacher that is the student's own moving average."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from softclip_cli.objectives.distributed import own_part


class EmaTeacher:
    """The exponential moving average of a model, parameters and buffers, kept up to date by foreach operations.

    After n updates the decay is min(decay, (1+n)/(10+n)) with `warmup`, so that the first weights are soon forgotten.
    Floating-point tensors are averaged, integer ones (batch counters) and masks copied.

    Args:
        model: the student; copied. Pass the bare module, not a DistributedDataParallel around it.
        decay: in [0, 1).
        warmup: let the decay grow in the beginning.

    Attributes:
        module: the averaged model, in evaluation mode, without gradient.
        updates: how many there were.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.grad = None
        self.decay, self.warmup, self.updates = decay, warmup, 0
        # The mean of infinities is not a number: what holds them (a mask) is copied like a counter.
        self._averaged = [
            tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in _tensors(self.module)
        ]

    def current_decay(self) -> float:
        """The decay that the next update uses."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, keep: Tensor | None = None) -> None:
        """Move every averaged tensor towards the model's; call it after each optimiser step.

        Args:
            model: the student.
            keep: a bool scalar on the device: where true nothing moves. (`updates`, which the host counts, goes on.)
        """
        weight = 1 - self.current_decay()
        self.updates += 1
        averaged, current = [], []
        for mine, theirs, average in zip(_tensors(self.module), _tensors(model), self._averaged, strict=True):
            if average:
                averaged.append(own_part(mine))
                current.append(own_part(theirs.detach()).to(averaged[-1]))
            else:
                mine.copy_(theirs)
        if averaged and keep is None:
            torch._foreach_lerp_(averaged, current, weight)
        elif averaged and keep is not None:
            # A weight that only the device knows; with one tensor for all, these are the operations that stay fused.
            step = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(step, torch.where(keep, 0.0, weight).to(step[0]))
            torch._foreach_add_(averaged, step)

    def counterparts(self, model: nn.Module) -> dict[int, Tensor]:
        """The averaged tensor of each tensor of `model`, by the `id` of the latter: for reading, without a swap."""
        return {id(theirs): mine for mine, theirs in zip(_tensors(self.module), _tensors(model), strict=True)}

    @contextlib.contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[nn.Module]:
        """Put the averaged weights into `model` for the length of a `with` block, then give it its own back."""
        mine, theirs = _tensors(self.module), _tensors(model)
        with torch.no_grad():
            kept = [tensor.detach().clone() for tensor in theirs]
            for target, source in zip(theirs, mine, strict=True):
                target.copy_(source)
        try:
            yield model
        finally:
            with torch.no_grad():
                for target, source in zip(theirs, kept, strict=True):
                    target.copy_(source)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights under `module.` and the number of updates, all tensors (so that safetensors can hold them)."""
        weights = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return weights | {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        prefix = "module."
        weights = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        self.module.load_state_dict(weights)
        self.updates = int(state["updates"])


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and persistent buffers, each once. What is not saved is a constant, such as a causal mask of -inf."""
    return list({id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values())
