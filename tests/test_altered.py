"""Data changed on purpose: nested parts, exchanged captions, the exchanged ones left out; the same in memory and on the disk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softclip_cli.data.altered import alter, altered_split, caption_counts
from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import DataError

COUNTS = st.lists(st.integers(1, 4), min_size=24, max_size=50)


@given(COUNTS, st.floats(0.3, 1), st.floats(0.3, 1), st.integers(0, 2**32))
def test_parts_are_nested_and_exact(counts, one, other, seed):
    counts = np.array(counts)
    small, large = (alter(counts, share=s, mismatched=0, drop=False, seed=seed) for s in sorted((one, other)))
    assert set(small.rows) <= set(large.rows)
    assert len(large.rows) == round(max(one, other) * len(counts)) and (np.diff(large.rows) > 0).all()
    assert not large.mismatched.any()
    starts = np.cumsum(counts) - counts
    own = [starts[row] + i for row in large.rows for i in range(counts[row])]
    assert large.source.tolist() == own


@given(COUNTS, st.floats(0.4, 1), st.floats(0.5, 0.9), st.integers(0, 2**32))
def test_captions_change_places_within_the_part_and_dropping_leaves_only_own_ones(counts, share, mismatched, seed):
    counts = np.array(counts)
    noisy, clean = (alter(counts, share=share, mismatched=mismatched, drop=drop, seed=seed) for drop in (False, True))
    owner = np.repeat(np.arange(len(counts)), counts)
    of = np.repeat(noisy.rows, np.diff(noisy.first))
    assert noisy.mismatched.sum() == round(mismatched * len(of))
    assert (noisy.mismatched == (owner[noisy.source] != of)).all()
    assert set(owner[noisy.source]) <= set(noisy.rows)
    kept = noisy.source[~noisy.mismatched]
    assert clean.source.tolist() == kept.tolist()
    assert (owner[clean.source] == np.repeat(clean.rows, np.diff(clean.first))).all()
    assert (np.diff(clean.first) > 0).all()


def test_a_split_on_the_disk_is_altered_as_the_numbers_say(colour_corpus):
    data = Corpus.open(colour_corpus).split("train")
    change = alter(caption_counts(data), share=0.5, mismatched=0.4, drop=False, seed=3)
    made = altered_split(data, change)
    flat = [text for several in data["captions"][:] for text in several]
    assert len(made) == 48
    for place, row in enumerate(change.rows.tolist()):
        assert made[place]["key"] == data[row]["key"] and made[place]["image"] == data[row]["image"]
        numbers = change.source[change.first[place] : change.first[place + 1]]
        assert made[place]["captions"] == [flat[number] for number in numbers]


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="no sample is left"):
        alter(np.full(10, 1), share=1, mismatched=1, drop=True, seed=0)
