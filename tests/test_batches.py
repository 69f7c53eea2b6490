"""Batches: what is kept stays within its memory and changes nothing, and the number of workers has its reason."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from softclip_cli import resources
from softclip_cli.data import batches
from softclip_cli.data.batches import StepDataset, _Kept, choose_workers
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import Augment, Preprocess
from softclip_cli.data.sampler import EpochSampler


def dataset(corpus, keep_bytes: int, batch: int = 8) -> StepDataset:
    data = Corpus.open(corpus).split("train")
    return StepDataset(
        data,
        EpochSampler(len(data), batch),
        Preprocess(size=32),
        Augment(flip=0.5),
        lambda texts: torch.tensor([[len(text)] for text in texts]),
        keep_bytes=keep_bytes,
    )


def test_keeping_decoded_images_changes_no_pixel(colour_corpus):
    keeping, plain = dataset(colour_corpus, 1 << 30), dataset(colour_corpus, 0)
    for step in (0, 1, 12, 13, 25):  # over three epochs
        assert torch.equal(keeping[step].image, plain[step].image)
        assert torch.equal(keeping[step].text, plain[step].text)
    assert keeping.kept.images and not plain.kept.images


def test_any_number_of_workers_gives_the_same_batches(colour_corpus):
    made = [list(batches.batches(dataset(colour_corpus, 1 << 30), 3, 9, workers)) for workers in (0, 2)]
    for alone, shared in zip(*made, strict=True):
        assert alone.step == shared.step
        assert torch.equal(alone.image, shared.image)
        assert torch.equal(alone.index, shared.index)


def test_kept_images_stay_within_the_memory_that_all_workers_share(monkeypatch):
    pixels = np.zeros((10, 10, 3), np.uint8)
    for workers, room in ((None, 10), (2, 5), (5, 2)):
        info = SimpleNamespace(num_workers=workers) if workers else None
        monkeypatch.setattr(batches, "get_worker_info", lambda info=info: info)
        kept = _Kept(rows=8, total=10 * pixels.nbytes)
        for row in range(20):
            kept.add(row, pixels)
        assert len(kept.images) == room
        assert kept.get(0) is pixels and kept.get(19) is None


def test_nothing_is_kept_of_a_corpus_of_which_little_would_fit():
    pixels = np.zeros((10, 10, 3), np.uint8)
    kept = _Kept(rows=1_000_000, total=100 * pixels.nbytes)
    kept.add(0, pixels)
    assert not kept.images


@pytest.mark.parametrize(
    ("cores", "device", "processes", "expected"),
    [
        (2, "cpu", 1, 0), (4, "cpu", 1, 1), (16, "cpu", 1, 4), (16, "cpu", 4, 1), (128, "cpu", 1, 8),
        (2, "cuda", 1, 1), (1, "cuda", 1, 1), (8, "cuda", 1, 7), (128, "cuda", 8, 15), (256, "cuda", 8, 16),
    ],
)  # fmt: skip
def test_workers_are_chosen_by_cores_device_and_neighbours(monkeypatch, cores, device, processes, expected):
    monkeypatch.setattr(batches, "usable_cores", lambda: cores)
    monkeypatch.setattr(batches, "what_limits_cores", lambda: "the container may use 2 of 64")
    found, reason = choose_workers(None, device, processes)
    assert found == expected
    assert f"{max(1, cores // processes)} core" in reason and "container" in reason
    assert choose_workers(5, device, processes) == (5, "as asked")


def test_workers_are_no_more_than_the_shared_memory_holds_batches_of(monkeypatch):
    monkeypatch.setattr(batches, "usable_cores", lambda: 16)
    monkeypatch.setattr(batches, "shared_memory_free", lambda: 64 << 20)  # what docker gives
    batch = 16 * 224 * 224 * 3
    found, reason = choose_workers(None, "cuda", 1, batch)
    assert found * (batches.PREFETCH + 1) * batch <= 32 << 20 < (found + 1) * (batches.PREFETCH + 1) * batch
    assert "64 MB of shared memory" in reason and "--shm-size" in reason
    assert choose_workers(None, "cuda", 1, 256 * 224 * 224 * 3)[0] == 0
    monkeypatch.setattr(batches, "shared_memory_free", lambda: None)
    assert choose_workers(None, "cuda", 1, batch)[0] == 15


@pytest.mark.parametrize(("affine", "quota", "usable"), [(8, None, 8), (64, 4.0, 4), (64, 0.5, 1), (2, 16.0, 2), (8, 2.5, 2)])  # fmt: skip
def test_cores_are_those_that_a_container_lets_one_use(monkeypatch, affine, quota, usable):
    monkeypatch.setattr(resources, "affine_cores", lambda: affine)
    monkeypatch.setattr(resources, "cpu_quota", lambda: quota)
    monkeypatch.setattr(resources.os, "cpu_count", lambda: 64)
    assert resources.usable_cores() == usable
    assert bool(resources.what_limits_cores()) == (usable < 64)
