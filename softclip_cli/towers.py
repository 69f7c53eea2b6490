"""The two towers of an open_clip model, each split where its projection begins, with text trimmed to its real length.

open_clip's own `encode_text` adds a positional table of the full context and so refuses shorter input. A causal tower that is pooled at
its end-of-text token cannot see what comes behind it, so leaving the padding away is exact; that is where a large part of the text
tower's time goes (captions take 10 to 20 of the 77 positions).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from softclip_cli.blocks import Ragged, poolable, pooled_block, ragged_block
from softclip_cli.errors import ModelError


@contextmanager
def replaced(module: nn.Module, name: str, value: nn.Module | None) -> Iterator[None]:
    """Put `value` in the place of a submodule or parameter for the length of a `with` block."""
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def apply_projection(projection: Tensor | nn.Module | None, features: Tensor) -> Tensor:
    """Apply a projection that is a matrix, a module, or absent."""
    if projection is None:
        return features
    if isinstance(projection, nn.Module):
        return projection(features)
    return features @ projection


class ImageTower:
    """The image tower of an open_clip model: `head(trunk(x))` equals `net.visual(x)`.

    Args:
        net: `open_clip.CLIP` or `open_clip.CustomTextCLIP`.

    Raises:
        ModelError: an image tower of a kind that softclip does not know.
    """

    def __init__(self, net: Any) -> None:
        self.visual: Any = net.visual
        if not isinstance(self.visual, VisionTransformer | ModifiedResNet | TimmModel):
            raise ModelError(f"image tower {type(self.visual).__name__} is not supported")

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), normalised → features (N, embed_dim), not L2-normalised."""
        features = self.visual(pixels)
        return features[0] if isinstance(features, tuple) else features

    def trunk(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W), normalised → pooled features before the projection (N, width)."""
        if isinstance(self.visual, TimmModel):
            return self.visual.trunk(pixels)
        if isinstance(self.visual, ModifiedResNet):
            pool = self.visual.attnpool
            width = pool.c_proj.in_features
            identity = nn.Linear(width, width, device=pixels.device, dtype=pool.c_proj.weight.dtype)
            nn.init.eye_(identity.weight)
            nn.init.zeros_(identity.bias)
            with replaced(pool, "c_proj", identity):
                return self(pixels)
        with replaced(self.visual, "proj", None):
            return self(pixels)

    def head(self, features: Tensor) -> Tensor:
        """Features of the trunk (N, width) → (N, embed_dim)."""
        if isinstance(self.visual, TimmModel):
            return self.visual.head(features)
        projection = self.visual.attnpool.c_proj if isinstance(self.visual, ModifiedResNet) else self.visual.proj
        return apply_projection(projection, features)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that `head` uses."""
        if isinstance(self.visual, TimmModel):
            return list(self.visual.head.parameters())
        if isinstance(self.visual, ModifiedResNet):
            return list(self.visual.attnpool.c_proj.parameters())
        return [] if self.visual.proj is None else [self.visual.proj]

    @property
    def module(self) -> nn.Module:
        """The module that holds the trunk (and the head)."""
        return self.visual


class TextTower:
    """The text tower of an open_clip model: `head(trunk(tokens))` equals `net.encode_text(tokens)`, at any length.

    Args:
        net: `open_clip.CLIP` or `open_clip.CustomTextCLIP`.

    Raises:
        ModelError: a text tower of a kind that softclip does not know.
    """

    def __init__(self, net: Any) -> None:
        self.net: Any = net
        self.text: Any = getattr(net, "text", net)
        self.hugging_face = isinstance(self.text, HFTextEncoder)
        if not self.hugging_face and self.text is not net and not isinstance(self.text, TextTransformer):
            raise ModelError(f"text tower {type(self.text).__name__} is not supported")
        self.context_length = int(net.context_length)
        self.pool_type = "" if self.hugging_face else getattr(self.text, "text_pool_type", None) or self.text.pool_type

    @property
    def trimmable(self) -> bool:
        """Whether padding can be left away without changing the result.

        True for Hugging Face towers (they mask their padding) and for causal towers that are pooled at end-of-text.
        """
        if self.hugging_face:
            return True
        causal = self.text.attn_mask is not None and getattr(self.text, "cls_emb", None) is None
        return causal and not getattr(self.text, "use_pad_mask", False) and self.pool_type in ("argmax", "eos", "first")

    def __call__(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) → features (N, embed_dim), not L2-normalised."""
        if self.hugging_face:
            features = self.text(tokens)
            return features[0] if isinstance(features, tuple) else features
        return self.head(self.trunk(tokens))

    def trunk(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) → pooled features before the projection (N, width)."""
        if self.hugging_face:
            with replaced(self.text, "proj", nn.Identity()):
                return self(tokens)
        if not self.trimmable:
            with replaced(self.text, "text_projection", None):
                features = self.net.encode_text(tokens)
            return features[0] if isinstance(features, tuple) else features
        text, length = self.text, tokens.shape[1]
        dtype = text.transformer.get_cast_dtype()
        x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
        mask, positions = text.attn_mask[:length, :length], self.pooled_position(tokens)
        *blocks, last = text.transformer.resblocks
        if not poolable(last):
            x = text.transformer(x, attn_mask=mask)[torch.arange(x.shape[0], device=x.device), positions]
        else:
            # A GPU would wait for the host to learn how many tokens there are.
            if x.device.type == "cpu" and all(map(poolable, blocks)) and not torch.compiler.is_compiling():
                ragged = Ragged.up_to(positions, length)
                x = ragged.packed(x)
                for block in blocks:
                    x = ragged_block(block, x, ragged, mask)
                x = ragged.padded(x)
            else:
                for block in blocks:
                    x = block(x, attn_mask=mask)
            x = pooled_block(last, x, positions, mask)
        return text.ln_final(x)  # works on each position by itself, so only the pooled one needs it

    def pooled_position(self, tokens: Tensor) -> Tensor:
        """Index (N,) of the position that stands for the whole text."""
        if self.pool_type == "first":
            return torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        if self.pool_type == "eos":
            eos = self.net.text_eos_id if self.text is self.net else self.text.eos_id
            return tokens.eq(eos).int().argmax(dim=-1)
        return tokens.argmax(dim=-1)

    def head(self, features: Tensor) -> Tensor:
        """Features of the trunk (N, width) → (N, embed_dim)."""
        return apply_projection(self.text.proj if self.hugging_face else self.text.text_projection, features)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that `head` uses."""
        projection = self.text.proj if self.hugging_face else self.text.text_projection
        if isinstance(projection, nn.Module):
            return list(projection.parameters())
        return [] if projection is None else [projection]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that hold the trunk."""
        if self.text is not self.net:
            return [self.text]
        return [self.net.token_embedding, self.net.transformer, self.net.ln_final]

    @property
    def trunk_parameters(self) -> list[nn.Parameter]:
        """All parameters of the tower but those of the head."""
        if self.text is self.net:
            return [p for module in self.modules for p in module.parameters()] + [self.net.positional_embedding]
        heads = {id(p) for p in self.head_parameters()}
        return [p for p in self.text.parameters() if id(p) not in heads]
