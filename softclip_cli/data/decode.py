"""Encoded image bytes to uint8 pixels: the deterministic evaluation view and the augmented training view.

The evaluation view equals open_clip's `image_transform_v2(cfg, is_train=False)` before its conversion to float
(same Pillow calls), so that numbers can be compared; mean and std are applied on the device, by the model.
The training view is made for speed: simplejpeg decodes the usual JPEG, and torch resizes (docs/benchmarks.md has the
measurements); Pillow decodes whatever else there is.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from softclip_cli.errors import DataError

MAX_PIXELS = 178_956_970  # twice Pillow's own warning limit: above it a file is a decompression bomb
# Pillow warns of large images (MAX_PIXELS decides) and of odd metadata (which says nothing about the pixels).
warnings.filterwarnings("ignore", module=r"PIL\.")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO")
TRANSPOSE = {  # by EXIF orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
JPEG_FORMATS = ("JPEG", "MPO")  # an MPO, as telephones write it, is a JPEG with more pictures behind the first
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


@dataclass(frozen=True)
class ResizeCrop:
    """The training view of ema-kd and OTTER: the shorter side to `resize`, then a random square crop; no change of scale.

    The geometry is that of torchvision's `Resize(resize)` and `RandomCrop(size)`.

    Attributes:
        resize: the shorter side in pixels, at least the size of the crop.
        flip: probability of a horizontal flip.
    """

    resize: int
    flip: float = 0.0


class ImageError(DataError):
    """An image that cannot be used; `kind` names the reason as `clean.REASONS` does, `why` has the details."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__("image cannot be decoded" if kind != "decompression-bomb" else "image refused", why)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.why)


@functools.cache
def image_formats() -> tuple[str, ...]:
    """The formats that are read: what image sets hold, as far as this Pillow was built with them.

    Others are refused, for Pillow also reads documents (EPS starts Ghostscript) and formats that nobody trains on.
    """
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_header(data: bytes) -> Image.Image:
    """Open an image without decoding it: its `format`, `size` (before EXIF rotation) and `mode` can be read.

    Raises:
        ImageError: (a DataError) empty, not an image, or a decompression bomb.
    """
    if not data:
        raise ImageError("empty-image", "it has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=image_formats())
    except Image.DecompressionBombError as error:
        raise ImageError("decompression-bomb", str(error)) from error
    except UnidentifiedImageError:
        raise ImageError("not-an-image", f"no image format is recognised; it starts with {data[:12]!r}") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged files
        raise ImageError("damaged-image", f"{type(error).__name__}: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("decompression-bomb", f"{width}×{height} pixels")
    return image


def open_upright(data: bytes, *, min_side: int | None = None) -> Image.Image:
    """Decode to an upright image in the file's own mode (RGB, L, P, RGBA, CMYK, ...): EXIF orientation is applied.

    Args:
        data: the encoded file.
        min_side: as in `open_image`.

    Raises:
        ImageError: (a DataError) not an image, truncated, damaged, or a decompression bomb; the cause is in `why`.
    """
    return _upright(_load(open_header(data), min_side))


def _load(image: Image.Image, min_side: int | None) -> Image.Image:
    """Let Pillow decode the pixels."""
    width, height = image.size
    scale = _scale(image.size, min_side) if image.format in JPEG_FORMATS else 1
    try:
        if scale > 1:
            image.draft("RGB", (width // scale, height // scale))
        image.load()
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        kind = "truncated-image" if "truncated" in str(error).lower() else "damaged-image"
        raise ImageError(kind, f"{type(error).__name__}: {error}") from error
    return image


def _scale(size: tuple[int, int], min_side: int | None) -> int:
    """8, 4, 2 or 1: how much smaller a JPEG is decoded. (libjpeg's other steps lack SIMD code and take longer than 1.)"""
    return next((scale for scale in (8, 4, 2) if min(size) >= scale * min_side), 1) if min_side else 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1


def open_image(data: bytes, *, min_side: int | None = None) -> Image.Image:
    """Decode to an upright RGB image.

    Args:
        data: the encoded file.
        min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as its shorter side stays at least this (speed).

    Raises:
        ImageError: (a DataError) not an image, truncated, damaged, or a decompression bomb; the cause is in `why`.
    """
    return _to_rgb(open_upright(data, min_side=min_side))


def open_pixels(data: bytes, *, min_side: int | None = None, header: Image.Image | None = None) -> np.ndarray:
    """The pixels of `open_image`, equal bit for bit: uint8 (height, width, 3), writable; faster for an undamaged RGB or grey JPEG.

    Args:
        data: the encoded file.
        min_side: as in `open_image`.
        header: what `open_header` gave for these bytes, where that was needed before.

    Raises:
        ImageError: (a DataError) as `open_image`.
    """
    image = header if header is not None else open_header(data)
    plain = image.format in JPEG_FORMATS and image.mode in ("RGB", "L")
    pixels = _jpeg_pixels(data, image.size, min_side) if plain else None
    if pixels is None:
        return np.array(_to_rgb(_upright(_load(image, min_side))))
    orientation = _orientation(image)
    if orientation in TRANSPOSE:
        return np.array(Image.fromarray(pixels).transpose(TRANSPOSE[orientation]))
    return pixels


def _jpeg_pixels(data: bytes, size: tuple[int, int], min_side: int | None) -> np.ndarray | None:
    """RGB by simplejpeg, or None for what is better left to Pillow, which may accept it or knows what is wrong with it."""
    width, height = size
    scale = _scale(size, min_side)
    smallest = {"min_width": -(-width // scale), "min_height": -(-height // scale)} if scale > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", **smallest)
    except Exception:  # also on what libjpeg only warns of
        return None


def _bare_jpeg_pixels(data: bytes, min_side: int | None) -> np.ndarray | None:
    """RGB of a JPEG that has no metadata and so no orientation, without Pillow, whose reading of the header takes a tenth of the time.

    None for anything else. Unlike `open_pixels` it may accept what Pillow would not, so it is no check of a new image.
    """
    if not data.startswith(b"\xff\xd8\xff") or b"\xff\xe1" in data:  # the marker of EXIF and XMP
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except Exception:
        return None
    if colours not in ("YCbCr", "RGB", "Gray") or width * height > MAX_PIXELS:
        return None
    return _jpeg_pixels(data, (width, height), min_side)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except Exception as error:  # a mode without a way to RGB
        raise ImageError("damaged-image", f"mode {image.mode}: {error}") from error


def eval_view(data: bytes, spec: Preprocess) -> np.ndarray:
    """The deterministic view: uint8, (size, size, 3).

    Equal to open_clip's evaluation transform (before its conversion to float), with one exception: EXIF orientation is
    applied here, and open_clip ignores it. As there, the image is resized in the file's own mode and becomes RGB last,
    so a palette image is resized without interpolation.

    Raises:
        ImageError: (a DataError) as `open_image`.
    """
    image = open_upright(data)
    try:
        return np.asarray(_to_rgb(_fit(image, spec)))
    except ValueError:  # Pillow cannot resize this mode (such as 16-bit grey with interpolation); neither can open_clip
        return np.asarray(_fit(_to_rgb(image), spec))


def _fit(image: Image.Image, spec: Preprocess) -> Image.Image:
    """Resize and crop or pad to (size, size), with torchvision's rounding."""
    size, resample = spec.size, RESAMPLING[spec.interpolation]
    width, height = image.size
    if spec.resize_mode == "squash":
        return image.resize((size, size), resample)
    if spec.resize_mode == "longest":
        ratio = max(height / size, width / size)
        image = image.resize((max(1, round(width / ratio)), max(1, round(height / ratio))), resample)
        bands = len(image.getbands())
        canvas = Image.new(image.mode, (size, size), spec.fill_color if bands == 1 else (spec.fill_color,) * bands)
        if image.mode == "P":
            canvas.putpalette(image.getpalette() or [])
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        return canvas
    # As torchvision's Resize(size): the longer side is truncated, not rounded.
    if width <= height:
        image = image.resize((size, int(size * height / width)), resample)
    else:
        image = image.resize((int(size * width / height), size), resample)
    # As torchvision's CenterCrop: Python's rounding of the half-pixel.
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def train_view(data: bytes, spec: Preprocess, augment: Augment | ResizeCrop, rng: np.random.Generator) -> np.ndarray:
    """The augmented view: uint8, (size, size, 3), a function of the bytes and the generator's state only."""
    return random_crop(open_for_crops(data, spec, augment), spec, augment, rng)


def open_for_crops(data: bytes, spec: Preprocess, augment: Augment | ResizeCrop) -> np.ndarray:
    """Decode for `random_crop`, a JPEG no larger than its crops need; for `ResizeCrop` it is resized already: uint8 (height, width, 3)."""
    if isinstance(augment, ResizeCrop):
        return _resized(data, augment.resize, spec.interpolation)
    # The crop has at least scale[0] of the area, so its shorter side is at least sqrt(scale[0] / widest ratio) of the
    # image's: decoded no smaller than this, no crop is enlarged for which the full image would have had the pixels.
    widest = max(augment.ratio[1], 1 / augment.ratio[0])
    share = math.sqrt(augment.scale[0] / widest)
    min_side = math.ceil(spec.size / share) if share > 0 else None
    pixels = _bare_jpeg_pixels(data, min_side)
    return pixels if pixels is not None else open_pixels(data, min_side=min_side)


def _resized(data: bytes, shorter: int, interpolation: str) -> np.ndarray:
    """Decode and resize the shorter side; the longer one is truncated, not rounded, as torchvision's Resize does."""
    from softclip_cli.data.resize import resize  # imports torch, which not every user of this module needs

    # The file's own size, since a JPEG decoded at a fraction of it has sides that were rounded up.
    low, high = sorted(open_header(data).size)
    pixels = open_pixels(data, min_side=shorter)
    longer = int(shorter * high / low)
    upright = pixels.shape[0] >= pixels.shape[1]
    return resize(pixels, longer if upright else shorter, shorter if upright else longer, interpolation)


def random_crop(
    pixels: np.ndarray, spec: Preprocess, augment: Augment | ResizeCrop, rng: np.random.Generator
) -> np.ndarray:
    """The random part of the training view, from what `open_for_crops` gave: uint8, (size, size, 3)."""
    from softclip_cli.data.resize import resize

    size, (height, width) = spec.size, pixels.shape[:2]
    if isinstance(augment, ResizeCrop):
        left, top = int(rng.integers(0, width - size + 1)), int(rng.integers(0, height - size + 1))
        view = pixels[top : top + size, left : left + size]
    else:
        left, top, right, bottom = random_box(width, height, augment, rng)
        view = resize(pixels[top:bottom, left:right], size, size, spec.interpolation)
    return view[:, ::-1] if augment.flip and rng.random() < augment.flip else view


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
