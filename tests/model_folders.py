"""Small models of each kind of tower, as folders that open_clip itself reads."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file


def small(name: str) -> dict:
    """An open_clip configuration of each kind of tower, small enough for a test."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    vision = {
        "vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
        "timm": {"image_size": 32, "timm_model_name": "resnet10t", "timm_proj": "linear"},
    }[name]
    return {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}


def minute() -> dict:
    """The configuration of a model whose checkpoints are small, too: most of any other is its vocabulary."""
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}


def folder_with(config: dict, path: Path, custom_text: bool = False) -> Path:
    """A model folder as open_clip itself reads it."""
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    net = kind(**config)
    path.mkdir()
    save_file(net.state_dict(), path / "model.safetensors")
    document = {"model_cfg": {**config, **({"custom_text": True} if custom_text else {})}, "preprocess_cfg": {}}
    (path / "open_clip_config.json").write_text(json.dumps(document))
    return path
