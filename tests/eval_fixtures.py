"""Small models, images and folders for the evaluation tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from softclip_cli.model import Model


def png(pixels: np.ndarray) -> bytes:
    """An encoded image."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pictures(count: int, size: int = 32, seed: int = 0) -> list[bytes]:
    """Random pictures that differ in colour and pattern."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        base = rng.integers(0, 256, 3)
        coarse = rng.integers(-90, 91, (4, 4, 3)).repeat(size // 4, axis=0).repeat(size // 4, axis=1)
        images.append(png(np.clip(base + coarse, 0, 255).astype(np.uint8)))
    return images


def lively_model(seed: int = 0) -> Model:
    """The tiny model, untrained, but with weights and statistics under which images and texts do not all look alike."""
    from softclip_cli.data.decode import eval_view
    from softclip_cli.registry import open_model

    model = open_model("tiny", seed=seed)
    pixels = torch.from_numpy(np.stack([eval_view(data, model.preprocess) for data in pictures(24, seed=99)]))
    model.net.train()
    with torch.no_grad():
        model.net.token_embedding.weight.mul_(40)
        model.net.visual.attnpool.positional_embedding.mul_(0.1)
        for name, parameter in model.net.visual.named_parameters():
            if name.endswith("bn3.weight"):  # open_clip starts residual branches at zero
                parameter.fill_(1.0)
        for module in model.net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the plain average of all batches: one will do
        model.encode_image(pixels)
    model.net.eval()
    return model


def write_class_folders(root: Path, classes: dict[str, int], split: str = "", seed: int = 0) -> None:
    """`split/class/N.png` with so many images of each class."""
    images = iter(pictures(sum(classes.values()), size=8, seed=seed))
    for name, count in classes.items():
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / f"{number}.png").write_bytes(next(images))
