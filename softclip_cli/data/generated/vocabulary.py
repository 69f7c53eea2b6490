"""What scenes are made of and the words for it, read from words.toml and phrases.toml: data, not code."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

LEFT_TO_RIGHT = ("left", "middle", "right")
TOP_TO_BOTTOM = ("top", "middle", "bottom")
RELATIONS = ("left of", "right of", "above", "below", "beside")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


@dataclass(frozen=True)
class Kind:
    """A kind of object: its words, their plurals in order, its largest turn in degrees, whether it is mirrored."""

    words: tuple[str, ...]
    plurals: tuple[str, ...]
    turn: float
    mirror: bool = False


@dataclass(frozen=True)
class Colour:
    """A colour: its words, ranges of hue (degrees), saturation and value; one deep and one pale shade of its name."""

    words: tuple[str, ...]
    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    deep: tuple[float, float, float] | None = None
    pale: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Size:
    """A size: its words and the range of the side as a share of the picture's."""

    words: tuple[str, ...]
    side: tuple[float, float]


@dataclass(frozen=True)
class Texture:
    """A texture: adjectives before the noun and phrases after it."""

    before: tuple[str, ...]
    after: tuple[str, ...]


def read_table(name: str) -> dict[str, Any]:
    """A TOML table that lies beside this module."""
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


_words = read_table("words.toml")
KINDS: dict[str, Kind] = {name: Kind(**_frozen(entry)) for name, entry in _words["kinds"].items()}
COLOURS: dict[str, Colour] = {name: Colour(**_frozen(entry)) for name, entry in _words["colours"].items()}
BACKGROUNDS: dict[str, Colour] = {name: Colour(**_frozen(entry)) for name, entry in _words["backgrounds"].items()}
SIZES: dict[str, Size] = {name: Size(**_frozen(entry)) for name, entry in _words["sizes"].items()}
TEXTURES: dict[str, Texture] = {name: Texture(**_frozen(entry)) for name, entry in _words["textures"].items()}

KIND_NAMES = tuple(KINDS)
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)
SIZE_NAMES = tuple(SIZES)
TEXTURE_NAMES = tuple(TEXTURES)
CLASS_NAMES = tuple(f"{colour} {kind}" for kind in KIND_NAMES for colour in COLOUR_NAMES)


def class_of(kind: str, colour: str) -> int:
    """The index of kind × colour in `CLASS_NAMES`."""
    return KIND_NAMES.index(kind) * len(COLOUR_NAMES) + COLOUR_NAMES.index(colour)


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """One of the choices, all equally likely (`Generator.choice` takes ten times as long)."""
    return choices[int(rng.random() * len(choices))]


def pick_weighted(rng: np.random.Generator, weights: Mapping[Any, float]) -> Any:
    """One of the keys, by weights that sum to 1."""
    left = rng.random()
    for choice, weight in weights.items():
        left -= weight
        if left < 0:
            return choice
    return choice
