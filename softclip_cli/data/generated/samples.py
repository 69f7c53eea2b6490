"""The samples of every split, each a function of plan, split and index alone: any worker can make any of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from softclip_cli.data.corpus import Record
from softclip_cli.data.generated.captions import Caption, captions_of
from softclip_cli.data.generated.composition import EDITS, contrast
from softclip_cli.data.generated.draw import SHIFTS, draw, encode
from softclip_cli.data.generated.facts import facts_json, fit_matrix
from softclip_cli.data.generated.noise import NoisePlan, partial_captions, plan_noise, vague_captions
from softclip_cli.data.generated.scene import Scene, sample_scene, sample_single, sample_two
from softclip_cli.data.generated.vocabulary import CLASS_NAMES, COLOUR_NAMES, KIND_NAMES

# A split's place here is part of its seeds: append, never reorder. The shift splits share the scenes of `test`.
SEEDED = ("train", "val", "test", "probe", "composition")
SHIFT_SPLITS = {f"shift-{style}": style for style in SHIFTS}
SMALLEST_LABELLED = 0.34  # side of the one object of a labelled picture, at least a third of the picture's
Place = tuple[str, int]  # split, index
SCENE, CAPTION = 0, 1  # streams of randomness, so that a scene's captions can be made without making its picture


@dataclass(frozen=True)
class Plan:
    """Everything that decides the content of a generated corpus.

    Attributes:
        pairs: size of `train`.
        noise: share of noisy pairs in `train`.
        seed: of all randomness.
        image_size: side of the pictures in pixels.
        per_class: pictures of each kind × colour in `test`.
    """

    pairs: int
    noise: float
    seed: int
    image_size: int = 64
    per_class: int = 16

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of every split, in the order in which they are written."""
        classes = len(CLASS_NAMES)
        sizes = {
            "train": self.pairs,
            "val": min(1000, max(200, self.pairs // 20)),
            "test": classes * self.per_class,
            "probe": classes * self.per_class,
            "composition": classes * self.per_class // 2,
        }
        return sizes | dict.fromkeys(SHIFT_SPLITS, classes * ((self.per_class + 1) // 2))

    @property
    def noise_plan(self) -> NoisePlan:
        """Which pairs of `train` are noisy, and how."""
        return plan_noise(self.pairs, self.noise, self.seed)


def make_samples(plan: Plan, places: list[Place]) -> list[Record]:
    """The records of some samples, with the further columns in `extra`.

    Args:
        plan: of the corpus.
        places: split and index of each.
    """
    return [_MAKERS.get(split, _labelled)(plan, split, index) for split, index in places]


def key_of(split: str, index: int) -> str:
    """A sample's key: its split and place."""
    return f"{split}-{index:06d}"


def _rng(plan: Plan, split: str, index: int, stream: int) -> np.random.Generator:
    # The first number keeps these seeds apart from the noise plan's.
    return np.random.default_rng((plan.seed, 1 + SEEDED.index(split), index, stream))


def _captioned(scene: Scene, captions: list[Caption]) -> dict[str, Any]:
    return {"scene": scene.to_json(), "caption_facts": [facts_json(caption.facts) for caption in captions]}


def _pair(plan: Plan, split: str, index: int) -> Record:
    """A pair of `train`, with its noise, or of `val`, clean."""
    scene = sample_scene(_rng(plan, split, index, SCENE))
    rng = _rng(plan, split, index, CAPTION)
    noise = plan.noise_plan.kind(index) if split == "train" else "clean"
    source = index
    if noise == "mismatched":
        source, captions = _foreign_captions(plan, split, index, scene)
    elif noise == "vague":
        captions = vague_captions(rng, scene)
    elif noise == "partial":
        captions = partial_captions(rng, scene)
    else:
        captions = captions_of(rng, scene)
    extra = {"noise": noise, "source_key": key_of(split, source), **_captioned(scene, captions)}
    return Record(
        key=key_of(split, index),
        image=encode(draw(scene, plan.image_size)),
        captions=[caption.text for caption in captions],
        extra=extra,
    )


def _foreign_captions(plan: Plan, split: str, index: int, scene: Scene) -> tuple[int, list[Caption]]:
    """The first source none of whose captions happens to fit the scene, or the one with the fewest that do."""
    best: tuple[int, int, list[Caption]] | None = None
    for source in plan.noise_plan.sources(index):
        other = sample_scene(_rng(plan, split, source, SCENE))
        captions = captions_of(_rng(plan, split, source, CAPTION), other)
        fitting = int(fit_matrix([caption.facts for caption in captions], [scene]).sum())
        if best is None or fitting < best[0]:
            best = (fitting, source, captions)
        if fitting == 0:
            break
    assert best is not None  # a corpus has at least two pairs
    return best[1], best[2]


@lru_cache(maxsize=2 * len(CLASS_NAMES))
def _class_scenes(plan: Plan, split: str, label: int) -> tuple[Scene, ...]:
    """Scenes of one object of a class, no two of them alike in size, texture, place and background."""
    kind, colour = KIND_NAMES[label // len(COLOUR_NAMES)], COLOUR_NAMES[label % len(COLOUR_NAMES)]
    rng = _rng(plan, split, label, SCENE)
    found: dict[tuple[str, ...], Scene] = {}
    while len(found) < plan.per_class:
        scene = sample_single(rng, kind, colour, smallest=SMALLEST_LABELLED)
        thing = scene.things[0]
        found.setdefault((thing.size, thing.texture, thing.h, thing.v, scene.background), scene)
    return tuple(found.values())


def _labelled(plan: Plan, split: str, index: int) -> Record:
    """A labelled picture of one object: of `test`, of `probe`, or of `test` redrawn under a shift."""
    seeded = "test" if split in SHIFT_SPLITS else split
    # Class by class in turn: every prefix of a whole number of rounds is balanced, which the shift splits use.
    label, number = index % len(CLASS_NAMES), index // len(CLASS_NAMES)
    scene = _class_scenes(plan, seeded, label)[number]
    captions = captions_of(_rng(plan, seeded, index, CAPTION), scene)
    kind, colour = divmod(label, len(COLOUR_NAMES))
    extra = {"label_kind": kind, "label_colour": colour, "source_key": key_of(seeded, index)}
    return Record(
        key=key_of(split, index),
        image=encode(draw(scene, plan.image_size, SHIFT_SPLITS.get(split, "everyday"))),
        captions=[caption.text for caption in captions],
        label=label,
        extra=extra | _captioned(scene, captions),
    )


def _composed(plan: Plan, split: str, index: int) -> Record:
    """A picture of two objects with its true caption and a hard negative."""
    scene = sample_two(_rng(plan, split, index, SCENE))
    edit = EDITS[index % len(EDITS)]
    truth, wrong = contrast(_rng(plan, split, index, CAPTION), scene, edit)
    extra = {"hard_negatives": [wrong.text], "negative_facts": [facts_json(wrong.facts)], "edit": edit}
    return Record(
        key=key_of(split, index),
        image=encode(draw(scene, plan.image_size)),
        captions=[truth.text],
        extra=extra | _captioned(scene, [truth]),
    )


_MAKERS = {"train": _pair, "val": _pair, "composition": _composed}
