"""open_clip's layers with less to compute: classes that take the place of a built network's own.

A module keeps its parameters, their names and its place; only its class changes, for a subclass that gives the same result. So
checkpoints, copies and `torch.compile` see nothing of it. What is saved (measured by benchmarks/step_gains.py):

- A transformer's last block is computed at the one position that is pooled; all others end there. The attention pool of a ResNet likewise.
- Attention projects its input as it lies in memory, where `nn.MultiheadAttention` transposes it first. Without gradient torch multiplies
  such a tensor position by position, with a copy of the weight for each.
- On a CPU in bfloat16, attention with gradient multiplies in the open: the backward pass of torch's fused kernel takes seven times as long.
- On a CPU, a text tower's layers see the real tokens of a batch alone (`Ragged`); only attention sees them in rows of one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

LONGEST_OPEN = 256  # positions: beyond, the products' matrices would take more than a quarter of a block's memory


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of (N, heads, M, d) over (N, heads, L, d), with an additive mask that broadcasts to (N, heads, M, L)."""
    mask = None if mask is None else mask.to(q.dtype)
    fused = q.device.type != "cpu" or q.dtype != torch.bfloat16 or not q.requires_grad or k.shape[-2] > LONGEST_OPEN
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (scores if mask is None else scores + mask).softmax(dim=-1) @ v


class Attention(nn.MultiheadAttention):
    """Multi-head attention over inputs (N, L, E), without weights and padding masks; others go the stock way."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention's."""
        if options.get("need_weights", True) or set(options) - {"need_weights", "attn_mask"} or key is not value:
            return super().forward(query, key, value, **options)
        return self.attend(query, key, options.get("attn_mask")), None

    def attend(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the positions `query` (N, M, E) take from `context` (N, L, E): (N, M, E)."""
        width, weight, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if query is context:
            q, k, v = F.linear(query, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(query, weight[:width], bias[:width])
            k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        return self.out_proj(self.mixed(q, k, v, mask))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of all heads, projected q (N, M, E) over k and v (N, L, E): (N, M, E)."""
        q, k, v = (side.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for side in (q, k, v))
        return attention(q, k, v, mask).transpose(1, 2).flatten(2)


class _Moved(torch.autograd.Function):
    """Rows between a padded batch and its real tokens; each way's gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, padded: int) -> Tensor:
        """`padded` rows with x at `index` and zeros elsewhere; with padded = 0 the rows of x at `index`."""
        ctx.index, ctx.back = index, 0 if padded else len(x)
        return x.new_zeros(padded, x.shape[1]).index_copy_(0, index, x) if padded else x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """The other way."""
        return _Moved.apply(gradient, ctx.index, ctx.back), None, None


@dataclass(frozen=True)
class Ragged:
    """A batch of texts as its real tokens, one behind the other.

    Attributes:
        index: int64 (T,), their places among all N·L.
        rows, length: N and L.
    """

    index: Tensor
    rows: int
    length: int

    @classmethod
    def up_to(cls, positions: Tensor, length: int) -> Ragged:
        """Each text's tokens up to its position (N,), which is the last one that is looked at."""
        real = torch.arange(length, device=positions.device) <= positions[:, None]
        return cls(real.flatten().nonzero().flatten(), len(positions), length)

    def padded(self, x: Tensor) -> Tensor:
        """(T, E) → (N, L, E), zeros elsewhere."""
        return _Moved.apply(x, self.index, self.rows * self.length).unflatten(0, (self.rows, self.length))

    def packed(self, x: Tensor) -> Tensor:
        """(N, L, E) → (T, E)."""
        return _Moved.apply(x.flatten(0, 1), self.index, 0)


def ragged_block(block: ResidualAttentionBlock, x: Tensor, ragged: Ragged, mask: Tensor) -> Tensor:
    """A causal block's output (T, E) for the real tokens (T, E): what stands behind a text is seen by none of its tokens."""
    attn = block.attn
    sides = ragged.padded(F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)).chunk(3, dim=-1)
    x = x + block.ls_1(attn.out_proj(ragged.packed(attn.mixed(*sides, mask))))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def pooled_block(
    block: ResidualAttentionBlock, x: Tensor, positions: Tensor | int, mask: Tensor | None = None
) -> Tensor:
    """A block's output (N, E) at one position of each sample.

    Args:
        block: with an `Attention`.
        x: its input (N, L, E).
        positions: int64 (N,), or one for all samples.
        mask: additive (L, L).
    """
    rows = torch.arange(x.shape[0], device=x.device)  # len(x) would be a constant for torch.export
    normed = block.ln_1(x)
    if mask is not None:
        mask = mask[positions].view(-1, 1, 1, mask.shape[-1])
    x = x[rows, positions]
    x = x + block.ls_1(block.attn.attend(normed[rows, positions][:, None], normed, mask)[:, 0])
    return x + block.ls_2(block.mlp(block.ln_2(x)))


class ClassBlock(ResidualAttentionBlock):
    """The last block of an image tower that is pooled at its class token: gives that position alone, (N, 1, E)."""

    def forward(  # type: ignore[override]
        self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """(N, L, E) → (N, 1, E)."""
        return pooled_block(self, q_x, 0, attn_mask)[:, None]


class AttentionPool(AttentionPool2d):
    """A ResNet's attention pool, asked by the mean alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, output width)."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding.to(x.dtype)
        sides = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (side.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for side in sides)
        return self.c_proj(attention(q, k, v)[:, :, 0].flatten(1))


def quicken(net: nn.Module) -> None:
    """Put the classes of this module in the place of open_clip's, wherever they give the same result."""
    for module in net.modules():
        if type(module) is ResidualAttentionBlock and _plain(module.attn):
            module.attn.__class__ = Attention
        elif type(module) is AttentionPool2d:
            module.__class__ = AttentionPool
    for tower in net.modules():
        if not isinstance(tower, VisionTransformer):
            continue
        last = tower.transformer.resblocks[-1]
        if tower.pool_type == "tok" and tower.attn_pool is None and not tower.output_tokens and poolable(last):
            last.__class__ = ClassBlock


def poolable(block: nn.Module) -> bool:
    """Whether `pooled_block` can compute this block. One that FSDP shards is whole inside its own forward only."""
    whole = not hasattr(block, "unshard")
    return whole and isinstance(block, ResidualAttentionBlock) and isinstance(block.attn, Attention)


def _plain(attn: Any) -> bool:
    """Whether this is multi-head attention as CLIP's towers have it."""
    if type(attn) is not nn.MultiheadAttention or not attn.batch_first or attn.dropout:
        return False
    return attn.in_proj_weight is not None and attn.in_proj_bias is not None and attn.bias_k is None
