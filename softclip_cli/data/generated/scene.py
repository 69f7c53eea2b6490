"""What a picture shows: one to three things on a background, sampled from a generator, before anything is drawn.

A scene is small and complete: its JSON, with the picture's size, is enough to draw the very same picture again.
Whatever a caption may say of a scene is true or false by definition: the ranges behind the words do not touch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.data.generated.vocabulary import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    KIND_NAMES,
    LEFT_TO_RIGHT,
    SIZES,
    TOP_TO_BOTTOM,
    pick,
    pick_weighted,
)

LAYOUTS = {"single": 0.70, "several": 0.10, "pair": 0.14, "triple": 0.06}
SIZE_WEIGHTS = {"small": 0.15, "medium": 0.35, "large": 0.5}  # of a single object
TEXTURE_WEIGHTS = {"plain": 0.7, "striped": 0.1, "dotted": 0.1, "checkered": 0.1}
SMALLEST_TEXTURED = 0.28  # below this side a texture is a few pixels at 64 pixels a picture
EDGE = 0.02  # what stays free between an object and the picture's edge
OFF_CENTRE, NEAR_CENTRE = (
    0.10,
    0.06,
)  # a centre at least / at most this far from the middle is left or right / in the middle
APART = 0.20  # centres this far apart are clearly beside, above or below each other


@dataclass(frozen=True)
class Thing:
    """Objects that look the same: one, or several of them ("three red stars").

    Attributes:
        kind, colour, size, texture: names of words.toml.
        side: longer side of one object as a share of the picture's side.
        at: the centre (x, y) of every object, as shares of the picture's side, from the top left.
    """

    kind: str
    colour: str
    size: str
    texture: str
    side: float
    at: tuple[tuple[float, float], ...]

    @property
    def count(self) -> int:
        """How many objects look like this."""
        return len(self.at)

    @property
    def centre(self) -> tuple[float, float]:
        """The mean of the objects' centres."""
        return sum(x for x, _ in self.at) / self.count, sum(y for _, y in self.at) / self.count

    @property
    def h(self) -> str:
        """ "left", "middle" or "right" where that holds of every object, else empty."""
        return _shared([_third(x, LEFT_TO_RIGHT) for x, _ in self.at])

    @property
    def v(self) -> str:
        """ "top", "middle" or "bottom" where that holds of every object, else empty."""
        return _shared([_third(y, TOP_TO_BOTTOM) for _, y in self.at])


@dataclass(frozen=True)
class Scene:
    """One to three things on a background; no two things share a kind or a colour.

    Attributes:
        things: what is shown.
        background: a name of words.toml.
        seed: what the drawer derives shades, turns, patterns and light from.
    """

    things: tuple[Thing, ...]
    background: str
    seed: int

    @property
    def total(self) -> int:
        """How many objects there are altogether."""
        return sum(thing.count for thing in self.things)

    def as_dict(self) -> dict[str, Any]:
        """The scene as plain values, with what follows from them (count, h, v) spelt out for readers of the corpus."""
        objects = [
            {
                "kind": thing.kind,
                "colour": thing.colour,
                "size": thing.size,
                "texture": thing.texture,
                "count": thing.count,
                "h": thing.h,
                "v": thing.v,
                "side": thing.side,
                "at": [list(point) for point in thing.at],
            }
            for thing in self.things
        ]
        return {"objects": objects, "background": self.background, "seed": self.seed}

    def to_json(self) -> str:
        """The scene as compact JSON: the corpus's column `scene`."""
        return json.dumps(self.as_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Scene:
        """The scene that `as_dict` described."""
        things = tuple(
            Thing(
                kind=entry["kind"],
                colour=entry["colour"],
                size=entry["size"],
                texture=entry["texture"],
                side=entry["side"],
                at=tuple((x, y) for x, y in entry["at"]),
            )
            for entry in document["objects"]
        )
        return cls(things, document["background"], document["seed"])

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """The scene of a corpus's column `scene`."""
        return cls.from_dict(json.loads(text))


def relations_between(first: tuple[float, float], second: tuple[float, float]) -> tuple[str, ...]:
    """What holds of a thing centred at `first` towards one centred at `second`: names of `vocabulary.RELATIONS`."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    found = []
    if dx >= APART:
        found.append("left of")
    if dx <= -APART:
        found.append("right of")
    if dy >= APART:
        found.append("above")
    if dy <= -APART:
        found.append("below")
    if abs(dx) >= APART > abs(dy):
        found.append("beside")
    return tuple(found)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene of any layout: one object, several alike, two things or three."""
    layout = pick_weighted(rng, LAYOUTS)
    if layout == "single":
        return sample_single(rng)
    kinds, colours = rng.permutation(KIND_NAMES).tolist(), rng.permutation(COLOUR_NAMES).tolist()
    background = pick(rng, BACKGROUND_NAMES)
    things: list[Thing]
    if layout == "several":
        things = [_several(rng, kinds[0], colours[0])]
    elif layout == "pair":
        things = _pair(rng, kinds, colours)
    else:
        things = _triple(rng, kinds, colours)
    order = rng.permutation(len(things))
    return Scene(tuple(things[i] for i in order), background, _seed(rng))


def sample_single(
    rng: np.random.Generator, kind: str | None = None, colour: str | None = None, *, smallest: float = 0.3
) -> Scene:
    """A scene of exactly one object, of the given kind and colour where given, its side at least `smallest`."""
    size = pick_weighted(rng, SIZE_WEIGHTS)
    side = _side(rng, size, lowest=smallest)
    free = 0.5 - side / 2 - EDGE
    movable = 0.7 * free >= OFF_CENTRE and rng.random() < 0.65
    h, v = (pick(rng, LEFT_TO_RIGHT), pick(rng, TOP_TO_BOTTOM)) if movable else ("middle", "middle")
    at = (_coordinate(rng, LEFT_TO_RIGHT.index(h), free), _coordinate(rng, TOP_TO_BOTTOM.index(v), free))
    thing = Thing(
        kind=kind or pick(rng, KIND_NAMES),
        colour=colour or pick(rng, COLOUR_NAMES),
        size=size,
        texture=_texture(rng, side),
        side=side,
        at=(at,),
    )
    return Scene((thing,), pick(rng, BACKGROUND_NAMES), _seed(rng))


def sample_two(rng: np.random.Generator) -> Scene:
    """A scene of two single plain-sized objects side by side or one above the other: for compositional tests."""
    kinds, colours = rng.permutation(KIND_NAMES).tolist(), rng.permutation(COLOUR_NAMES).tolist()
    upright = rng.random() < 0.5
    things = []
    for place in (0, 1):
        side = round(float(rng.uniform(0.34, 0.38)), 3)
        along = (0.26, 0.74)[place] + float(rng.uniform(-0.03, 0.03))
        across = 0.5 + float(rng.uniform(-0.05, 0.05))
        at = (round(across, 3), round(along, 3)) if upright else (round(along, 3), round(across, 3))
        things.append(Thing(kinds[place], colours[place], "small", _texture(rng, side), side, (at,)))
    return Scene(tuple(things), pick(rng, BACKGROUND_NAMES), _seed(rng))


def _several(rng: np.random.Generator, kind: str, colour: str) -> Thing:
    count = pick(rng, (2, 2, 3, 3, 4))
    near, far, mid = 0.26, 0.74, 0.5
    grids: dict[int, list[list[tuple[float, float]]]] = {
        2: [
            [(near, mid), (far, mid)],
            [(mid, near), (mid, far)],
            [(near, near), (far, far)],
            [(far, near), (near, far)],
        ],
        3: [
            [(0.18, mid), (mid, mid), (0.82, mid)],
            [(mid, 0.18), (mid, mid), (mid, 0.82)],
            [(mid, near), (near, far), (far, far)],
            [(near, near), (far, near), (mid, far)],
        ],
        4: [
            [(near, near), (far, near), (near, far), (far, far)],
            [(mid, 0.17), (0.17, mid), (0.83, mid), (mid, 0.83)],
        ],
    }
    slots = pick(rng, grids[count])
    tight = any(0.17 <= x <= 0.18 or 0.17 <= y <= 0.18 for x, y in slots)
    size = "medium" if count == 2 and rng.random() < 0.4 else "small"
    side = _side(rng, size, highest=0.44 if size == "medium" else 0.28 if tight else 0.36)
    return Thing(kind, colour, size, _texture(rng, side), side, tuple(_near(rng, slot, 0.02) for slot in slots))


def _pair(rng: np.random.Generator, kinds: list[str], colours: list[str]) -> list[Thing]:
    slots = pick(
        rng,
        (
            [(0.26, 0.5), (0.74, 0.5)],
            [(0.26, 0.5), (0.74, 0.5)],
            [(0.5, 0.26), (0.5, 0.74)],
            [(0.5, 0.26), (0.5, 0.74)],
            [(0.26, 0.26), (0.74, 0.74)],
            [(0.74, 0.26), (0.26, 0.74)],
        ),
    )
    doubled = int(rng.integers(2)) if rng.random() < 0.2 else -1  # one of them may be two objects, within its half
    things = []
    for place, (x, y) in enumerate(slots):
        if place == doubled:
            side = _side(rng, "small", highest=0.32)
            spread = [(x, 0.27), (x, 0.73)] if slots[0][0] != slots[1][0] else [(0.27, y), (0.73, y)]
            at = tuple(_near(rng, slot, 0.02) for slot in spread)
            things.append(Thing(kinds[place], colours[place], "small", _texture(rng, side), side, at))
            continue
        size = "medium" if rng.random() < 0.45 else "small"
        side = _side(rng, size, highest=0.44)
        things.append(Thing(kinds[place], colours[place], size, _texture(rng, side), side, (_near(rng, (x, y), 0.02),)))
    return things


def _triple(rng: np.random.Generator, kinds: list[str], colours: list[str]) -> list[Thing]:
    slots = pick(
        rng,
        (
            [(0.18, 0.5), (0.5, 0.5), (0.82, 0.5)],
            [(0.5, 0.18), (0.5, 0.5), (0.5, 0.82)],
            [(0.5, 0.25), (0.25, 0.75), (0.75, 0.75)],
            [(0.25, 0.25), (0.75, 0.25), (0.5, 0.75)],
        ),
    )
    highest = 0.28 if 0.18 in slots[0] else 0.36
    things = []
    for place, slot in enumerate(slots):
        side = _side(rng, "small", highest=highest)
        at = (_near(rng, slot, 0.02),)
        things.append(Thing(kinds[place], colours[place], "small", _texture(rng, side), side, at))
    return things


def _side(rng: np.random.Generator, size: str, *, lowest: float = 0.0, highest: float = 1.0) -> float:
    low, high = SIZES[size].side
    return round(float(rng.uniform(max(low, lowest), min(high, highest))), 3)


def _texture(rng: np.random.Generator, side: float) -> str:
    texture = pick_weighted(rng, TEXTURE_WEIGHTS)
    return texture if side >= SMALLEST_TEXTURED else "plain"


def _coordinate(rng: np.random.Generator, third: int, free: float) -> float:
    if third == 1:
        reach = min(NEAR_CENTRE, free)
        return round(0.5 + float(rng.uniform(-reach, reach)), 3)
    distance = float(rng.uniform(max(0.7 * free, OFF_CENTRE + 0.001), free))
    return round(0.5 + (third - 1) * distance, 3)


def _near(rng: np.random.Generator, slot: tuple[float, float], reach: float) -> tuple[float, float]:
    return round(slot[0] + float(rng.uniform(-reach, reach)), 3), round(slot[1] + float(rng.uniform(-reach, reach)), 3)


def _third(coordinate: float, names: tuple[str, str, str]) -> str:
    if coordinate <= 0.5 - OFF_CENTRE:
        return names[0]
    if coordinate >= 0.5 + OFF_CENTRE:
        return names[2]
    return names[1] if abs(coordinate - 0.5) <= NEAR_CENTRE + 1e-9 else ""


def _shared(names: list[str]) -> str:
    return names[0] if len(set(names)) == 1 else ""


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 32))
