"""Pictures for the tests of duplicates: random scenes with enough in them to be told apart, and changed copies."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A smooth random pattern with some rectangles: as different from another seed's as two photos are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    for _ in range(6):
        left, top = int(rng.integers(size[0] - 20)), int(rng.integers(size[1] - 20))
        box = (left, top, left + int(rng.integers(8, 40)), top + int(rng.integers(8, 40)))
        image.paste(tuple(int(value) for value in rng.integers(0, 256, 3)), box)
    return Image.blend(image, image.convert("L").convert("RGB"), 0.5)  # random colours are gaudier than photos


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The image as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def changed(image: Image.Image, how: str) -> Image.Image:
    """A near-duplicate: "quality", "small", "cropped" or "bright"."""
    width, height = image.size
    if how == "quality":
        return Image.open(io.BytesIO(encoded(image, quality=40)))
    if how == "small":
        return image.resize((width * 6 // 10, height * 6 // 10), Image.Resampling.BICUBIC)
    if how == "cropped":
        return image.crop((round(width * 0.04), 0, round(width * 0.99), round(height * 0.95)))
    return ImageEnhance.Brightness(image).enhance(1.2)


CHANGES = ("quality", "small", "cropped", "bright")
