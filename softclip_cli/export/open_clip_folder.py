"""A model as a folder that stock open_clip loads, wherever the folder lies."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from softclip_cli.export.parity import Loaded
from softclip_cli.model import CONFIG, Model

HERE = "."  # a Hugging Face text tower's configuration is in the folder itself; open_clip takes the path from where it runs


def write(model: Model, folder: Path) -> dict[str, Any]:
    """Write `model.safetensors`, `open_clip_config.json` and, for a Hugging Face text tower, its configuration and tokenizer.

    Returns:
        what `export.json` says of it: `relative`, whether the text tower's configuration is named by the path `.`.
    """
    model.save(folder)
    path = folder / CONFIG
    document = json.loads(path.read_text(encoding="utf-8"))
    text = document["model_cfg"]["text_cfg"]
    if model.text.hugging_face:
        text["hf_model_name"] = text["hf_tokenizer_name"] = HERE
    elif text.get("hf_tokenizer_name"):
        # open_clip reads such a tokenizer from the folder, whatever name stands here.
        model.tokenizer.save_pretrained(str(folder))
        text["hf_tokenizer_name"] = HERE
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return {"relative": model.text.hugging_face}


def load(folder: Path) -> Loaded:
    """The folder as stock open_clip loads it."""
    import open_clip

    name = f"local-dir:{folder}"
    net, _, transform = open_clip.create_model_and_transforms(name, **overrides(folder))
    tokenizer = open_clip.get_tokenizer(name)
    net.eval()

    def image(pixels: torch.Tensor) -> torch.Tensor:
        return net.encode_image(pixels, normalize=True)

    def text(tokens: torch.Tensor) -> torch.Tensor:
        return net.encode_text(tokens, normalize=True)

    return Loaded(
        image=image,
        text=text,
        logit_scale=float(net.logit_scale.detach().exp()),
        own_image=lambda images: image(torch.stack([transform(Image.open(io.BytesIO(data))) for data in images])),
        own_text=lambda texts: text(tokenizer(list(texts))),
    )


def overrides(folder: Path) -> dict[str, Any]:
    """Keyword arguments for open_clip, so that it finds a Hugging Face text tower in the folder from anywhere."""
    text = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    return {"text_cfg": {**text, "hf_model_name": str(folder)}} if text.get("hf_model_name") == HERE else {}
