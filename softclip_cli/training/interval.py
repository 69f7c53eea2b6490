"""What is counted between two lines of metrics."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Interval:
    """Sums stay on the device until a line is written.

    Attributes:
        loss: sum over the good batches.
        good: how many these are.
        steps: all batches.
        waited: seconds for data.
        began: on `time.perf_counter`; what is not training time moves it forward.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)
        self.steps, self.waited, self.began = 0, 0.0, time.perf_counter()

    def add(self, loss: Tensor, bad: Tensor) -> None:
        """Count one batch; `bad`: a bool scalar, whether it was skipped."""
        self.loss += torch.where(bad, torch.zeros_like(loss), loss)
        self.good += ~bad
        self.steps += 1

    def summary(self, batch_size: int) -> dict[str, float]:
        """Mean loss, pairs a second and share of the time without data; no loss where every batch was skipped. Waits for the device."""
        good, seconds = int(self.good), time.perf_counter() - self.began
        mean = {"loss": float(self.loss) / good} if good else {}
        return mean | {
            "samples_per_second": round(self.steps * batch_size / seconds, 2),
            "data_wait": round(self.waited / seconds, 4),
        }
