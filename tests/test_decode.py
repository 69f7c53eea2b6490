"""Decoding: the evaluation view against open_clip's own transform, the training view, and images to be refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from softclip_cli.data.decode import (
    Augment,
    ImageError,
    Preprocess,
    ResizeCrop,
    eval_view,
    open_for_crops,
    open_header,
    open_image,
    open_pixels,
    random_box,
    train_view,
)
from softclip_cli.errors import DataError

SIZES = [(301, 200), (200, 301), (97, 98), (31, 500), (224, 224), (640, 225), (1, 7), (224, 300)]


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth colours with noise, in some mode."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    base = np.stack([x / width * 255, y / height * 255, 127 + 100 * np.sin(x / 9 + y / 5)], axis=-1)
    pixels = np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode in {"RGBA", "LA"}:
        image.putalpha(Image.fromarray((x / width * 255).astype(np.uint8)))
    if mode == "P":
        return image.quantize(40)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return image.convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def open_clip_view(data: bytes, spec: Preprocess) -> np.ndarray:
    """What open_clip makes of the bytes, as uint8: its own transform with mean 0 and standard deviation 1."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = PreprocessCfg(
        size=spec.size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=spec.interpolation,
        resize_mode=spec.resize_mode,
        fill_color=spec.fill_color,
    )
    floats = image_transform_v2(cfg, is_train=False)(Image.open(io.BytesIO(data)))
    scaled = floats.numpy().transpose(1, 2, 0) * 255
    assert np.abs(scaled - scaled.round()).max() < 1e-3
    return scaled.round().astype(np.uint8)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_eval_view_equals_open_clips_transform(resize_mode: str, interpolation: str, size: tuple[int, int]) -> None:
    if resize_mode == "longest" and min(size) * 160 < 0.5 * max(size):
        pytest.skip("open_clip fails on a side that rounds to nothing")
    spec = Preprocess(size=160, interpolation=interpolation, resize_mode=resize_mode, fill_color=37)
    for data in (encode(picture("RGB", size), "JPEG", quality=90), encode(picture("RGB", size), "PNG")):
        np.testing.assert_array_equal(eval_view(data, spec), open_clip_view(data, spec))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"),
        ("LA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "TIFF"), ("RGB", "BMP"),
    ],
)  # fmt: skip
def test_eval_view_equals_open_clips_in_every_mode(mode: str, kind: str, resize_mode: str) -> None:
    data = encode(picture(mode, (123, 77)), kind)
    spec = Preprocess(size=64, resize_mode=resize_mode, fill_color=3)
    np.testing.assert_array_equal(eval_view(data, spec), open_clip_view(data, spec))


def test_palette_with_transparency_equals_open_clips() -> None:
    data = encode(picture("P", (90, 61)), "PNG", transparency=2)
    for resize_mode in ("shortest", "longest", "squash"):
        spec = Preprocess(size=48, resize_mode=resize_mode)
        np.testing.assert_array_equal(eval_view(data, spec), open_clip_view(data, spec))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 96),
    mode=st.sampled_from(["shortest", "squash", "longest"]),
)  # fmt: skip
def test_eval_view_has_the_size_asked_for_and_equals_open_clips(width: int, height: int, size: int, mode: str) -> None:
    data = encode(picture("RGB", (width, height)), "PNG")
    spec = Preprocess(size=size, resize_mode=mode)
    view = eval_view(data, spec)
    assert view.shape == (size, size, 3)
    assert view.dtype == np.uint8
    ratio = max(width / size, height / size)
    if mode != "longest" or min(round(width / ratio), round(height / ratio)) > 0:
        np.testing.assert_array_equal(view, open_clip_view(data, spec))


@pytest.mark.parametrize("mode", ["I;16", "LA", "1", "P", "CMYK"])
def test_unusual_modes_decode(mode: str) -> None:
    data = encode(picture(mode, (50, 40)), "TIFF" if mode == "CMYK" else "PNG")
    assert open_image(data).mode == "RGB"
    for resize_mode in ("shortest", "longest", "squash"):
        assert eval_view(data, Preprocess(size=32, resize_mode=resize_mode)).shape == (32, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    # A picture whose four corners differ, turned as a camera does, must come out upright.
    upright = Image.new("RGB", (64, 48), (128, 128, 128))
    for colour, box in {
        (255, 0, 0): (0, 0, 16, 16),
        (0, 255, 0): (48, 0, 64, 16),
        (0, 0, 255): (0, 32, 16, 48),
    }.items():
        upright.paste(colour, box)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    decoded = open_image(encode(stored, kind, exif=exif, **options))
    assert decoded.size == (64, 48)
    difference = np.asarray(decoded).astype(int) - np.asarray(upright).astype(int)
    assert np.abs(difference).mean() < 3


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encode(picture("RGB", (40, 30)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert open_image(data).size == (40, 30)


def test_scaled_decoding_keeps_the_shorter_side() -> None:
    data = encode(picture("RGB", (1000, 800)), "JPEG")
    assert open_image(data, min_side=224).size == (500, 400)
    assert open_image(data, min_side=100).size == (125, 100)
    assert open_image(data, min_side=500).size == (1000, 800)
    assert open_image(encode(picture("RGB", (1000, 800)), "PNG"), min_side=100).size == (1000, 800)


JPEG_KINDS = {
    "usual": {},
    "full colour": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "progressive": {"progressive": True},
    "stored as RGB": {"keep_rgb": True},
    "restart markers": {"restart_marker_rows": 1},
    "coarse": {"quality": 5},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("min_side", [None, 130, 100, 60, 33])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_equal_pillows_bit_for_bit(kind: str, min_side: int | None, mode: str) -> None:
    data = encode(picture(mode, (417, 263)), "JPEG", **({} if mode != "RGB" and "RGB" in kind else JPEG_KINDS[kind]))
    reference = np.asarray(open_image(data, min_side=min_side))
    found = open_pixels(data, min_side=min_side)
    assert found.flags.writeable and found.flags.c_contiguous
    np.testing.assert_array_equal(found, reference)


@pytest.mark.parametrize(
    ("mode", "kind"), [("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("RGB", "WEBP"), ("P", "GIF")]
)
def test_pixels_of_other_formats_are_pillows(mode: str, kind: str) -> None:
    data = encode(picture(mode, (57, 43)), kind)
    np.testing.assert_array_equal(open_pixels(data), np.asarray(open_image(data)))


@pytest.mark.parametrize("orientation", range(9))
def test_pixels_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(picture("RGB", (300, 200)), "JPEG", exif=exif)
    for min_side in (None, 90):
        np.testing.assert_array_equal(
            open_pixels(data, min_side=min_side), np.asarray(open_image(data, min_side=min_side))
        )


def test_a_photo_with_further_pictures_behind_it_is_its_first() -> None:
    first = picture("RGB", (320, 240), seed=1)
    data = encode(first, "MPO", save_all=True, append_images=[picture("RGB", (320, 240), seed=2)])
    assert open_header(data).format == "MPO"
    np.testing.assert_array_equal(open_pixels(data), np.asarray(Image.open(io.BytesIO(encode(first, "JPEG")))))
    assert open_pixels(data, min_side=100).shape == (120, 160, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
@pytest.mark.parametrize("size", [(417, 263), (60, 90)])
def test_training_decodes_as_everything_else_does(mode: str, orientation: int | None, size: tuple[int, int]) -> None:
    options = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    data = encode(picture(mode, size), "JPEG", **options)
    spec, augment = Preprocess(size=64), Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_array_equal(open_for_crops(data, spec, augment), np.asarray(open_image(data, min_side=64)))


def test_training_refuses_bombs_and_damage_by_the_same_names() -> None:
    spec, augment = Preprocess(size=64), Augment()
    huge = JPEG.replace(struct.pack(">HH", 150, 200), struct.pack(">HH", 50_000, 50_000), 1)
    assert open_header(JPEG).size == (200, 150) and huge != JPEG
    for data, kind in ((huge, "decompression-bomb"), (JPEG[:900], "truncated-image"), (b"", "empty-image")):
        with pytest.raises(ImageError) as caught:
            train_view(data, spec, augment, np.random.default_rng(0))
        assert caught.value.kind == kind


def test_only_plain_jpegs_are_decoded_by_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    calls = []
    fast = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kwargs: calls.append(1) or fast(*args, **kwargs))
    for mode, kind, wanted in (("RGB", "JPEG", 1), ("L", "JPEG", 1), ("CMYK", "JPEG", 0), ("RGB", "PNG", 0)):
        calls.clear()
        open_pixels(encode(picture(mode, (40, 30)), kind))
        assert len(calls) == wanted, (mode, kind)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels, without having them."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


JPEG = encode(picture("RGB", (200, 150)), "JPEG")
PNG = encode(picture("RGB", (200, 150)), "PNG")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty-image"),
        (b"this is text, whatever its name says", "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not-an-image"),
        (JPEG[: len(JPEG) // 2], "truncated-image"),
        (PNG[: len(PNG) // 2], "truncated-image"),
        (huge_png(50_000, 50_000), "decompression-bomb"),
        (huge_png(100, 100), "truncated-image"),
    ],
)
def test_unusable_images_are_refused_by_kind(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_pixels(data)
    assert caught.value.kind == kind
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert caught.value.kind == kind
    assert isinstance(caught.value, DataError)
    assert caught.value.exit_code == 3
    assert caught.value.why


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_damage_gives_an_image_or_a_data_error(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([JPEG, PNG])))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        reference = open_image(bytes(whole))
        assert reference.mode == "RGB"
    except ImageError as error:
        assert error.kind
        with pytest.raises(ImageError) as caught:
            open_pixels(bytes(whole))
        assert (caught.value.kind, caught.value.why) == (error.kind, error.why)
    else:
        np.testing.assert_array_equal(open_pixels(bytes(whole)), np.asarray(reference))


def test_image_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("not-an-image", "because")))
    assert (error.kind, error.why, error.what) == ("not-an-image", "because", "image cannot be decoded")


def test_header_tells_the_size_without_decoding() -> None:
    assert open_header(JPEG[:1000]).size == (200, 150)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    low=st.floats(0.01, 1),
    ratio=st.floats(0.2, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_box_lies_in_the_image(width: int, height: int, low: float, ratio: float, seed: int) -> None:
    augment = Augment(scale=(low, 1.0), ratio=(ratio, 1 / ratio))
    left, top, right, bottom = random_box(width, height, augment, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@settings(max_examples=100, deadline=None)
@given(width=st.integers(100, 2000), height=st.integers(100, 2000), seed=st.integers(0, 1000))
def test_random_box_keeps_scale_and_ratio_where_they_fit(width: int, height: int, seed: int) -> None:
    augment = Augment(scale=(0.2, 0.4), ratio=(0.9, 1.1))
    left, top, right, bottom = random_box(width, height, augment, np.random.default_rng(seed))
    w, h = right - left, bottom - top
    assert 0.85 <= w / h <= 1.15
    if max(width, height) <= 2 * min(width, height):  # else a square of that area does not fit, and the centre is taken
        assert 0.19 <= w * h / (width * height) <= 0.41


def test_train_view_is_a_function_of_bytes_and_generator() -> None:
    data = encode(picture("RGB", (640, 480)), "JPEG")
    augment = Augment(scale=(0.3, 1.0), flip=0.5)
    spec = Preprocess(size=96)
    first, again, other = (train_view(data, spec, augment, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_train_view_shows_the_crop_that_was_drawn() -> None:
    # Independent reference: the same box cut from the fully decoded image and resized in one step.
    data = encode(picture("RGB", (640, 480)), "JPEG", quality=95)
    spec, augment = Preprocess(size=96), Augment(scale=(0.5, 0.9))
    view = train_view(data, spec, augment, np.random.default_rng(1))
    reduced = open_image(data, min_side=int(np.ceil(96 / np.sqrt(0.5 / (4 / 3)))))
    box = random_box(*reduced.size, augment, np.random.default_rng(1))
    factor = 640 / reduced.width
    full = Image.open(io.BytesIO(data)).resize(
        (96, 96), Image.Resampling.BICUBIC, box=tuple(side * factor for side in box)
    )
    assert np.abs(view.astype(int) - np.asarray(full).astype(int)).mean() < 2


def test_flip_mirrors_the_view() -> None:
    data = encode(picture("RGB", (64, 64)), "PNG")
    spec = Preprocess(size=64)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain = train_view(data, spec, Augment(**whole), np.random.default_rng(0))
    mirrored = train_view(data, spec, Augment(**whole, flip=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(plain[:, ::-1], mirrored)


def test_preprocess_round_trips_through_open_clips_dictionary() -> None:
    spec = Preprocess(size=112, interpolation="bilinear", resize_mode="squash", fill_color=9)
    assert Preprocess.from_open_clip(spec.to_open_clip()) == spec


class Drawn:
    """A generator that gives the offsets it was told to."""

    def __init__(self, *shares: float) -> None:
        self.shares = list(shares)

    def integers(self, low: int, high: int) -> int:
        return low + int(self.shares.pop(0) * (high - low))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [*SIZES, (256, 256), (500, 375)], ids=str)
def test_resize_crop_equals_torchvisions_resize_and_a_crop(interpolation: str, size: tuple[int, int]) -> None:
    """The geometry exactly, the pixels to torch's rounding, for images that are not decoded at a fraction of their size."""
    from torchvision.transforms import InterpolationMode, Resize
    from torchvision.transforms import functional as F

    data = encode(picture("RGB", size), "PNG")
    spec = Preprocess(size=224, interpolation=interpolation)
    resized = Resize(256, InterpolationMode(interpolation))(Image.open(io.BytesIO(data)))
    for across, down in ((0.0, 0.0), (0.5, 0.3), (0.999, 0.999)):
        left = int(across * (resized.width - 224 + 1))
        top = int(down * (resized.height - 224 + 1))
        expected = np.asarray(F.crop(resized, top, left, 224, 224))
        found = train_view(data, spec, ResizeCrop(256), Drawn(across, down))  # type: ignore[arg-type]
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_resize_crop_reaches_every_corner_and_may_flip() -> None:
    data = encode(picture("RGB", (300, 280)), "PNG")
    spec = Preprocess(size=32)
    rng = np.random.default_rng(0)
    views = {train_view(data, spec, ResizeCrop(33), rng).tobytes() for _ in range(100)}
    # 33 x 35 pixels leave 2 x 4 places.
    assert len(views) == 8
    plain = train_view(data, spec, ResizeCrop(33), np.random.default_rng(5))
    flipped = train_view(data, spec, ResizeCrop(33, flip=1.0), np.random.default_rng(5))
    np.testing.assert_array_equal(flipped, plain[:, ::-1])


@pytest.mark.parametrize("size", [(1001, 1500), (1500, 1001), (2047, 1030)], ids=str)
def test_a_large_jpeg_keeps_the_geometry_though_it_is_decoded_smaller(size: tuple[int, int]) -> None:
    """The sides to the pixel; the content, a smooth ramp, to a few grey levels."""
    from torchvision.transforms import InterpolationMode, Resize

    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])) * (255 / sum(size))
    data = encode(Image.fromarray(ramp.astype(np.uint8)).convert("RGB"), "JPEG", quality=95)
    resized = Resize(256, InterpolationMode.BICUBIC)(Image.open(io.BytesIO(data)))
    opened = open_for_crops(data, Preprocess(size=224), ResizeCrop(256))
    assert opened.shape == (resized.height, resized.width, 3)
    assert np.abs(opened.astype(float) - np.asarray(resized, float)).max() < 4
