"""Resizing against a float64 reference and Pillow, and the images that preparing makes smaller."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from softclip_cli.data.decode import RESAMPLING, Augment, ImageError, Preprocess, open_image, random_box, train_view
from softclip_cli.data.resize import resize
from softclip_cli.data.shrink import shrink


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, edges and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / rng.uniform(5, 60) + y / rng.uniform(5, 60) + rng.uniform(0, 6)) for _ in range(6)]
    base = np.stack([100 + 50 * waves[c] + 40 * np.sign(waves[c + 3]) for c in range(3)], axis=-1)
    return np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys's kernel with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def weights(size: int, out: int, kernel: str) -> np.ndarray:
    """float64 (out, size): the filter, as wide as the reduction, at the centre of each pixel of the result."""
    scale = size / out
    wide = max(1.0, scale)
    function = {"bicubic": cubic, "bilinear": triangle}[kernel]
    centres = (np.arange(out) + 0.5) * scale
    found = function((np.arange(size)[None] + 0.5 - centres[:, None]) / wide)
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (31, 200), (211, 17), (300, 400), (144, 192), (1, 1)])
def test_resize_equals_the_filter_in_double_precision_and_pillow(kernel: str, height: int, width: int) -> None:
    pixels = photo(192, 144)
    down, across = weights(144, height, kernel), weights(192, width, kernel)
    # Both round between the two passes.
    halfway = np.clip(np.round(np.einsum("oj,ijc->ioc", across, pixels.astype(np.float64))), 0, 255)
    exact = np.clip(np.einsum("oi,ijc->ojc", down, halfway), 0, 255)
    found = resize(pixels, height, width, kernel)
    assert found.shape == (height, width, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.abs(found - exact).max() < 2.5
    assert np.abs(found - exact).mean() < 0.35  # rounding alone is about 0.25
    stock = np.asarray(Image.fromarray(pixels).resize((width, height), RESAMPLING[kernel]))
    assert np.abs(found.astype(int) - stock).max() <= 2
    assert np.abs(found.astype(int) - stock).mean() < 0.25  # Pillow may take the other direction first


def test_a_part_of_an_image_is_resized_without_its_surroundings() -> None:
    pixels = photo(200, 150)
    np.testing.assert_array_equal(resize(pixels[10:110, 30:160], 64, 64), resize(pixels[10:110, 30:160].copy(), 64, 64))


def test_read_only_pixels_are_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    pixels = photo(40, 30)
    pixels.setflags(write=False)
    assert resize(pixels, 20, 20).shape == (20, 20, 3)
    assert not recwarn.list


def test_nothing_aliases() -> None:
    # Stripes of one pixel are finer than the result can show: what remains must be their mean, not a coarser pattern.
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    found = resize(stripes, 100, 100)[5:-5, 5:-5]
    assert np.abs(found.astype(int) - 127).max() < 20


def test_pixels_are_the_same_without_vector_instructions() -> None:
    code = (
        "import hashlib, numpy as np; from softclip_cli.data.resize import resize;"
        "p = np.random.default_rng(0).integers(0, 256, (190, 251, 3), dtype=np.uint8);"
        "a = [resize(p[3:, 5:], h, w, k) for h, w in ((96, 96), (300, 77)) for k in ('bicubic', 'bilinear')];"
        "print(hashlib.sha256(b''.join(x.tobytes() for x in a)).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **({"ATEN_CPU_CAPABILITY": kind} if kind else {})},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for kind in ("", "default")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("size", [(512, 384), (1200, 900), (100, 180)])
def test_train_view_is_pillows_crop_of_the_whole_image_within_two_grey_levels(size: tuple[int, int]) -> None:
    data = encode(Image.fromarray(photo(*size)), "JPEG", quality=92)
    spec, augment = Preprocess(size=96), Augment()
    for seed in range(3):
        view = train_view(data, spec, augment, np.random.default_rng(seed))
        reduced = open_image(data, min_side=int(np.ceil(96 / np.sqrt(0.9 / (4 / 3)))))
        factor = size[0] / reduced.width
        box = tuple(side * factor for side in random_box(*reduced.size, augment, np.random.default_rng(seed)))
        full = Image.open(io.BytesIO(data)).resize((96, 96), Image.Resampling.BICUBIC, box=box)
        difference = np.abs(view.astype(int) - np.asarray(full))
        assert difference.mean() < 2


def test_shrinking_is_a_resize_of_the_decoded_image() -> None:
    pixels = photo(420, 300)
    kept, made = shrink(encode(Image.fromarray(pixels), "PNG"), 200, 95)
    assert made is not None
    small = Image.open(io.BytesIO(made))
    assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (280, 200))
    stock = Image.fromarray(pixels).resize((280, 200), Image.Resampling.BICUBIC)
    assert np.abs(kept.astype(int) - np.asarray(stock)).max() <= 2
    # The only further difference is that of JPEG itself, which Pillow's encoder makes as well.
    stock_jpeg = Image.open(io.BytesIO(encode(stock, "JPEG", quality=95)))
    assert np.abs(np.asarray(small).astype(int) - np.asarray(stock_jpeg)).mean() < 0.5


def test_shrinking_turns_upright_and_leaves_small_and_very_long_images() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph = encode(Image.fromarray(photo(300, 200)), "JPEG")
    kept, turned = shrink(encode(Image.fromarray(photo(300, 200)), "JPEG", exif=exif), 100, 90)
    assert turned is not None and Image.open(io.BytesIO(turned)).size == (100, 150)
    assert kept.shape == (150, 100, 3)
    for data, short_side in ((photograph, 200), (photograph, None), (encode(Image.new("L", (70_000, 20)), "PNG"), 19)):
        kept, made = shrink(data, short_side, 90)
        assert made is None
        np.testing.assert_array_equal(kept, np.asarray(open_image(data)))


def test_what_is_too_small_to_shrink_is_decoded_all_the_same() -> None:
    data = encode(Image.fromarray(photo(100, 80)), "JPEG")
    for short_side in (None, 500):
        with pytest.raises(ImageError) as caught:
            shrink(data[: len(data) // 2], short_side, 90)
        assert caught.value.kind == "truncated-image"
