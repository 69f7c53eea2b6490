"""Drawings show what their scenes say, colours of the right name at the right place; shifts do what they promise."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from softclip_cli.data.generated import draw, scene, shapes, vocabulary

# The middle of each colour's everyday hues in degrees, as painters name them, not as the drawer defines them.
HUES = {"red": 0, "orange": 28, "yellow": 53, "green": 125, "turquoise": 177, "blue": 222, "purple": 278, "pink": 332}


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(float)


def single(kind: str, colour: str, seed: int, texture: str = "plain", background: str = "grey") -> scene.Scene:
    thing = scene.Thing(kind, colour, "large", texture, 0.6, ((0.5, 0.5),))
    return scene.Scene((thing,), background, seed)


def alone(shown: scene.Scene) -> scene.Scene:
    """The same scene without its things: what is drawn of it is its background."""
    return scene.Scene((), shown.background, shown.seed)


def object_mask(shown: scene.Scene, size: int = 64, style: str = "everyday") -> np.ndarray:
    """Where the picture differs from its bare background."""
    difference = pixels_of(draw.draw(shown, size, style)) - pixels_of(draw.draw(alone(shown), size, style))
    return np.abs(difference).max(axis=2) > 12


@pytest.mark.parametrize("kind", vocabulary.KIND_NAMES)
@pytest.mark.parametrize("colour", vocabulary.COLOUR_NAMES)
def test_the_hue_of_an_object_is_nearest_to_its_colours_name(kind, colour):
    for seed in range(3):
        shown = single(kind, colour, seed)
        inside = np.median(pixels_of(draw.draw(shown))[object_mask(shown)], axis=0) / 255
        hue = 360 * colorsys.rgb_to_hsv(*inside)[0]
        distance = {name: abs((hue - centre + 180) % 360 - 180) for name, centre in HUES.items()}
        assert min(distance, key=distance.get) == colour


def test_an_object_is_where_and_as_large_as_its_scene_says():
    rng = np.random.default_rng(4)
    for _ in range(60):
        shown = scene.sample_single(rng)
        thing = shown.things[0]
        rows, columns = np.nonzero(object_mask(shown, 96))
        left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        assert max(right - left, bottom - top) / 96 == pytest.approx(thing.side, abs=0.035)
        assert (left + right) / 192 == pytest.approx(thing.at[0][0], abs=0.025)
        assert (top + bottom) / 192 == pytest.approx(thing.at[0][1], abs=0.025)


def test_every_object_of_a_scene_is_drawn():
    from scipy import ndimage

    rng = np.random.default_rng(8)
    solid = ("circle", "square", "triangle", "heart", "cross", "moon")  # nothing cut out, one piece each
    for _ in range(40):
        shown = scene.sample_scene(rng)
        things = tuple(
            scene.Thing(solid[i], t.colour, t.size, "plain", t.side * 0.9, t.at) for i, t in enumerate(shown.things)
        )
        plain = scene.Scene(things, shown.background, shown.seed)
        assert ndimage.label(object_mask(plain, 128))[1] == shown.total


@pytest.mark.parametrize("kind", vocabulary.KIND_NAMES)
def test_kinds_differ_in_shape(kind):
    """Upright silhouettes of different kinds overlap clearly less than two drawings of one kind do."""

    def silhouette(name: str, seed: int) -> np.ndarray:
        return object_mask(single(name, "red", seed, background="white"), 64)

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        return (a & b).sum() / (a | b).sum()

    own = np.mean([overlap(silhouette(kind, seed), silhouette(kind, seed + 1)) for seed in range(6)])
    for other in vocabulary.KIND_NAMES:
        if other != kind:
            across = np.mean([overlap(silhouette(kind, seed), silhouette(other, seed + 1)) for seed in range(6)])
            assert across < own - 0.05, (kind, other)


@pytest.mark.parametrize("texture", ["striped", "dotted", "checkered"])
def test_a_texture_shows_two_shades(texture):
    plain, textured = (
        pixels_of(draw.draw(single("square", "blue", 3, name)))[22:42, 22:42] for name in ("plain", texture)
    )
    assert textured.std(axis=(0, 1)).max() > 4 * plain.std(axis=(0, 1)).max()


@pytest.mark.parametrize("style", draw.STYLES)
def test_a_drawing_is_repeatable_and_has_the_asked_size(style):
    shown = scene.sample_scene(np.random.default_rng(2))
    for size in (32, 64, 130, 224):
        image = draw.draw(shown, size, style)
        assert image.size == (size, size) and image.mode == "RGB"
        assert draw.encode(image) == draw.encode(draw.draw(shown, size, style))


def test_encoding_keeps_every_pixel():
    image = draw.draw(scene.sample_scene(np.random.default_rng(6)))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(draw.encode(image)))), np.asarray(image))


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="no style 'cubist'"):
        draw.draw(single("star", "red", 0), 64, "cubist")
    with pytest.raises(KeyError):
        shapes.outline("dragon")


def test_outline_leaves_the_inside_empty():
    shown = single("circle", "red", 1, background="white")
    everyday, outlined = object_mask(shown), object_mask(shown, style="outline")
    assert everyday[24:40, 24:40].all() and not outlined[24:40, 24:40].any()
    assert outlined.sum() > 60


def test_palette_changes_the_shade_and_nothing_else():
    changes = []
    for colour in vocabulary.COLOUR_NAMES:
        shown = single("heart", colour, 5)
        everyday, recoloured = pixels_of(draw.draw(shown)), pixels_of(draw.draw(shown, style="palette"))
        inside = object_mask(shown)
        assert np.abs(everyday - recoloured)[~inside].max() < 60  # anti-aliased border at the most
        changes.append(np.abs(everyday - recoloured)[inside].mean())
    assert min(changes) > 15


def test_texture_changes_the_background_only():
    shown = single("heart", "red", 5, background="white")
    everyday, textured = pixels_of(draw.draw(shown)), pixels_of(draw.draw(shown, style="texture"))
    assert np.abs(everyday - textured)[30:34, 26:38].max() <= 1
    assert textured[:8].std() > 5 * everyday[:8].std()


def test_blur_and_pixels_keep_the_mean_and_lose_detail():
    shown = single("star", "red", 5, texture="checkered", background="white")
    everyday = pixels_of(draw.draw(shown))
    for style in ("blur", "pixelated"):
        image = pixels_of(draw.draw(shown, style=style))
        assert np.allclose(image.mean(axis=(0, 1)), everyday.mean(axis=(0, 1)), atol=2)
        assert np.abs(np.diff(image, axis=0)).mean() < 0.8 * np.abs(np.diff(everyday, axis=0)).mean()
    blocks = pixels_of(draw.draw(shown, style="pixelated")).reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_no_two_seeds_look_the_same():
    drawings = {draw.encode(draw.draw(single("circle", "green", seed))) for seed in range(30)}
    assert len(drawings) == 30
