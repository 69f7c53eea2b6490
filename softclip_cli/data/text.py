"""Texts to token ids, cut to the length that the batch needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

LENGTH_STEP = 8  # trimmed texts come in multiples of this, so that shapes repeat and kernels are reused


@dataclass
class Tokenize:
    """Texts → int64 (N, L). Small and picklable: worker processes carry it without the network.

    Attributes:
        tokenizer: open_clip's, or a Hugging Face one behind open_clip's wrapper; pads to the full context.
        pad_id: token id of the padding.
        trimmable: whether the text tower gives the same result without the padding (`TextTower.trimmable`).
    """

    tokenizer: Any
    pad_id: int = 0
    trimmable: bool = True

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids, without the columns that are padding in every row, up to a multiple of `LENGTH_STEP`."""
        tokens: Tensor = self.tokenizer(texts)
        if not self.trimmable:
            return tokens
        used = (tokens != self.pad_id).any(dim=0).nonzero()
        longest = int(used.max()) + 1 if used.numel() else 1
        return tokens[:, : min(tokens.shape[1], -(-longest // LENGTH_STEP) * LENGTH_STEP)].contiguous()
