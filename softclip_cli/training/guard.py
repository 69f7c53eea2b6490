"""A batch whose loss or gradient is not a number: noticed, undone, counted; weights and everything beside them stay as they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from softclip_cli.objectives.distributed import own_part
from softclip_cli.objectives.objective import Objective


def gradient_norm(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """The norm over all gradients, a scalar; they are clipped to `largest` where that is not 0."""
    parameters = list(parameters)
    if largest:
        return nn.utils.clip_grad_norm_(parameters, largest)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number in them is finite, of sharded tensors in this process's part. Waits for the device."""
    parts = [part for tensor in tensors if (part := own_part(tensor.detach())).numel()]
    # The largest magnitude is inf or nan as soon as one number is.
    return bool(torch.stack(torch._foreach_norm(parts, float("inf"))).isfinite().all())


@dataclass
class _Pending:
    """A step's flag on its way from the device to the host."""

    step: int
    flag: Tensor
    copied: torch.cuda.Event | None


class Guard:
    """Looks at each step's loss and at the norm of its gradient before anything moves.

    Both are the same on all processes (the loss is the global batch's, gradients are averaged before), so all skip the same batches
    without a word. On a CPU the host reads the result at once and leaves the update out. On another device it must not wait for it:
    the optimiser leaves the update out by its own flag (`found_inf`, as torch's GradScaler does), the rest is undone on the device, and the
    host reads a step's flag when the next step is launched.

    Args:
        module: whose buffers (batch statistics) a forward pass moves.
        objective: whose buffers it moves too (`Objective.take_back`).
        optimizer: told of a bad batch on a device.
        device: where they are.
        waits: whether the host reads each flag at once; default: on a CPU.

    Attributes:
        flag: whether the last batch was bad, a scalar on the device.
        skipped: batches skipped in the run, as far as the host knows.
        streak: of them, how many in a row up to the last one known.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        waits: bool | None = None,
    ) -> None:
        self.waits = device.type == "cpu" if waits is None else waits
        self.device, self.objective, self.optimizer = device, objective, optimizer
        held = {id(p) for p in module.parameters()}
        buffers = [t for t in module.state_dict(keep_vars=True).values() if id(t) not in held]
        self.groups = [
            [t for t in buffers if t.dtype == dtype] for dtype in sorted({t.dtype for t in buffers}, key=str)
        ]
        self.kept = [[torch.empty_like(t) for t in group] for group in self.groups]
        self.flag = torch.zeros((), dtype=torch.bool, device=device)
        self.skipped = self.streak = 0
        self._news: list[int] = []
        self._pending: _Pending | None = None
        if not self.waits and isinstance(optimizer, torch.optim.SGD):
            # A fused SGD whose first step is left out keeps a momentum that was never written.
            for parameter in (p for group in optimizer.param_groups if group["momentum"] for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def remember(self) -> None:
        """Keep what the forward pass of a step will move besides the gradient; call it before."""
        for kept, group in zip(self.kept, self.groups, strict=True):
            torch._foreach_copy_(kept, group)

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> bool:
        """Look at a step, counted from 0, and undo what its forward pass did if it is bad; call it before the update.

        Returns:
            Whether to update; always true where the host does not wait: the update itself then looks at the flag.
        """
        self.settle()
        self.flag = ~(loss.detach().isfinite() & norm.detach().isfinite())
        if self.waits:
            bad = bool(self.flag)
            self._count(step, bad)
            if bad:
                self._put_back()
                self.objective.take_back()
            return not bad
        self.optimizer.found_inf = self.flag.float()  # type: ignore[attr-defined]
        self._put_back_where(self.flag)
        self.objective.take_back(self.flag)
        self._pending = self._send(step)
        return True

    def settle(self) -> None:
        """Wait for the last step's flag, and count it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            if pending.copied is not None:
                pending.copied.synchronize()
            self._count(pending.step, bool(pending.flag))

    def news(self) -> list[int]:
        """The steps, counted from 1, found bad since the last call."""
        found, self._news = self._news, []
        return found

    def forget(self) -> None:
        """Start a new streak: the run went back to a checkpoint."""
        self.settle()
        self.streak, self.flag = 0, torch.zeros_like(self.flag)

    def _count(self, step: int, bad: bool) -> None:
        self.streak = self.streak + 1 if bad else 0
        if bad:
            self.skipped += 1
            self._news.append(step + 1)

    def _put_back(self) -> None:
        for kept, group in zip(self.kept, self.groups, strict=True):
            torch._foreach_copy_(group, kept)

    def _put_back_where(self, flag: Tensor) -> None:
        # In few operations, however many small buffers there are; arithmetic cannot choose, for 0 · nan is nan.
        for kept, group in zip(self.kept, self.groups, strict=True):
            before, after = (torch.cat([t.reshape(-1) for t in side]) for side in (kept, group))
            parts = torch.where(flag, before, after).split([t.numel() for t in group])
            torch._foreach_copy_(group, [part.view_as(t) for part, t in zip(parts, group, strict=True)])

    def _send(self, step: int) -> _Pending:
        if self.device.type != "cuda":
            return _Pending(step, self.flag, None)
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(self.flag, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return _Pending(step, host, copied)
