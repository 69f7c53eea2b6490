"""Captions exchanged on purpose: exactly the share asked for, each to another image, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softclip_cli.data.mismatch import exchange_captions
from softclip_cli.errors import UsageError


@given(st.lists(st.integers(1, 6), min_size=12, max_size=60), st.floats(0.5, 1), st.integers(0, 2**32))
def test_the_share_is_exact_and_no_caption_stays_with_its_image(counts, share, seed):
    made = exchange_captions(np.array(counts), share, seed)
    owner = np.repeat(np.arange(len(counts)), counts)
    assert sorted(made.source) == list(range(len(owner)))
    assert made.mismatched.sum() == round(share * len(owner))
    assert (owner[made.source] != owner)[made.mismatched].all()
    assert (exchange_captions(np.array(counts), share, seed).source == made.source).all()


def test_none_are_exchanged_unless_asked_and_nonsense_is_refused():
    assert not exchange_captions(np.full(10, 5), 0.0, 0).mismatched.any()
    with pytest.raises(UsageError, match="mismatched"):
        exchange_captions(np.array([5]), 0.4, 0)
