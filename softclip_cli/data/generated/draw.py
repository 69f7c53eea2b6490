"""A scene to pixels, in the everyday style or under one of the shifts, and pixels to encoded bytes.

Everything random about the looks is drawn from the scene's own seed before the style is applied, so that a shifted
picture differs from the everyday one by the shift only.
"""

from __future__ import annotations

import colorsys
import io
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from softclip_cli.data.generated.scene import Scene, Thing
from softclip_cli.data.generated.shapes import outline
from softclip_cli.data.generated.vocabulary import BACKGROUNDS, COLOURS, KINDS, Colour

SHIFTS = ("outline", "palette", "texture", "blur", "pixelated")
STYLES = ("everyday", *SHIFTS)
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """How one thing looks: its two colours, its texture's turn and place, each object's turn, stretch and mirroring."""

    colour: RGB
    second: RGB
    pattern_turn: float
    pattern_phase: tuple[float, float]
    turns: tuple[float, ...]
    stretches: tuple[float, ...]
    mirrored: tuple[bool, ...]


def draw(scene: Scene, size: int = 64, style: str = "everyday") -> Image.Image:
    """Draw a scene.

    Args:
        scene: what to show.
        size: side of the square picture in pixels.
        style: one of `STYLES`.

    Returns:
        An RGB image of (size, size), the same for the same arguments.
    """
    if style not in STYLES:
        raise ValueError(f"no style {style!r}; known: {', '.join(STYLES)}")
    rng = np.random.Generator(np.random.PCG64(scene.seed))
    background = _rgb(*_sample_hsv(rng, BACKGROUNDS[scene.background]))
    light = (float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.0, 0.12)), float(rng.uniform(0.94, 1.04)))
    looks = [_sample_look(rng, thing, background) for thing in scene.things]
    style_rng = np.random.Generator(np.random.PCG64((scene.seed, STYLES.index(style))))

    factor = 4 if size <= 96 else 3 if size <= 192 else 2
    canvas = Image.new("RGB", (size * factor, size * factor), background)
    if style == "texture":
        _fill_with_texture(canvas, background, style_rng)
    for thing, look in zip(scene.things, looks, strict=True):
        if style == "palette":
            look = _recoloured(thing, look, background, style_rng)
        for number in range(thing.count):
            _draw_object(canvas, thing, look, number, outlined=style == "outline")
    image = _lit(canvas.reduce(factor), *light)
    if style == "blur":
        image = image.filter(ImageFilter.GaussianBlur(size * 0.035))
    elif style == "pixelated":
        blocks = max(1, size // 4) if size < 64 else 16
        image = image.resize((blocks, blocks), Image.Resampling.BOX).resize((size, size), Image.Resampling.NEAREST)
    return image


def encode(image: Image.Image) -> bytes:
    """The image as PNG: drawings of this size are hardly larger than as JPEG, and shown as they were drawn."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _sample_hsv(rng: np.random.Generator, colour: Colour) -> tuple[float, float, float]:
    hue, saturation, value = (float(rng.uniform(*span)) for span in (colour.hue, colour.saturation, colour.value))
    return hue, saturation, value


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _brightness(colour: RGB) -> float:
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


def _second(colour: RGB, background: RGB) -> RGB:
    """The other colour of a texture, of the same name: darker, or paler where darker would be lost."""
    paler_shows = _brightness(background) <= 0.6 and _brightness(colour) <= 0.6
    if paler_shows or _brightness(colour) < 0.25:
        return tuple(round(255 - (255 - part) * 0.45) for part in colour)  # type: ignore[return-value]
    return round(colour[0] * 0.55), round(colour[1] * 0.55), round(colour[2] * 0.55)


def _sample_look(rng: np.random.Generator, thing: Thing, background: RGB) -> Look:
    kind = KINDS[thing.kind]
    colour = _rgb(*_sample_hsv(rng, COLOURS[thing.colour]))
    pattern_turn = float(rng.uniform(-90, 90))
    phase = (float(rng.random()), float(rng.random()))
    turns = tuple(float(rng.uniform(-1, 1)) * kind.turn for _ in thing.at)
    stretches = tuple(float(rng.uniform(0.92, 1.08)) for _ in thing.at)
    mirrored = tuple(bool(rng.random() < 0.5) and kind.mirror for _ in thing.at)
    return Look(colour, _second(colour, background), pattern_turn, phase, turns, stretches, mirrored)


def _recoloured(thing: Thing, look: Look, background: RGB, rng: np.random.Generator) -> Look:
    """The same look in the deep or the pale shade of its colour's name, whichever stands out from the background."""
    colour = COLOURS[thing.colour]
    shades = [_rgb(*shade) for shade in (colour.deep, colour.pale) if shade is not None]
    contrast = [abs(_brightness(shade) - _brightness(background)) for shade in shades]
    likely = int(np.argmax(contrast))
    usable = [shade for shade, difference in zip(shades, contrast, strict=True) if difference > 0.25]
    chosen = usable[int(rng.integers(len(usable)))] if usable else shades[likely]
    return replace(look, colour=chosen, second=_second(chosen, background))


def _polygons(thing: Thing, look: Look, number: int) -> list[tuple[np.ndarray, bool]]:
    """The object's polygons about the origin, turned, and scaled so that the longer side of their box is 1."""
    angle = math.radians(look.turns[number])
    cos, sin = math.cos(angle), math.sin(angle)
    placed = []
    for points, filled in outline(thing.kind):
        x = points[:, 0] * (-1 if look.mirrored[number] else 1) * look.stretches[number]
        y = points[:, 1]
        placed.append((np.stack([x * cos - y * sin, x * sin + y * cos], axis=1), filled))
    every = np.concatenate([points for points, filled in placed if filled])
    low, high = every.min(axis=0), every.max(axis=0)
    middle, scale = (low + high) / 2, 1 / float((high - low).max())
    return [((points - middle) * scale, filled) for points, filled in placed]


def _draw_object(canvas: Image.Image, thing: Thing, look: Look, number: int, *, outlined: bool) -> None:
    side = thing.side * canvas.width
    x, y = thing.at[number]
    half = math.ceil(side / 2) + 1
    left, top = round(x * canvas.width) - half, round(y * canvas.height) - half
    mask = Image.new("L", (2 * half, 2 * half), 0)
    pen = ImageDraw.Draw(mask)
    width = max(2, round(canvas.width * 0.032))
    for points, filled in _polygons(thing, look, number):
        if outlined:
            # Drawn inside the box: half the line's width would otherwise be cut off at its border.
            corners = (points * (side - width) + half).ravel().tolist()
            pen.line(corners + corners[:4], fill=255, width=width, joint="curve")
        else:
            pen.polygon((points * side + half).ravel().tolist(), fill=255 if filled else 0)
    canvas.paste(look.colour, (left, top), mask)
    if thing.texture != "plain" and not outlined:
        pattern = _pattern(thing, look, 2 * half, canvas.width)
        canvas.paste(look.second, (left, top), ImageChops.multiply(mask, pattern))


def _pattern(thing: Thing, look: Look, extent: int, canvas: int) -> Image.Image:
    """Where the second colour goes, as a mask of (extent, extent)."""
    # A period is a quarter of the object, yet never so fine that it blurs into a third colour.
    period = max(thing.side * 0.26, 0.11) * canvas
    # Stripes run any way; dots and checks look alike turned further than this.
    angle = math.radians(look.pattern_turn if thing.texture == "striped" else look.pattern_turn / 6)
    across, along = _lattice(extent, period, angle, look.pattern_phase)
    if thing.texture == "striped":
        return _mask(_halves(across))
    if thing.texture == "dotted":
        return _mask((across - np.trunc(across) - 0.5) ** 2 + (along - np.trunc(along) - 0.5) ** 2 < 0.30**2)
    return _mask(_halves(across) ^ _halves(along))


def _lattice(extent: int, period: float, angle: float, phase: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Two turned axes over a square of `extent` pixels, counted in periods, both positive everywhere.

    Positive, because truncating is several times as fast as a remainder.
    """
    grid = np.arange(extent, dtype=np.float32) / period
    origin = 2 * math.ceil(extent / period)
    across = grid[None, :] * math.cos(angle) + grid[:, None] * math.sin(angle) + (phase[0] + origin)
    along = grid[:, None] * math.cos(angle) - grid[None, :] * math.sin(angle) + (phase[1] + origin)
    return across, along


def _halves(periods: np.ndarray) -> np.ndarray:
    """True in the first half of every period."""
    return (2 * periods).astype(np.int32) & 1 == 0


def _mask(marked: np.ndarray) -> Image.Image:
    return Image.fromarray(marked.view(np.uint8) * np.uint8(255))


def _fill_with_texture(canvas: Image.Image, background: RGB, rng: np.random.Generator) -> None:
    """Cover the background with a pattern of two shades of its own colour: stripes, checks, a grid or blobs."""
    extent = canvas.width
    angle, period = float(rng.uniform(0, math.pi)), float(rng.uniform(0.07, 0.13))
    across, along = _lattice(extent, period * extent, angle, (0, 0))
    style = int(rng.integers(4))
    if style == 0:
        marked = _halves(across)
    elif style == 1:
        marked = _halves(across) ^ _halves(along)
    elif style == 2:
        marked = (across - np.trunc(across) < 0.18) | (along - np.trunc(along) < 0.18)
    else:
        blobs = Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8))
        marked = np.asarray(blobs.resize(canvas.size, Image.Resampling.BICUBIC)) > 127
    towards = 0 if _brightness(background) > 0.3 else 255
    other: RGB = tuple(round(part + (towards - part) * 0.25) for part in background)  # type: ignore[assignment]
    canvas.paste(other, (0, 0), _mask(marked))


def _lit(image: Image.Image, angle: float, strength: float, level: float) -> Image.Image:
    """The image under light that falls off linearly from one side: a gain of level ± strength."""
    ramp = np.linspace(-1, 1, image.width, dtype=np.float32)
    gain = (ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle)) * (strength / math.sqrt(2)) + level
    pixels = np.asarray(image, dtype=np.float32) * gain[:, :, None]
    return Image.fromarray((np.minimum(pixels, 255) + 0.5).astype(np.uint8))
