"""A ring of past pairs' embeddings: further negatives for small batches (ALBEF, MoCo)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softclip_cli.errors import UsageError


class FeatureQueue(nn.Module):
    """Keeps the newest `size` pairs. It starts empty and only what was put in is used.

    (ALBEF starts with random vectors instead [code]; an empty queue [ours] is the same on every process by itself.)

    Args:
        size: pairs kept.
        width: embedding width.
    """

    image: Tensor
    text: Tensor
    position: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("image", torch.zeros(size, width))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("position", torch.zeros(2, dtype=torch.int64))
        # The same two numbers as `position`, at hand without waiting for a device.
        self._next = self._filled = 0
        self._before: tuple[int, int, Tensor, Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(_restore_position)

    def images(self) -> Tensor:
        """(filled, width)."""
        return self.image[: self._filled]

    def texts(self) -> Tensor:
        """(filled, width)."""
        return self.text[: self._filled]

    @torch.no_grad()
    def put(self, image: Tensor, text: Tensor) -> None:
        """Add the pairs of a batch, (N, width) each, over the oldest ones.

        Raises:
            UsageError: the batch is larger than the queue.
        """
        count = image.shape[0]
        if count > self.size:
            raise UsageError(
                f"a batch of {count} pairs does not fit a queue of {self.size}",
                "the queue must hold at least one global batch",
                "set objective.queue_size to at least the batch size",
            )
        places = (torch.arange(count, device=self.image.device) + self._next) % self.size
        self._before = (self._next, self._filled, places, self.image[places], self.text[places])
        self.image[places] = image.to(self.image)
        self.text[places] = text.to(self.text)
        self._next = (self._next + count) % self.size
        self._filled = min(self.size, self._filled + count)
        self.position.copy_(torch.tensor([self._next, self._filled]))

    @torch.no_grad()
    def take_back(self, where: Tensor | None = None) -> None:
        """Undo the last `put`.

        Args:
            where: a bool scalar on the device that says whether to. The host does not know it then, so the places stay taken by what
                they held before: older pairs, or zeros (at right angles to everything) in a queue that is not full yet.
        """
        if self._before is None:
            return
        start, filled, places, image, text = self._before
        self._before = None
        if where is None:
            self.image[places], self.text[places] = image, text
            self._next, self._filled = start, filled
            self.position.copy_(torch.tensor([start, filled]))
        else:
            self.image[places] = torch.where(where, image, self.image[places])
            self.text[places] = torch.where(where, text, self.text[places])


def _restore_position(queue: Any, _: Any) -> None:
    queue._next, queue._filled = queue.position.tolist()
