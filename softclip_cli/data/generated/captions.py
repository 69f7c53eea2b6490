"""A scene to captions in varied wording, each with the facts that it asserts. A caption never says what is not so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.data.generated.scene import Scene, Thing, relations_between
from softclip_cli.data.generated.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    NUMBERS,
    SIZES,
    TEXTURES,
    pick,
    pick_weighted,
    read_table,
)

PHRASES = read_table("phrases.toml")
CAPTIONS = 5  # an image


@dataclass(frozen=True)
class Caption:
    """A caption and what it asserts (see facts.py)."""

    text: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Detail:
    """How likely a caption mentions what: probabilities, for a thing's attributes, its place and the background."""

    kind: float
    colour: float
    size: float
    texture: float
    place: float
    background: float


# Kind and colour are nearly always told: they are what a small model can learn in a minute. The rest is told now and then.
RICH = Detail(kind=1.0, colour=1.0, size=0.6, texture=0.8, place=0.5, background=0.4)
USUAL = Detail(kind=0.98, colour=0.96, size=0.25, texture=0.35, place=0.15, background=0.12)
SHORT = Detail(kind=0.95, colour=0.92, size=0.03, texture=0.05, place=0.02, background=0.02)
# With two or three things a caption that mentioned everything would be longer than a text tower reads.
RICH_MANY = Detail(kind=1.0, colour=1.0, size=0.3, texture=0.4, place=0.0, background=0.25)
USUAL_MANY = Detail(kind=0.98, colour=0.95, size=0.12, texture=0.2, place=0.0, background=0.15)
SHORT_MANY = Detail(kind=0.97, colour=0.9, size=0.0, texture=0.0, place=0.0, background=0.0)
LEVELS = ((RICH, RICH_MANY), (USUAL, USUAL_MANY), (USUAL, USUAL_MANY), (USUAL, USUAL_MANY), (SHORT, SHORT_MANY))


@dataclass(frozen=True)
class Mention:
    """A noun phrase for a thing: its words, whether its verb is plural, whether "it" or "they", and what it asserts."""

    text: str
    verb: str
    many: bool
    facts: dict[str, Any]

    @property
    def slots(self) -> dict[str, str]:
        """The words that agree with this phrase in a frame."""
        return {"x": self.text, "is": self.verb}


def captions_of(rng: np.random.Generator, scene: Scene, count: int = CAPTIONS) -> list[Caption]:
    """Different true captions of a scene, from detailed to short, in random order."""
    found: dict[str, Caption] = {}
    order = rng.permutation(count)
    for place in order.tolist():
        levels = LEVELS[place % len(LEVELS)]
        for _ in range(8):
            caption = caption_of(rng, scene, levels[len(scene.things) > 1])
            if caption.text not in found:
                break
        found[caption.text] = caption
    captions = list(found.values())
    return captions + captions[: count - len(captions)]


def caption_of(rng: np.random.Generator, scene: Scene, detail: Detail) -> Caption:
    """One true caption of a scene."""
    if len(scene.things) == 1:
        return _about_one(rng, scene, scene.things[0], detail)
    alone = USUAL if detail is RICH_MANY else SHORT
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    if len(things) == 2:
        form = pick_weighted(rng, {"one": 0.2, "relation": 0.38, "placed": 0.12, "two": 0.3})
    else:
        form = pick_weighted(rng, {"one": 0.17, "relation": 0.2, "two": 0.15, "three": 0.48})
    if form == "one":
        return _about_one(rng, scene, things[0], alone)
    if form == "relation":
        return _about_relation(rng, scene, things[0], things[1], detail)
    if form == "placed":
        return _about_places(rng, scene, things[0], things[1], detail)
    return _about_several(rng, scene, things[: 2 if form == "two" else 3], detail)


def mention_of(rng: np.random.Generator, thing: Thing, mentioned: Collection[str]) -> Mention:
    """A noun phrase with its article or number.

    Args:
        thing: what is named.
        mentioned: which of kind, colour, size and texture are told; the count always is, at least as "some".
    """
    facts: dict[str, Any] = {
        name: getattr(thing, name) for name in ("kind", "colour", "size", "texture") if name in mentioned
    }
    plural = thing.count > 1
    named = KINDS[thing.kind] if "kind" in mentioned else None
    if named is None:
        noun = pick(rng, PHRASES["nameless"]["plurals" if plural else "words"])
    else:
        noun = _usually_first(rng, named.plurals if plural else named.words)
    before: list[str] = []
    after: list[str] = []
    if "size" in mentioned:
        before.append(pick(rng, SIZES[thing.size].words))
    if "texture" in mentioned:
        texture = TEXTURES[thing.texture]
        if texture.after and rng.random() < 0.35:
            after.append(pick(rng, texture.after))
        else:
            before.append(_usually_first(rng, texture.before))
    if "colour" in mentioned:
        colour = _usually_first(rng, COLOURS[thing.colour].words)
        if not after and rng.random() < 0.06:
            after.append(f"in {colour}")
        else:
            before.append(colour)
    phrase = " ".join([*before, noun, *after])
    text, verb, facts["count"] = _counted(rng, thing.count, phrase)
    return Mention(text, verb, plural, facts)


def with_article(phrase: str) -> str:
    """The phrase with its indefinite article: every word that words.toml begins with a vowel also sounds so."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def partial_caption(rng: np.random.Generator, scene: Scene) -> Caption:
    """A true caption that tells one unspecific part only: a colour, a size, a texture, how many, or the background."""
    frames = PHRASES["partial"]
    thing = pick(rng, scene.things)
    part = pick_weighted(rng, {"colour": 0.35, "size": 0.15, "texture": 0.15, "total": 0.2, "background": 0.15})
    if part == "texture" and thing.texture != "plain":
        word = pick(rng, TEXTURES[thing.texture].before)
        return _finished(
            rng, pick(rng, frames["texture"]).format(texture=word), {"objects": [{"texture": thing.texture}]}
        )
    if part == "total":
        return _partial_total(rng, scene.total)
    if part == "background":
        word = pick(rng, BACKGROUNDS[scene.background].words)
        return _finished(
            rng, pick(rng, PHRASES["background"]["alone"]).format(bg=word), {"background": scene.background}
        )
    if part == "size" and thing.size != "medium":
        mention = mention_of(rng, thing, ("size",))
        return _finished(rng, mention.text, {"objects": [mention.facts]})
    if rng.random() < 0.5:
        mention = mention_of(rng, thing, ("colour",))
        return _finished(rng, mention.text, {"objects": [mention.facts]})
    word = _usually_first(rng, COLOURS[thing.colour].words)
    return _finished(rng, pick(rng, frames["colour"]).format(colour=word), {"objects": [{"colour": thing.colour}]})


def vague_caption(rng: np.random.Generator) -> Caption:
    """A caption that says nothing about the picture: its facts are empty."""
    text = pick(rng, PHRASES["vague"]["captions"])
    return Caption(text.format(n=int(rng.integers(100, 10_000))), {})


def _partial_total(rng: np.random.Generator, total: int) -> Caption:
    frames, names = PHRASES["partial"], PHRASES["nameless"]
    which = int(rng.integers(len(names["words"])))
    said: Any = total
    if total == 1:
        frame = pick(rng, frames["total_one"])
    elif rng.random() < 0.5:
        frame = pick(rng, frames["total_many"])
    else:
        said = "several" if total >= 3 and rng.random() < 0.6 else "some"
        frame = pick(rng, frames[said])
    text = frame.format(shape=names["words"][which], shapes=names["plurals"][which], number=NUMBERS[total])
    return _finished(rng, text, {"total": said})


def _about_one(rng: np.random.Generator, scene: Scene, thing: Thing, detail: Detail) -> Caption:
    mention = mention_of(rng, thing, _mentioned(rng, thing, detail))
    facts: dict[str, Any] = {"objects": [mention.facts]}
    place = _place_of(rng, thing) if rng.random() < detail.place else None
    background = rng.random() < detail.background
    text, whole = mention.text, False  # whole: already a sentence or a title that no frame may stand around
    if place is not None:
        words, where = place
        mention.facts.update(where)
        if rng.random() < 0.25:
            text, whole = pick(rng, PHRASES["place"]["before"]).format(place=words, **mention.slots), True
        else:
            text = f"{text} {words}"
    if background:
        text, whole = _on_background(rng, scene, text, mention.verb, whole, facts)
    return _finished(rng, text if whole else _framed(rng, text, mention.verb), facts)


def _about_several(rng: np.random.Generator, scene: Scene, things: list[Thing], detail: Detail) -> Caption:
    mentions = [mention_of(rng, thing, _mentioned(rng, thing, detail)) for thing in things]
    facts: dict[str, Any] = {"objects": [mention.facts for mention in mentions]}
    frames = PHRASES["together"]["two" if len(things) == 2 else "three"]
    everything = len(things) == len(scene.things)
    counted = everything and rng.random() < 0.12
    frame = frames[0] if counted else pick(rng, frames)
    text = frame.format(**{name: mention.text for name, mention in zip("abc", mentions, strict=False)})
    verb = mentions[0].verb
    if counted:
        shapes = pick(rng, PHRASES["nameless"]["plurals"])
        text = pick(rng, PHRASES["together"]["counted"]).format(total=NUMBERS[scene.total], shapes=shapes, x=text)
        facts["total"], verb = scene.total, "are"
    return _closed(rng, scene, text, verb, detail, facts)


def _about_relation(rng: np.random.Generator, scene: Scene, first: Thing, second: Thing, detail: Detail) -> Caption:
    relations = relations_between(first.centre, second.centre)
    a = mention_of(rng, first, _mentioned(rng, first, detail))
    b = mention_of(rng, second, _mentioned(rng, second, detail))
    relation = pick(rng, relations)
    frame = pick(rng, PHRASES["relation"][relation])
    agreeing = {"b_their": "their", "b_them": "them"} if b.many else {"b_their": "its", "b_them": "it"}
    text = frame.format(a=a.text, b=b.text, **agreeing)
    verb = a.verb if frame.startswith("{a}") else b.verb
    return _closed(rng, scene, text, verb, detail, {"objects": [a.facts, b.facts], "relation": [0, relation, 1]})


def _about_places(rng: np.random.Generator, scene: Scene, first: Thing, second: Thing, detail: Detail) -> Caption:
    places = [_place_of(rng, thing) for thing in (first, second)]
    if places[0] is None or places[1] is None or places[0][1] == places[1][1]:
        return _about_relation(rng, scene, first, second, detail)
    mentions = [mention_of(rng, thing, _mentioned(rng, thing, detail)) for thing in (first, second)]
    slots = {}
    for name, mention, place in zip("ab", mentions, places, strict=True):
        assert place is not None
        mention.facts.update(place[1])
        slots[name], slots[f"{name}_place"] = mention.text, place[0]
    text = pick(rng, PHRASES["together"]["placed"]).format(**slots)
    return _finished(rng, _framed(rng, text, mentions[0].verb), {"objects": [mention.facts for mention in mentions]})


def _closed(
    rng: np.random.Generator, scene: Scene, text: str, verb: str, detail: Detail, facts: dict[str, Any]
) -> Caption:
    whole = False
    if rng.random() < detail.background:
        text, whole = _on_background(rng, scene, text, verb, whole, facts)
    return _finished(rng, text if whole else _framed(rng, text, verb), facts)


def _on_background(
    rng: np.random.Generator, scene: Scene, text: str, verb: str, whole: bool, facts: dict[str, Any]
) -> tuple[str, bool]:
    """The text with its background, and whether it is now a sentence of its own."""
    facts["background"] = scene.background
    frames = PHRASES["background"]
    before = not whole and ":" not in text and rng.random() < 0.2
    frame = pick(rng, frames["before" if before else "after"])
    word = _usually_first(rng, BACKGROUNDS[scene.background].words)
    return frame.format(x=text, bg=word, **{"is": verb}), whole or before


def _framed(rng: np.random.Generator, text: str, verb: str) -> str:
    form = pick_weighted(rng, {"bare": 0.45, "noun": 0.3, "sentence": 0.25})
    return pick(rng, PHRASES["frames"][form]).format(x=text, **{"is": verb})


def _finished(rng: np.random.Generator, text: str, facts: dict[str, Any]) -> Caption:
    if rng.random() < 0.2:
        text = text[0].upper() + text[1:] + "."
    return Caption(text, facts)


def _mentioned(rng: np.random.Generator, thing: Thing, detail: Detail) -> list[str]:
    mentioned = [name for name in ("kind", "colour") if rng.random() < getattr(detail, name)] or ["kind"]
    # What is neither large nor small, and what has no texture, people rarely say.
    if rng.random() < detail.size * (0.25 if thing.size == "medium" else 1):
        mentioned.append("size")
    if rng.random() < detail.texture * (0.12 if thing.texture == "plain" else 1):
        mentioned.append("texture")
    return mentioned


def _place_of(rng: np.random.Generator, thing: Thing) -> tuple[str, dict[str, str]] | None:
    """Words for where a thing is, and what they assert; None where no words would be true."""
    h, v = thing.h, thing.v
    names: list[tuple[str, dict[str, str]]] = []
    if h in ("left", "right"):
        names.append((h, {"h": h}))
    if v in ("top", "bottom"):
        names.append((v, {"v": v}))
    if len(names) == 2 and rng.random() < 0.6:
        names = [(f"{h} {v}", {"h": h, "v": v})]
    if h == v == "middle":
        names.append(("middle", {"h": h, "v": v}))
    if not names:
        return None
    name, where = pick(rng, names)
    return pick(rng, PHRASES["place"][name]), where


def _counted(rng: np.random.Generator, count: int, phrase: str) -> tuple[str, str, Any]:
    """The phrase with its article or number, the verb that agrees with it, and the count that it asserts."""
    form = rng.random()
    if count == 1:
        if form < 0.8:
            return with_article(phrase), "is", 1
        return (f"one {phrase}", "is", 1) if form < 0.92 else (f"a single {phrase}", "is", 1)
    if form < 0.12:
        return f"some {phrase}", "are", "some"
    if form < 0.24 and count == 2:
        return f"a pair of {phrase}", "is", 2
    if form < 0.20:
        return f"a group of {NUMBERS[count]} {phrase}", "is", count
    return f"{NUMBERS[count]} {phrase}", "are", count


def _usually_first(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """The canonical word, and one time in six another one where there is one."""
    if len(words) > 1 and rng.random() < 1 / 6:
        return words[1 + int(rng.random() * (len(words) - 1))]
    return words[0]
