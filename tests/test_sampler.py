"""Position in the data is arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softclip_cli.data.batches import local_rows
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import UsageError


@given(st.integers(2, 60), st.integers(1, 60), st.integers(0, 5))
def test_an_epoch_shows_each_sample_at_most_once_and_all_but_the_rest(size, batch, seed):
    if batch > size:
        with pytest.raises(UsageError):
            EpochSampler(size, batch, seed)
        return
    sampler = EpochSampler(size, batch, seed)
    seen = np.concatenate([sampler.indices(step) for step in range(sampler.steps_per_epoch)])
    assert len(set(seen.tolist())) == len(seen) == size - size % batch


def test_a_step_is_the_same_whenever_it_is_asked_for():
    one, other = EpochSampler(50, 8, 1), EpochSampler(50, 8, 1)
    expected = [one.indices(step).tolist() for step in range(30)]
    assert [other.indices(step).tolist() for step in reversed(range(30))] == expected[::-1]
    assert EpochSampler(50, 8, 2).indices(0).tolist() != expected[0]
    assert expected[0] != expected[6], "epochs are shuffled anew"


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_the_global_batch(world):
    sampler = EpochSampler(50, 10, 0)
    parts = [local_rows(sampler, 7, rank, world) for rank in range(world)]
    assert np.concatenate(parts).tolist() == sampler.indices(7).tolist()


def test_a_batch_larger_than_the_data_is_refused_with_a_remedy():
    with pytest.raises(UsageError) as caught:
        EpochSampler(100, 256)
    assert "100 samples" in caught.value.why
    assert "--batch-size" in caught.value.hint
