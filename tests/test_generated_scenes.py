"""Scenes, captions and facts: what is drawn can be drawn, what is said is so, and who decides that is checked."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softclip_cli.data.generated import captions, composition, facts, noise, scene, vocabulary
from softclip_cli.errors import DataError

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=150, deadline=None)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def truly_fits(claim: dict, shown: dict) -> bool:
    """The definition of facts.py's docstring, by brute force on plain dictionaries."""
    at_least = {"some": 2, "several": 3}

    def number_holds(claimed: int | str, actual: int) -> bool:
        return actual >= at_least[claimed] if isinstance(claimed, str) else actual == claimed

    objects = shown["objects"]
    if "background" in claim and claim["background"] != shown["background"]:
        return False
    if "total" in claim and not number_holds(claim["total"], sum(entry["count"] for entry in objects)):
        return False
    mentions = claim.get("objects", [])
    for chosen in itertools.permutations(objects, len(mentions)):
        holds = all(
            number_holds(value, entry["count"]) if name == "count" else entry[name] == value
            for mention, entry in zip(mentions, chosen, strict=True)
            for name, value in mention.items()
        )
        if holds and "relation" in claim:
            first, name, second = claim["relation"]
            (ax, ay), (bx, by) = (np.mean(chosen[i]["at"], axis=0) for i in (first, second))
            holds = {
                "left of": bx - ax >= 0.2,
                "right of": ax - bx >= 0.2,
                "above": by - ay >= 0.2,
                "below": ay - by >= 0.2,
                "beside": abs(bx - ax) >= 0.2 > abs(by - ay),
            }[name]
        if holds:
            return True
    return False


@given(seeds)
@quick
def test_objects_lie_inside_the_picture_and_apart(seed):
    shown = scene.sample_scene(rng_of(seed))
    boxes = [(x, y, thing.side / 2) for thing in shown.things for x, y in thing.at]
    for x, y, half in boxes:
        assert min(x, y) - half >= 0 and max(x, y) + half <= 1
    for (ax, ay, a), (bx, by, b) in itertools.combinations(boxes, 2):
        # Bounding boxes; a hundredth of overlap is less than a pixel at 64.
        assert max(abs(ax - bx), abs(ay - by)) >= a + b - 0.01


@given(seeds)
@quick
def test_words_for_a_scene_are_true_by_its_geometry(seed):
    shown = scene.sample_scene(rng_of(seed))
    assert 1 <= len(shown.things) <= 3
    assert (
        len({thing.kind for thing in shown.things})
        == len({thing.colour for thing in shown.things})
        == len(shown.things)
    )
    for thing in shown.things:
        low, high = {"small": (0.24, 0.38), "medium": (0.42, 0.52), "large": (0.58, 0.74)}[thing.size]
        assert low <= thing.side <= high
        for x, y in thing.at:
            assert {"left": x <= 0.4, "middle": 0.43 < x < 0.57, "right": x >= 0.6, "": True}[thing.h]
            assert {"top": y <= 0.4, "middle": 0.43 < y < 0.57, "bottom": y >= 0.6, "": True}[thing.v]


@given(seeds)
@quick
def test_a_scene_survives_its_json(seed):
    shown = scene.sample_scene(rng_of(seed))
    assert scene.Scene.from_json(shown.to_json()) == shown


@given(seeds)
@quick
def test_every_caption_is_true_of_its_scene(seed):
    rng = rng_of(seed)
    shown = scene.sample_scene(rng)
    said = captions.captions_of(rng, shown)
    assert len({caption.text for caption in said}) == 5
    for caption in [*said, *noise.vague_captions(rng, shown), *noise.partial_captions(rng, shown)]:
        assert truly_fits(caption.facts, shown.as_dict()), caption


def colours_said(text: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", text.lower()))
    return {name for name, colour in vocabulary.COLOURS.items() if words & set(colour.words)}


def kinds_said(text: str) -> set[str]:
    found = set()
    for name, kind in vocabulary.KINDS.items():
        if any(re.search(rf"\b{word}\b", text.lower()) for word in (*kind.words, *kind.plurals)):
            found.add(name)
    return found


SIZE_WORDS = {"small": "small", "little": "small", "medium-sized": "medium", "large": "large", "big": "large"}
TEXTURE_WORDS = {"plain": "plain", "striped": "stripe", "dotted": r"spotted|\bdot", "checkered": "check"}


@given(seeds)
@quick
def test_the_facts_are_what_the_words_say(seed):
    rng = rng_of(seed)
    shown = scene.sample_scene(rng)
    for caption in captions.captions_of(rng, shown):
        objects = caption.facts.get("objects", [])
        assert colours_said(caption.text) == {entry["colour"] for entry in objects if "colour" in entry}
        assert kinds_said(caption.text) == {entry["kind"] for entry in objects if "kind" in entry}
        backgrounds = {
            name
            for name, background in vocabulary.BACKGROUNDS.items()
            if re.search(rf"\b({'|'.join(background.words)})\b", caption.text.lower())
        }
        assert backgrounds == ({caption.facts["background"]} if "background" in caption.facts else set())
        said = {SIZE_WORDS[word] for word in re.findall(r"[a-z-]+", caption.text.lower()) if word in SIZE_WORDS}
        assert said == {entry["size"] for entry in objects if "size" in entry}
        said = {name for name, pattern in TEXTURE_WORDS.items() if re.search(pattern, caption.text.lower())}
        assert said == {entry["texture"] for entry in objects if "texture" in entry}
        sides = set(re.findall(r"\b(left|right|top|bottom|upper|lower)\b", caption.text.lower()))
        told = {entry[axis] for entry in objects for axis in "hv" if entry.get(axis, "middle") != "middle"}
        if "relation" not in caption.facts:
            assert {{"upper": "top", "lower": "bottom"}.get(side, side) for side in sides} == told


NUMBER = "an?|one|single|two|three|four|some|several|few"


@given(seeds)
@quick
def test_captions_are_english(seed):
    rng = rng_of(seed)
    shown = scene.sample_scene(rng)
    words = [pair for kind in vocabulary.KINDS.values() for pair in zip(kind.words, kind.plurals, strict=True)]
    singular = {word for word, many in words if word != many}
    plural = {many for word, many in words if word != many}
    for caption in captions.captions_of(rng, shown) + noise.partial_captions(rng, shown):
        text = caption.text.lower().rstrip(".")
        assert not re.search(r"[{}]|  |^\s|\s$|\s,", text), text
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]", text), text  # "a uniform" would be right; no word begins so
        assert len(text.split()) <= 28, text  # well within a text tower of 32 tokens
        nouns = "|".join(sorted(singular | plural, key=len, reverse=True))
        counted = re.sub(
            r"\ba (pair|group) of( (?=two|three|four))?", lambda found: "two " if not found[2] else "", text
        )
        # From an article or number to its noun there are only adjectives.
        adjective = r"(?!(?:of|and|with|that|showing|to|in|on|there|is|are)\b)[a-z-]+ "
        for number, noun in re.findall(rf"\b({NUMBER}) (?:{adjective}){{0,4}}?({nouns})\b", counted):
            assert noun in (singular if number in ("a", "an", "one", "single") else plural), text
        assert not re.search(r"\b(there|here) is (two|three|four|some)\b|\b(there|here) are (an?|one)\b", text), text


def test_fit_matrix_agrees_with_the_definition():
    rng = rng_of(7)
    scenes = [scene.sample_scene(rng) for _ in range(120)]
    scenes += [scene.sample_two(rng) for _ in range(30)]
    claims = [
        c.facts
        for shown in scenes
        for c in (captions.captions_of(rng, shown, 3) + noise.partial_captions(rng, shown)[:2])
    ]
    for shown in scenes[-30:]:
        for edit in composition.EDITS:
            claims += [caption.facts for caption in composition.contrast(rng, shown, edit)]
    claims.append({})
    expected = np.array([[truly_fits(claim, shown.as_dict()) for shown in scenes] for claim in claims])
    assert 0.01 < expected.mean() < 0.5  # the comparison means something
    stored = [facts.facts_json(claim) for claim in claims]
    fitted = facts.fit_matrix(stored, [shown.to_json() for shown in scenes])
    assert fitted.dtype == bool and np.array_equal(fitted, expected)
    assert np.array_equal(facts.fit_matrix(claims[:9], scenes), expected[:9])
    for i, j in itertools.product(range(0, len(claims), 97), range(0, len(scenes), 11)):
        assert facts.fits(claims[i], scenes[j]) is bool(expected[i, j])


def test_fit_matrix_is_the_same_in_blocks(monkeypatch):
    rng = rng_of(3)
    scenes = [scene.sample_scene(rng) for _ in range(20)]
    claims = [captions.captions_of(rng, shown, 1)[0].facts for shown in scenes]
    whole = facts.fit_matrix(claims, scenes)
    monkeypatch.setattr(facts, "BLOCK", 1)
    assert np.array_equal(facts.fit_matrix(claims, scenes), whole)
    assert facts.fit_matrix([], scenes).shape == (0, 20) and facts.fit_matrix(claims, []).shape == (20, 0)


def test_one_caption_fits_different_scenes():
    rng = rng_of(1)
    scenes = [scene.sample_single(rng, "star", "red") for _ in range(5)] + [scene.sample_single(rng, "star", "blue")]
    fitted = facts.fit_matrix(
        [{"objects": [{"kind": "star", "colour": "red"}]}, {"objects": [{"kind": "star"}]}, {}], scenes
    )
    assert fitted.tolist() == [[True] * 5 + [False], [True] * 6, [True] * 6]


@pytest.mark.parametrize(
    "claim",
    [{"objects": [{"kind": "dragon"}]}, {"objects": [{"weight": 3}]}, {"mood": "sad"}, {"background": "plaid"},
     {"objects": [{}, {}, {}, {}]}, {"objects": [{}, {}], "relation": [0, "inside", 1]}],
)  # fmt: skip
def test_unknown_facts_are_refused(claim):
    with pytest.raises(DataError, match=r"unknown|facts about 4 things"):
        facts.fits(json.dumps(claim), scene.sample_single(rng_of(0)))


@given(seeds, st.sampled_from(composition.EDITS))
@quick
def test_a_hard_negative_is_wrong_by_one_edit(seed, edit):
    rng = rng_of(seed)
    shown = scene.sample_two(rng)
    truth, wrong = composition.contrast(rng, shown, edit)
    assert truly_fits(truth.facts, shown.as_dict()) and not truly_fits(wrong.facts, shown.as_dict())
    changed = [(a, b) for a, b in zip(truth.text.split(), wrong.text.split(), strict=True) if a != b]
    words = {word for pair in changed for word in pair} - {"a", "an"}
    if edit == "swap-colour":
        assert words == {thing.colour for thing in shown.things}
        assert {entry["kind"] for entry in wrong.facts["objects"]} == {thing.kind for thing in shown.things}
    elif edit == "swap-relation":
        assert words in ({"left", "right"}, {"above", "below"})
    else:
        name = edit.removeprefix("replace-")
        assert len(words) == 2 and len(words & {getattr(thing, name) for thing in shown.things}) == 1


@pytest.mark.parametrize(("pairs", "share"), [(10, 0.1), (37, 0.3), (1000, 0.3), (50, 1.0), (20, 0.0)])
def test_noise_is_shared_out_exactly(pairs, share):
    plan = noise.plan_noise(pairs, share, 5)
    counts = plan.counts()
    noisy = pairs - counts["clean"]
    assert noisy == round(share * pairs) and sum(counts.values()) == pairs
    assert counts["mismatched"] >= noisy / 2
    mismatched = [index for index in range(pairs) if plan.kind(index) == "mismatched"]
    firsts = [next(plan.sources(index)) for index in mismatched]
    for index in mismatched:
        assert index not in list(plan.sources(index))
    if len(mismatched) > 1:
        assert sorted(firsts) == mismatched  # a permutation among themselves, with no fixed point


def test_noise_falls_differently_for_another_seed():
    assert not np.array_equal(noise.plan_noise(200, 0.5, 1).codes, noise.plan_noise(200, 0.5, 2).codes)
