"""What a caption asserts, in a form that a machine can check: does this caption fit that scene?

The facts of a caption are a dictionary (compact JSON in the corpus's column `caption_facts`); what is left out is not
asserted. Everything that can be:

    {"objects": [{"kind": "star", "colour": "red", "size": "large", "texture": "striped",
                  "count": 2, "h": "left", "v": "top"}],
     "relation": [0, "left of", 1],    the first object mentioned is left of the second
     "background": "white",
     "total": 3}                       objects altogether

`count` and `total` are a number, "some" (two or more) or "several" (three or more). A caption fits a scene if its
objects can be assigned to different things of the scene so that all it asserts is true. It need not mention everything,
and the empty dictionary, a caption that says nothing, fits every scene.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from softclip_cli.data.generated.scene import Scene, relations_between
from softclip_cli.data.generated.vocabulary import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    KIND_NAMES,
    LEFT_TO_RIGHT,
    RELATIONS,
    SIZE_NAMES,
    TEXTURE_NAMES,
    TOP_TO_BOTTOM,
)
from softclip_cli.errors import DataError

AT_LEAST = {"some": 2, "several": 3}
MOST_THINGS = 3
MOST_COUNTED = 12
Facts = Mapping[str, Any]

# One bit for every value of every attribute; a scene sets exactly one bit an attribute, a caption forbids the bits of
# the values that it excludes. A caption's object fits a thing if and only if (thing & forbidden) is zero.
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "kind": KIND_NAMES,
    "colour": COLOUR_NAMES,
    "size": SIZE_NAMES,
    "texture": TEXTURE_NAMES,
    "count": tuple(range(1, MOST_COUNTED + 1)),
    "h": (*LEFT_TO_RIGHT, ""),
    "v": (*TOP_TO_BOTTOM, ""),
}
WHOLE: dict[str, tuple[Any, ...]] = {"background": BACKGROUND_NAMES, "total": tuple(range(1, MOST_COUNTED + 1))}
ABSENT = 1 << sum(len(values) for values in ATTRIBUTES.values())  # set where a scene has no such thing
BLOCK = 1 << 22  # elements of a block of the fit matrix: bounds the memory of large ones


def facts_json(facts: Facts) -> str:
    """Facts as compact JSON: an element of the corpus's column `caption_facts`."""
    return json.dumps(facts, separators=(",", ":"))


def fits(facts: Facts | str, scene: Scene | Mapping[str, Any] | str) -> bool:
    """Whether a caption is true of a scene.

    Args:
        facts: what the caption asserts, as a dictionary or as stored JSON.
        scene: a `Scene`, its dictionary, or as stored JSON.

    Raises:
        DataError: the facts or the scene use a word that the generated corpus does not know.
    """
    return bool(fit_matrix([facts], [scene])[0, 0])


def fit_matrix(facts: Sequence[Facts | str], scenes: Sequence[Scene | Mapping[str, Any] | str]) -> np.ndarray:
    """The true many-to-many correspondence: which caption fits which scene.

    Args:
        facts: M captions' facts, dictionaries or stored JSON (stored JSON is parsed once and remembered).
        scenes: N scenes, likewise.

    Returns:
        bool (M, N); element (i, j): caption i is true of scene j.

    Raises:
        DataError: the facts or the scene use a word that the generated corpus does not know.
    """
    result = np.zeros((len(facts), len(scenes)), dtype=bool)
    if not len(facts) or not len(scenes):
        return result
    coded_scenes = [_scene_code(scene) for scene in scenes]
    things = np.array([code[0] for code in coded_scenes], dtype=np.uint64)
    whole = np.array([code[1] for code in coded_scenes], dtype=np.uint64)
    relations = np.array([code[2] for code in coded_scenes], dtype=np.uint8)
    coded_facts = [_facts_code(entry) for entry in facts]
    forbidden = np.array([code[0] for code in coded_facts], dtype=np.uint64)
    forbidden_whole = np.array([code[1] for code in coded_facts], dtype=np.uint64)
    relation = np.array([code[2] for code in coded_facts], dtype=np.intp)
    rows = max(1, BLOCK // (len(scenes) * MOST_THINGS))
    for start in range(0, len(facts), rows):
        block = slice(start, start + rows)
        result[block] = _fit_block(forbidden[block], forbidden_whole[block], relation[block], things, whole, relations)
    return result


def _fit_block(
    forbidden: np.ndarray,
    forbidden_whole: np.ndarray,
    relation: np.ndarray,
    things: np.ndarray,
    whole: np.ndarray,
    relations: np.ndarray,
) -> np.ndarray:
    fit = np.zeros((len(forbidden), len(things)), dtype=bool)
    related = np.flatnonzero(relation[:, 2])  # few captions assert a relation: only their rows are looked at
    first, second, wanted = relation[related].T
    for order in itertools.permutations(range(MOST_THINGS)):
        assigned = np.ones_like(fit)
        for mentioned, thing in enumerate(order):
            assigned &= (forbidden[:, None, mentioned] & things[None, :, thing]) == 0
        if len(related):
            place = np.array(order)
            held = relations[:, place[first], place[second]]  # (N, related)
            assigned[related] &= (held & wanted.astype(np.uint8)).T != 0
        fit |= assigned
    fit &= (forbidden_whole[:, None] & whole[None, :]) == 0
    return fit


def _bits(attributes: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any], what: str) -> int:
    """One bit an attribute: where `values` has it."""
    code, shift = 0, 0
    for name, known in attributes.items():
        code |= 1 << (shift + _place(known, values[name], name, what))
        shift += len(known)
    return code


def _forbidden(attributes: Mapping[str, tuple[Any, ...]], values: Mapping[str, Any]) -> int:
    """The bits of every value that `values` excludes."""
    code, shift = 0, 0
    for name, known in attributes.items():
        if name in values:
            value = values[name]
            if name in ("count", "total") and value in AT_LEAST:
                allowed = sum(1 << place for place, number in enumerate(known) if number >= AT_LEAST[value])
            else:
                allowed = 1 << _place(known, value, name, "facts")
            code |= (((1 << len(known)) - 1) & ~allowed) << shift
        shift += len(known)
    return code


def _place(known: tuple[Any, ...], value: Any, name: str, what: str) -> int:
    try:
        return known.index(value)
    except ValueError:
        raise DataError(
            f"unknown {name} {value!r} in a caption's {what}"
            if what == "facts"
            else f"unknown {name} {value!r} in a scene",
            "it was not written by this version's generator",
            "generate the corpus again: softclip data generate",
        ) from None


def _scene_code(scene: Scene | Mapping[str, Any] | str) -> tuple[Any, ...]:
    if isinstance(scene, str):
        return _parsed_scene(scene)
    return _code_of_scene(scene.as_dict() if isinstance(scene, Scene) else scene)


@lru_cache(maxsize=1 << 17)
def _parsed_scene(text: str) -> tuple[Any, ...]:
    return _code_of_scene(json.loads(text))


def _code_of_scene(document: Mapping[str, Any]) -> tuple[Any, ...]:
    """(bits of three things, bits of the whole, relation bits [i][j])."""
    objects = document["objects"]
    things = [_bits(ATTRIBUTES, entry, "scene") for entry in objects]
    things += [ABSENT] * (MOST_THINGS - len(things))
    total = sum(entry["count"] for entry in objects)
    whole = _bits(WHOLE, {"background": document["background"], "total": total}, "scene")
    centres = [tuple(sum(axis) / len(entry["at"]) for axis in zip(*entry["at"], strict=True)) for entry in objects]
    relations = [[0] * MOST_THINGS for _ in range(MOST_THINGS)]
    for i, j in itertools.permutations(range(len(centres)), 2):
        held = relations_between(centres[i], centres[j])  # type: ignore[arg-type]
        relations[i][j] = sum(1 << RELATIONS.index(name) for name in held)
    return tuple(things), whole, relations


def _facts_code(facts: Facts | str) -> tuple[Any, ...]:
    return _parsed_facts(facts) if isinstance(facts, str) else _code_of_facts(facts)


@lru_cache(maxsize=1 << 17)
def _parsed_facts(text: str) -> tuple[Any, ...]:
    return _code_of_facts(json.loads(text))


def _code_of_facts(facts: Facts) -> tuple[Any, ...]:
    """(bits forbidden to the things of three mentions, and to the whole; (first, second, relation bit))."""
    unknown = set(facts) - {"objects", "relation", "background", "total"}
    mentions = facts.get("objects", [])
    unknown |= {name for mention in mentions for name in mention if name not in ATTRIBUTES}
    if unknown or len(mentions) > MOST_THINGS:
        raise DataError(
            f"unknown facts {sorted(unknown)}" if unknown else f"facts about {len(mentions)} things",
            "they were not written by this version's generator",
            "generate the corpus again: softclip data generate",
        )
    forbidden = [_forbidden(ATTRIBUTES, mention) | ABSENT for mention in mentions]
    forbidden += [0] * (MOST_THINGS - len(forbidden))
    relation = (0, 0, 0)
    if "relation" in facts:
        first, name, second = facts["relation"]
        relation = (first, second, 1 << _place(RELATIONS, name, "relation", "facts"))
    return tuple(forbidden), _forbidden(WHOLE, facts), relation
