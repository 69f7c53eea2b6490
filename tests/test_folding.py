"""A teacher's attention on a CPU: the same embeddings, by one product instead of one for each position."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from model_folders import small
from torch.utils._python_dispatch import TorchDispatchMode

from softclip_cli import model as model_module
from softclip_cli.building import build_model
from softclip_cli.folding import folded


class BatchedProducts(TorchDispatchMode):
    """Counts products that go position by position."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = build_model(small("vit"), {}).eval()
    made.net.requires_grad_(False)  # as a teacher's weights are
    return made


def embed(model: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    pixels = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    tokens = model.tokenize(["a red square", "a blue circle, and more words"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), BatchedProducts() as seen:
        return model.encode_image(pixels), model.encode_text(tokens), seen.count


def test_the_embeddings_are_the_same_and_nothing_goes_position_by_position(model, monkeypatch):
    image, text, products = embed(model)
    assert products == 0
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "folded", lambda device: torch.no_grad())
        plain_image, plain_text, products = embed(model)
    assert products > 0  # what torch does by itself; where it no longer does, folding.py can go
    torch.testing.assert_close(image, plain_image, rtol=0, atol=1e-2)
    torch.testing.assert_close(text, plain_text, rtol=0, atol=1e-2)


def test_training_and_float32_are_left_alone():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(folded(cpu), nullcontext)  # with gradient
        with torch.no_grad():
            assert isinstance(folded(cuda), nullcontext)
            assert not isinstance(folded(cpu), nullcontext)
    with torch.no_grad():
        assert isinstance(folded(cpu), nullcontext)
