"""open_clip's layers with less to compute give what open_clip's own give: embeddings and gradients, in float64."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from model_folders import small
from torch.utils._python_dispatch import TorchDispatchMode

from softclip_cli import blocks
from softclip_cli.building import build_model

TEXTS = ["a red square", "a blue circle, and more words", "x", "two green dogs under a tree in the evening"]


def nets(config: dict[str, Any], custom_text: bool = False) -> tuple[Any, Any]:
    """softclip's model, and open_clip's own network of the same weights."""
    torch.manual_seed(0)
    model = build_model(config | ({"custom_text": True} if custom_text else {}), {})
    stock = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**copy.deepcopy(config))
    stock.load_state_dict(model.net.state_dict())  # so names and shapes are the same too
    assert list(stock.state_dict()) == list(model.net.state_dict())
    return model, stock


def of_avg_pool() -> dict[str, Any]:
    config = small("vit")
    config["vision_cfg"]["pool_type"] = "avg"
    return config


def of_layer_scale() -> dict[str, Any]:
    config = small("vit")
    config["vision_cfg"]["ls_init_value"] = config["text_cfg"]["ls_init_value"] = 0.3
    return config


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("config", [small("vit"), small("resnet"), of_avg_pool(), of_layer_scale()])
def test_embeddings_and_gradients_are_open_clips(config: dict[str, Any], custom_text: bool) -> None:
    model, stock = nets(config, custom_text)
    for net in (model.net, stock):
        net.double().train()
    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    tokens = model.tokenize(TEXTS)
    padded = torch.nn.functional.pad(tokens, (0, 77 - tokens.shape[1]))
    ours = model.image(pixels.contiguous(memory_format=torch.channels_last)), model.text(tokens)
    theirs = stock.encode_image(pixels), stock.encode_text(padded)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    weights = torch.randn(4, 4, dtype=torch.float64)
    for image, text in (ours, theirs):
        (weights * (image @ text.T)).sum().backward()
    for (name, got), wanted in zip(model.net.named_parameters(), stock.parameters(), strict=True):
        if name != "logit_scale":
            # What softmax cancels (the bias of keys) has no gradient but rounding: one part of an output's is the scale.
            torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-7, atol=1e-10, msg=name)


def test_only_what_is_pooled_at_the_class_token_ends_there() -> None:
    kinds = {type(module) for module in build_model(small("vit"), {}).net.modules()}
    assert {blocks.Attention, blocks.ClassBlock} <= kinds
    assert blocks.ClassBlock not in {type(module) for module in build_model(of_avg_pool(), {}).net.modules()}
    assert blocks.AttentionPool in {type(module) for module in build_model(small("resnet"), {}).net.modules()}


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_is_as_exact_as_torchs(masked: bool) -> None:
    q, k, v = (torch.randn(3, 2, 19, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = torch.full((19, 19), -torch.inf).triu_(1) if masked else None
    toward = torch.randn(3, 2, 19, 16, dtype=torch.bfloat16)

    def errors(attend: Any) -> list[float]:
        out = attend(q, k, v, mask)
        gradients = torch.autograd.grad(out, (q, k, v), toward)
        return [
            float((got.detach().double() - wanted.detach()).norm() / wanted.detach().norm())
            for got, wanted in zip((out, *gradients), exact, strict=True)
        ]

    wide = [side.detach().double().requires_grad_() for side in (q, k, v)]
    weights = (wide[0] @ wide[1].transpose(-2, -1) / 4 + (0 if mask is None else mask)).softmax(dim=-1)
    out = weights @ wide[2]
    exact = (out, *torch.autograd.grad(out, wide, toward.double()))
    stock = errors(lambda q, k, v, mask: torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=None if mask is None else mask.to(q.dtype)))  # fmt: skip
    assert all(mine <= max(1.5 * theirs, 0.01) for mine, theirs in zip(errors(blocks.attention), stock, strict=True))


class Products(TorchDispatchMode):
    """Counts products that go position by position, and passes of torch's fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.batched = self.fused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.batched += func is torch.ops.aten.bmm.default
        self.fused += "flash" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_teachers_products_do_not_go_position_by_position() -> None:
    model, stock = nets(small("vit"))
    pixels, tokens = torch.randn(4, 3, 32, 32), model.tokenize(TEXTS)
    padded = torch.nn.functional.pad(tokens, (0, 77 - tokens.shape[1]))
    for net in (model.net, stock):
        net.eval().requires_grad_(False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with Products() as seen:
            got = model.image(pixels), model.text(tokens)
        assert seen.batched == 0
        with Products() as seen:
            wanted = stock.encode_image(pixels), stock.encode_text(padded)
        assert seen.batched > 0  # what torch does by itself
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2)


@pytest.mark.parametrize(("length", "fused"), [(8, 0), (blocks.LONGEST_OPEN + 1, 1)])
def test_long_inputs_keep_the_fused_kernel_that_needs_no_matrix(length: int, fused: int) -> None:
    q = torch.randn(1, 1, length, 8, dtype=torch.bfloat16, requires_grad=True)
    with Products() as seen:
        blocks.attention(q, q, q)
    assert seen.fused == fused
