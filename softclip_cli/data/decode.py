"""Encoded image bytes to uint8 pixels: the deterministic evaluation view and the augmented training view.

The evaluation view equals open_clip's `image_transform_v2(cfg, is_train=False)` before its conversion to float
(same Pillow calls), so that numbers can be compared; mean and std are applied on the device, by the model.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from softclip_cli.errors import DataError

MAX_PIXELS = 178_956_970  # twice Pillow's own warning limit: above it a file is a decompression bomb
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its pixels; the fields of open_clip's `preprocess_cfg`.

    Attributes:
        size: side of the square input in pixels.
        mean, std: per channel, for pixels scaled to [0, 1].
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (resize the shorter side, centre crop), "squash" or "longest" (pad).
        fill_color: padding of "longest".
    """

    size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @classmethod
    def from_open_clip(cls, cfg: dict[str, Any]) -> Preprocess:
        """Read open_clip's `preprocess_cfg` dictionary."""
        size = cfg.get("size", 224)
        interpolation = cfg.get("interpolation", "bicubic")
        return cls(
            size=size if isinstance(size, int) else size[0],
            mean=tuple(cfg.get("mean") or cls.mean),  # type: ignore[arg-type]
            std=tuple(cfg.get("std") or cls.std),  # type: ignore[arg-type]
            interpolation=interpolation if interpolation in RESAMPLING else "bicubic",
            resize_mode=cfg.get("resize_mode", "shortest"),
            fill_color=int(cfg.get("fill_color", 0)),
        )

    def to_open_clip(self) -> dict[str, Any]:
        """The dictionary that open_clip writes into `open_clip_config.json`."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "mode": "RGB"}


@dataclass(frozen=True)
class Augment:
    """The training view: RandomResizedCrop as open_clip's, horizontal flip as an option.

    Attributes:
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio, drawn log-uniformly.
        flip: probability of a horizontal flip (0: captions may say left and right).
    """

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0


def open_image(data: bytes, *, min_side: int | None = None) -> Image.Image:
    """Decode to an upright RGB image.

    Args:
        data: the encoded file.
        min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as its shorter side stays at least this (speed).

    Raises:
        DataError: not an image, truncated, or a decompression bomb; the cause is in `why`.
    """
    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError("image refused", f"{width}×{height} pixels: a decompression bomb")
        if min_side and image.format == "JPEG" and min(width, height) >= 2 * min_side:
            scale = min(width, height) // min_side
            image.draft("RGB", (width // scale, height // scale))
        image = ImageOps.exif_transpose(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError("image cannot be decoded", f"{type(error).__name__}: {error}") from error


def eval_view(data: bytes, spec: Preprocess) -> np.ndarray:
    """The deterministic view: uint8, (size, size, 3)."""
    image = open_image(data)
    size, resample = spec.size, RESAMPLING[spec.interpolation]
    width, height = image.size
    if spec.resize_mode == "squash":
        return np.asarray(image.resize((size, size), resample))
    if spec.resize_mode == "longest":
        factor = size / max(width, height)
        image = image.resize((max(1, round(width * factor)), max(1, round(height * factor))), resample)
        canvas = Image.new("RGB", (size, size), (spec.fill_color,) * 3)
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return np.asarray(canvas)
    # As torchvision's Resize(size): the longer side is truncated, not rounded.
    if width <= height:
        image = image.resize((size, int(size * height / width)), resample)
    else:
        image = image.resize((int(size * width / height), size), resample)
    # As torchvision's CenterCrop: Python's rounding of the half-pixel.
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def train_view(data: bytes, spec: Preprocess, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """The augmented view: uint8, (size, size, 3), a function of the bytes and the generator's state only."""
    # The crop keeps at least scale[0] of the area, so its side is at least sqrt(scale[0]) of the image's.
    image = open_image(data, min_side=math.ceil(spec.size / math.sqrt(augment.scale[0])))
    box = random_box(image.width, image.height, augment, rng)
    view = image.resize((spec.size, spec.size), RESAMPLING[spec.interpolation], box=box, reducing_gap=2.0)
    if augment.flip and rng.random() < augment.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(view)


def random_box(width: int, height: int, augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box (left, top, right, bottom), drawn as torchvision does: ten tries, else a centre crop."""
    area = width * height
    log_low, log_high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    for _ in range(10):
        target = area * rng.uniform(*augment.scale)
        aspect = math.exp(rng.uniform(log_low, log_high))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, augment.ratio[0]), augment.ratio[1])
    w, h = (width, round(width / aspect)) if width / height < aspect else (round(height * aspect), height)
    w, h = min(w, width), min(h, height)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
