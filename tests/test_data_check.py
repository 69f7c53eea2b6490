"""`softclip data check`: the rates are what a known clock says, and the verdict follows from them."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import encoded
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.data import rates
from softclip_cli.data.batches import StepDataset
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import Augment, ImageError, Preprocess
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.training.data_check import check_data
from softclip_cli.training.data_verdict import Facts, judge
from softclip_cli.training.settings import TrainSettings

GPU = Facts(
    corpus="corpus",
    device="cuda",
    cores=16,
    workers=4,
    step=3000.0,
    fed=2950.0,
    loading={0: 900.0, 1: 850.0, 4: 3400.0, 8: 6500.0, 16: 9000.0},
    decode=900.0,
    reading=rates.Reading(20_000.0, 800e6, 0.9),
    in_memory=True,
    short_side=256,
    shrink_speed=1.05,
    shrink_bytes=0.95,
)


def test_a_fed_trainer_is_called_fed_and_needs_no_advice():
    found = judge(GPU)
    assert not found.starves and not found.bottleneck and not found.advice
    assert found.lost == pytest.approx(1 - 2950 / 3000)
    assert "fed" in found.text and "2,950 of 3,000" in found.text


def test_too_few_workers_for_a_gpu_are_named_with_the_number_that_suffices():
    found = judge(replace(GPU, workers=1, fed=850.0))
    assert found.starves and found.bottleneck == "decoding"
    assert found.lost == pytest.approx(1 - 850 / 3000)
    assert found.advice[0].startswith("--workers 4:") and len(found.advice) == 1


def test_large_pictures_are_to_be_prepared_smaller_and_more_cores_asked_for_where_all_do_not_suffice():
    found = judge(replace(GPU, step=30_000.0, fed=3400.0, shrink_speed=2.4, shrink_bytes=0.3))
    assert found.advice[0].startswith("--workers 16: measured at 9,000 samples/s, not enough")
    assert "softclip data prepare corpus OUT --short-side 256: decoding 2.4 times as fast" in found.advice[1]
    assert "about 34 cores" in found.advice[2]


def test_a_slow_disk_starves_in_every_epoch_what_does_not_fit_into_memory():
    slow = rates.Reading(100.0, 4e6, 0.95)
    found = judge(replace(GPU, reading=slow, in_memory=False, shrink_bytes=0.3))
    assert found.starves and found.bottleneck == "disk"
    assert found.lost == pytest.approx(1 - 4 * 100 / 3000)
    assert "faster or local disk" in found.advice[0] and "--short-side 256" in found.advice[1]
    kept = judge(replace(GPU, reading=slow))
    assert not kept.starves and "first epoch" in kept.advice[0]
    # A rate that came from memory says nothing about the disk.
    assert not judge(replace(GPU, reading=replace(slow, from_storage=0.0), in_memory=False)).advice


def test_a_cpu_is_not_told_to_start_more_workers():
    found = judge(replace(GPU, device="cpu", cores=2, workers=0, step=300.0, fed=200.0))
    assert found.starves and not any("--workers" in line for line in found.advice)
    assert found.advice


class Clock:
    """Seconds that pass with each look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        ticks = itertools.count()
        monkeypatch.setattr(rates.time, name, lambda: float(next(ticks)))


def test_reading_counts_rows_bytes_and_seconds(colour_corpus, monkeypatch):
    data = Corpus.open(colour_corpus).split("train")
    size = sum(len(image["bytes"]) for image in data["image"])
    for order in ("random", "sequential"):
        Clock(monkeypatch, "perf_counter")
        found = rates.read_rate(data, order, seconds=1000)
        # 96 rows in three parts: looked at the clock at the start, after each part and at the end.
        assert found.samples_per_second == pytest.approx(96 / 4)
        assert found.bytes_per_second == pytest.approx(size / 4)
        assert found.from_storage is None or 0 <= found.from_storage <= 1


def test_decoding_counts_views_and_passes_over_damaged_images(monkeypatch):
    image = encoded((200, 10, 10))
    Clock(monkeypatch, "process_time")
    spec, augment = Preprocess(size=32), Augment()
    # Started at 0, a look after each image, good or damaged: the fifth ends it, after three views, and the rate takes a sixth.
    assert rates.decode_rate([image, image[:100]], spec, augment, seconds=4.5) == pytest.approx(3 / 6)
    with pytest.raises(ImageError):
        rates.decode_rate([image[:100]], spec, augment, seconds=0.1)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_counts_samples_of_whole_batches(colour_corpus, monkeypatch, workers):
    data = Corpus.open(colour_corpus).split("train")
    loader = StepDataset(
        data, EpochSampler(96, 16), Preprocess(size=32), Augment(), lambda texts: torch.zeros(len(texts), 1)
    )
    threads = torch.get_num_threads()
    Clock(monkeypatch, "perf_counter")
    assert rates.loading_rate(loader, workers, seconds=2.5) == pytest.approx(16)
    assert torch.get_num_threads() == threads


def test_what_shrinking_brings_is_measured_on_the_images():
    rng = np.random.default_rng(0)
    images = [encoded(tuple(rng.integers(0, 256, 3)), (640, 480), noise=60, seed=i) for i in range(3)]
    speed, size = rates.shrink_gain(images, Preprocess(size=64), Augment(), 72, seconds=0.4)
    assert size < 0.2 and speed > 1  # 45 times fewer pixels


def test_a_slow_decoder_is_found_to_starve_the_trainer(colour_corpus, monkeypatch):
    view = StepDataset.view

    def slow(self, row, data, rng):
        time.sleep(0.03)
        return view(self, row, data, rng)

    monkeypatch.setattr(StepDataset, "view", slow)
    settings = build(
        TrainSettings, {"data": {"corpus": str(colour_corpus), "batch_size": 32, "workers": 0}, "device": "cpu"}
    )
    found = check_data(Corpus.open(colour_corpus), settings, seconds=0.05)
    assert found["verdict"]["starves"] and found["verdict"]["bottleneck"] == "decoding"
    assert found["training"]["samples_per_second"] < 1 / 0.03
    assert found["decoding"]["samples_per_second_and_core"] > 1 / 0.03


def test_the_command_prints_a_table_or_one_document(colour_corpus):
    run = CliRunner().invoke(
        app, ["data", "check", str(colour_corpus), "--seconds", "0.05", "--batch-size", "16", "--json"]
    )
    assert run.exit_code == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["images"] == 96 and found["batch_size"] == 16 and found["model"] == "tiny"
    assert {entry["workers"] for entry in found["loading"]} >= {0, 1, found["workers"]["count"]}
    assert isinstance(found["verdict"]["starves"], bool)
    plain = CliRunner().invoke(
        app, ["data", "check", str(colour_corpus), "--seconds", "0.05", "--batch-size", "16", "--workers", "1"]
    )
    assert plain.exit_code == 0, plain.stderr
    assert "samples/s" in plain.stdout and "of its time goes to waiting" in plain.stdout
    assert "what training would use: as asked" in plain.stdout


def test_what_cannot_be_checked_ends_with_three_lines(tmp_path, colour_corpus):
    missing = CliRunner().invoke(app, ["data", "check", str(tmp_path / "none")])
    assert missing.exit_code == 3 and "try:" in missing.stderr
    split = CliRunner().invoke(app, ["data", "check", str(colour_corpus), "--split", "trian"])
    assert split.exit_code == 3 and "val" in split.stderr
