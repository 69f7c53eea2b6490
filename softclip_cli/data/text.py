"""Texts to token ids, cut to the length that the batch needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LENGTH_STEP = 8  # trimmed texts come in multiples of this, so that shapes repeat and kernels are reused
COMPILED_STEP = 16  # for a compiled tower, which takes a while to compile for each new length
KEEP_TEXTS = 200_000  # token rows that are remembered: a caption comes back every epoch, and tokenising it is Python


@dataclass
class Tokenize:
    """Texts → int64 (N, L). Small and picklable: worker processes carry it without the network.

    Attributes:
        tokenizer: open_clip's, or a Hugging Face one behind open_clip's wrapper; pads to the full context.
        pad_id: token id of the padding.
        trimmable: whether the text tower gives the same result without the padding (`TextTower.trimmable`).
        step: trimmed lengths are multiples of this.
    """

    tokenizer: Any
    pad_id: int = 0
    trimmable: bool = True
    step: int = LENGTH_STEP
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids, without the columns that are padding in every row, up to a multiple of `step`."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            if len(self._known) + len(new) > KEEP_TEXTS:
                self._known.clear()
                new = list(dict.fromkeys(texts))
            tokens: Tensor = self.tokenizer(new)
            self.context_length = tokens.shape[1]
            used = (tokens != self.pad_id).long()
            # One past the last token that is no padding, counted from the right.
            lengths = tokens.shape[1] - used.flip(1).argmax(dim=1)
            for text, row, length in zip(new, tokens.to(torch.int32), lengths.tolist(), strict=True):
                self._known[text] = row[: length if self.trimmable else None].clone()
        rows = [self._known[text] for text in texts]
        longest = max(len(row) for row in rows)
        width = min(self.context_length, -(-longest // self.step) * self.step) if self.trimmable else longest
        batch = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        for target, row in zip(batch, rows, strict=True):
            target[: len(row)] = row
        return batch
