"""Compositional hard negatives: a picture of two objects, its true caption, and one wrong in exactly one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from softclip_cli.data.generated.captions import PHRASES, Caption, with_article
from softclip_cli.data.generated.scene import Scene, Thing, relations_between
from softclip_cli.data.generated.vocabulary import COLOUR_NAMES, KIND_NAMES, pick

EDITS = ("swap-colour", "swap-relation", "replace-kind", "replace-colour")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def contrast(rng: np.random.Generator, scene: Scene, edit: str) -> tuple[Caption, Caption]:
    """A true caption of a scene of two objects and its hard negative: one edit apart, all other words the same.

    Args:
        scene: two single objects, one beside or above the other (`scene.sample_two`).
        edit: one of `EDITS`: the colours change places ("a red square and a blue circle" against "a blue square and a
            red circle"), the relation is turned round ("to the left of" against "to the right of"), or one object's
            kind or colour is replaced by one that the picture does not have.
    """
    first, second = (scene.things[i] for i in rng.permutation(2))
    related = edit == "swap-relation" or rng.random() < 0.5
    frame = pick(rng, PHRASES["composition"]["relation" if related else "plain"])
    relation = None
    if related:
        relation = next(name for name in relations_between(first.centre, second.centre) if name in OPPOSITE)
    truth = _caption(frame, first, second, relation)
    if edit == "swap-colour":
        wrong = _caption(frame, replace(first, colour=second.colour), replace(second, colour=first.colour), relation)
    elif edit == "swap-relation":
        assert relation is not None
        wrong = _caption(frame, first, second, OPPOSITE[relation])
    else:
        name, known = ("kind", KIND_NAMES) if edit == "replace-kind" else ("colour", COLOUR_NAMES)
        present = {getattr(first, name), getattr(second, name)}
        other = {name: pick(rng, [word for word in known if word not in present])}
        if rng.random() < 0.5:
            wrong = _caption(frame, replace(first, **other), second, relation)
        else:
            wrong = _caption(frame, first, replace(second, **other), relation)
    return truth, wrong


def _caption(frame: str, first: Thing, second: Thing, relation: str | None) -> Caption:
    objects = [{"kind": thing.kind, "colour": thing.colour, "count": 1} for thing in (first, second)]
    facts: dict[str, Any] = {"objects": objects}
    if relation is not None:
        facts["relation"] = [0, relation, 1]
    a, b = (with_article(f"{thing.colour} {thing.kind}") for thing in (first, second))
    words = PHRASES["composition"]["words"][relation] if relation is not None else ""
    return Caption(frame.format(a=a, b=b, relation=words), facts)
