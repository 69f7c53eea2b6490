"""Training from tars and Parquet as they lie: counted first, each sample once an epoch, the same to the bit after a stop."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import COLOURS, encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from tar_samples import member, put_tar, special, tar_bytes

from softclip_cli import runs
from softclip_cli.config import build
from softclip_cli.data.batches import StepDataset, batches
from softclip_cli.data.decode import Augment
from softclip_cli.data.sampler import EpochSampler, WindowSampler
from softclip_cli.data.sharded import index as index_module
from softclip_cli.data.sharded.corpus import ShardedCorpus, names_shards
from softclip_cli.errors import DataError, UsageError
from softclip_cli.registry import open_model
from softclip_cli.training import checkpoint
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train

COUNTS = (40, 7, 33)  # samples of the three shards


def picture(number: int) -> bytes:
    return encoded(list(COLOURS.values())[number % 4], seed=number)


def captions(number: int) -> list[str]:
    return [f"a {list(COLOURS)[number % 4]} picture {number}", f"something {list(COLOURS)[number % 4]}"]


def sample(number: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    """As img2dataset writes it, and with several captions in the JSON of every third."""
    described = {"key": f"{number:06d}", "caption": captions(number)[0]}
    if number % 3 == 0:
        described["captions"] = captions(number)  # type: ignore[assignment]
    return [
        member(f"{number:06d}.jpg", picture(number)),
        member(f"{number:06d}.json", json.dumps(described)),
        member(f"{number:06d}.txt", captions(number)[0]),
    ]


def expected_captions(number: int) -> list[str]:
    return captions(number) if number % 3 == 0 else captions(number)[:1]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    first = 0
    for shard, count in enumerate(COUNTS):
        put_tar(folder / f"{shard:05d}.tar", [m for n in range(first, first + count) for m in sample(n)])
        first += count
    return folder


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the Hub's layout, in row groups of nine rows, with a validation split and groups."""
    folder = tmp_path_factory.mktemp("parquet")
    for split, shards in (("train", COUNTS), ("validation", (24,))):
        first = 0
        for shard, count in enumerate(shards):
            numbers = range(first, first + count)
            table = pa.table(
                {
                    "image": [{"bytes": picture(n), "path": None} for n in numbers],
                    "captions": [captions(n) for n in numbers],
                    "group": [f"g{n // 2}" if n % 5 else None for n in numbers],
                }
            )
            path = folder / "data" / f"{split}-{shard:05d}-of-{len(shards):05d}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table, path, row_group_size=9)
            first += count
    return folder


def opened(address: Path | str, tmp_path: Path) -> ShardedCorpus:
    return ShardedCorpus.open(str(address), tmp_path / "index")


# What is in the shards


def test_every_sample_of_the_tars_is_found_at_its_place(tars: Path, tmp_path: Path) -> None:
    corpus = opened(tars / "{00000..00002}.tar", tmp_path)
    data = corpus.split("train")
    assert corpus.info["splits"] == {"train": {"rows": sum(COUNTS)}}
    assert "80 samples in 3 tars" in corpus.notes[0]
    rng = np.random.default_rng(0)
    for rows in (list(range(len(data))), rng.permutation(len(data)).tolist(), [79, 0, 79]):
        found = data[rows]
        assert [image["bytes"] for image in found["image"]] == [picture(n) for n in rows]
        assert found["captions"] == [expected_captions(n) for n in rows]
        assert found["problem"] == [""] * len(rows)


def test_every_row_of_the_parquet_files_is_found_at_its_place(parquet: Path, tmp_path: Path) -> None:
    corpus = opened(parquet, tmp_path)
    assert corpus.info["splits"] == {"train": {"rows": sum(COUNTS)}, "val": {"rows": 24}}
    data = corpus.split("train")
    rows = np.random.default_rng(0).permutation(len(data)).tolist()
    found = data[rows]
    assert [image["bytes"] for image in found["image"]] == [picture(n) for n in rows]
    assert found["captions"] == [captions(n) for n in rows]
    assert found["group"] == [f"g{n // 2}" if n % 5 else None for n in rows]
    assert data.select(range(5))["captions"] == [captions(n) for n in range(5)]


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_an_address_is_read_as_a_local_folder(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(form)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), f"/{form}-copy", recursive=True)
    try:
        there, here = opened(f"memory://{form}-copy", tmp_path), opened(folder, tmp_path)
        assert there.fingerprint == here.fingerprint
        rows = [79, 3, 41, 40, 39]
        assert there.split("train")[rows] == here.split("train")[rows]
        memory.rm(f"/{form}-copy", recursive=True)
        assert "FileNotFound" in there.split("train")[[11]]["problem"][0]
    finally:
        if memory.exists(f"/{form}-copy"):
            memory.rm(f"/{form}-copy", recursive=True)


def test_what_cannot_be_used_is_skipped_counted_and_said(tmp_path: Path) -> None:
    members = [
        *sample(0),
        member("1.jpg", picture(1)),
        member("2.txt", "no image"),
        member("3.jpg", b""), member("3.txt", "x"),
        member("4.jpg", picture(4)), member("4.txt", " \n "),
        special("5.jpg", tarfile.SYMTYPE, "/etc/passwd"), member("5.txt", "x"),
        member("6.jpg", picture(6)), member("6.txt", "six"),
    ]  # fmt: skip
    put_tar(tmp_path / "s" / "0.tar", members)
    whole = tar_bytes([m for n in range(10, 16) for m in sample(n)])
    (tmp_path / "s" / "1.tar").write_bytes(whole[: len(whole) // 2])
    corpus = opened(tmp_path / "s", tmp_path)
    said = "\n".join(corpus.notes)
    assert "skipped 5 samples" in said
    for reason in ("1 × no caption", "1 × no image", "1 × empty image", "1 × no usable caption", "1 × refused member"):
        assert reason in said
    assert "1.tar is damaged" in said
    data = corpus.split("train")
    assert 4 <= len(data) < 8
    assert data["captions"][:2] == [expected_captions(0), ["six"]]


def test_an_index_is_kept_until_the_file_changes(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tars, copy)
    before = opened(copy, tmp_path)
    read: list[str] = []
    index_tar = index_module.index_tar
    monkeypatch.setattr(index_module, "index_tar", lambda place, size: read.append(place) or index_tar(place, size))
    assert opened(copy, tmp_path).fingerprint == before.fingerprint
    assert read == []
    put_tar(copy / "00001.tar", [m for n in range(5) for m in sample(n)])
    assert len(opened(copy, tmp_path).split("train")) == 40 + 5 + 33
    assert [Path(place).name for place in read] == ["00001.tar"]


@pytest.mark.parametrize(
    ("make", "address", "message"),
    [
        (lambda d: None, "none/*.tar", r"no tars or Parquet files at"),
        (lambda d: put_tar(d / "0.tar", sample(0)), "{0..3}.tar", r"1\.tar cannot be read"),
        (
            lambda d: put_tar(d / "0.tar", [member("a.jpg", picture(0)), member("a.cls", "3")]),
            "0.tar",
            r"(?s)no sample that can be trained on.*1 × no caption",
        ),
        (lambda d: (d / "0.tar").write_bytes(b"\1" * 2000), "0.tar", r"(?s)no sample.*header"),
        (lambda d: (d / "0.tar.gz").write_bytes(b""), "", "compressed tars"),
        (
            lambda d: pq.write_table(pa.table({"image": ["a.jpg"], "text": ["x"]}), d / "a.parquet"),
            "a.parquet",
            "no encoded images",
        ),
        (
            lambda d: pq.write_table(pa.table({"image": [b"x"], "label": [1]}), d / "a.parquet"),
            "a.parquet",
            "labels but no captions",
        ),
        (lambda d: (d / "a.parquet").write_bytes(b"PAR1"), "a.parquet", "a.parquet"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_reason(make, address: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    make(folder)
    with pytest.raises((DataError, UsageError), match=message):
        opened(folder / address, tmp_path)


def test_what_names_shards_and_what_a_corpus(tars: Path, colour_corpus: Path, tmp_path: Path) -> None:
    assert names_shards(str(tars))
    assert names_shards(f"{tars}/*.tar")
    assert names_shards("s3://bucket/x-{000..010}.tar")
    assert names_shards("missing/0.tar")
    assert not names_shards(str(colour_corpus))
    assert not names_shards(str(tmp_path))
    assert not names_shards("missing")


# The order


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 40)), min_size=1, max_size=30),
    st.integers(1, 20), st.integers(1, 200), st.integers(0, 3),
)  # fmt: skip
def test_windows_show_each_sample_once_an_epoch(blocks, batch, window, seed):
    rows, sizes = np.array([b[0] for b in blocks]), np.array([b[1] for b in blocks])
    size = int(rows.sum())
    if batch > size:
        return
    sampler = WindowSampler(size, batch, seed, rows=rows, bytes=sizes, window=window)
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        seen = np.concatenate([sampler.indices(step) for step in steps])
        assert len(seen) == size - size % batch
        assert len(set(seen.tolist())) == len(seen)
        assert seen.min() >= 0
        assert seen.max() < size
    again = WindowSampler(size, batch, seed, rows=rows, bytes=sizes, window=window)
    last = 2 * sampler.steps_per_epoch - 1
    assert again.indices(last).tolist() == sampler.indices(last).tolist()


def test_windows_are_of_blocks_from_all_over_and_shuffled_inside() -> None:
    rows, sizes = np.full(100, 10), np.full(100, 1000)
    sampler = WindowSampler(1000, 50, 0, rows=rows, bytes=sizes, window=5000)
    touched = {tuple(sorted(set((sampler.indices(step) // 10).tolist()))) for step in range(20)}
    assert all(len(blocks) == 5 for blocks in touched), "a step reads the blocks of one window"
    assert len({block for blocks in touched for block in blocks}) == 100
    first = sampler.indices(0)
    assert np.any(np.diff(np.sort(first // 10)) > 0)
    assert len(set((first[:10] // 10).tolist())) > 2, "the samples of a block do not come one after another"
    assert sampler.indices(0).tolist() != sampler.indices(20).tolist(), "epochs are shuffled anew"
    # One window over everything is a shuffle of everything.
    whole = WindowSampler(1000, 1000, 0, rows=rows, bytes=sizes, window=10**9).indices(0)
    assert abs(np.corrcoef(np.arange(1000), whole)[0, 1]) < 0.1


@pytest.mark.parametrize("form", ["tars", "parquet"])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_processes_and_workers_share_the_epoch_without_repeats_or_gaps(
    form: str, world: int, workers: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = open_model("tiny", seed=0)
    data = opened(request.getfixturevalue(form), tmp_path).split("train")
    # A window of a few small blocks, so that the epoch is made of several.
    sampler = data.sampler(12, 3, 30_000)
    seen = []
    for rank in range(world):
        part = StepDataset(data, sampler, model.preprocess, Augment(), model.tokens, rank=rank, world=world)
        seen.append(list(batches(part, 1, 8, workers)))
    alone = StepDataset(data, data.sampler(12, 3, 30_000), model.preprocess, Augment(), model.tokens)
    for number, step in enumerate(range(1, 8)):
        wanted = alone[step]
        got = [part[number] for part in seen]
        assert torch.equal(torch.cat([batch.image for batch in got]), wanted.image)
        assert torch.equal(torch.cat([batch.index for batch in got]), wanted.index)
        assert torch.equal(torch.cat([batch.group for batch in got]), wanted.group)
        assert wanted.index.tolist() == sampler.indices(step).tolist()
    epoch = np.concatenate([batch.index for step in range(6) for batch in [alone[step]]])
    assert len(set(epoch.tolist())) == 72 == len(epoch)


def test_groups_of_parquet_are_the_same_number_for_the_same_name(parquet: Path, tmp_path: Path) -> None:
    model = open_model("tiny", seed=0)
    data = opened(parquet, tmp_path).split("train")
    batch = StepDataset(data, EpochSampler(80, 80), model.preprocess, None, model.tokens)[0]
    names = [f"g{n // 2}" if n % 5 else f"row {n}" for n in batch.index.tolist()]
    same = torch.tensor([[one == other for other in names] for one in names])
    assert torch.equal(batch.group[:, None] == batch.group[None, :], same)


# Training

SMALL = {
    "data": {"batch_size": 16, "shuffle_window": 1},
    "schedule": {"steps": 9},
    "log": {"every": 1},
    "eval": {"every": 5},
    "checkpoint": {"every": 4, "keep": 9},
    "device": "cpu",
    "precision": "fp32",
}


@pytest.mark.parametrize(("form", "workers"), [("tars", 0), ("parquet", 2)])
def test_resuming_equals_not_stopping(form: str, workers: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In the middle of an epoch: the same metrics and the same weights, bit for bit."""
    address = str(request.getfixturevalue(form))
    made = build(TrainSettings, SMALL, {"data": {"corpus": address, "workers": workers}})
    said: list[str] = []
    whole = train(Plan(made, tmp_path / "whole"), lambda kind, facts: said.append(facts.get("text", "")))
    assert any(("80 samples in 3 tars" if form == "tars" else "train 80, val 24") in line for line in said)
    assert any("no split 'val'" in line for line in said) == (form == "tars")
    cut = tmp_path / "cut"
    train(Plan(made, cut))
    for step in checkpoint.saved_steps(cut / "checkpoints"):
        if step > 4:
            shutil.rmtree(cut / "checkpoints" / checkpoint.folder_name(step))
    train(Plan(made, cut))
    lines = [[line["loss"] for line in runs.Run(path).training] for path in (whole, cut)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 9
    weights = [path / "checkpoints" / checkpoint.folder_name(9) / "model.safetensors" for path in (whole, cut)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_damaged_member_is_replaced_counted_and_named(tmp_path: Path) -> None:
    members = [m for n in range(32) for m in sample(n)]
    members[3 * 5] = member("000005.jpg", picture(5)[:200])
    put_tar(tmp_path / "s" / "0.tar", members)
    made = build(
        TrainSettings, SMALL, {"data": {"corpus": str(tmp_path / "s"), "workers": 0}, "schedule": {"steps": 2}}
    )
    said: list[str] = []
    path = train(Plan(made, tmp_path / "run"), lambda kind, facts: said.append(facts.get("text", "")))
    assert any("row 5" in line for line in said)
    assert runs.Run(path).training[-1]["replaced"] == 1


def test_frozen_towers_train_on_features_of_shards(parquet: Path, tmp_path: Path) -> None:
    layers = {
        "model": {"lock": "image,text"},
        "data": {"corpus": str(parquet), "workers": 0},
        "schedule": {"steps": 12},
    }
    path = train(Plan(build(TrainSettings, SMALL, layers), tmp_path / "run"))
    lines = runs.Run(path).training
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert json.loads((path / "data.json").read_text())["pairs"] == 80


def test_a_limit_takes_the_first_samples(tars: Path, tmp_path: Path) -> None:
    data = opened(tars, tmp_path).split("train").select(range(45))
    assert len(data) == 45
    seen = data.sampler(45, 0, 1 << 20).indices(0)
    assert sorted(seen.tolist()) == list(range(45))


def test_samples_are_those_that_plain_tarfile_reads(tars: Path, tmp_path: Path) -> None:
    data = opened(tars / "00001.tar", tmp_path).split("train")
    with tarfile.open(tars / "00001.tar") as archive:
        images = [
            io.BytesIO(archive.extractfile(info).read()).getvalue()  # type: ignore[union-attr]
            for info in archive.getmembers()
            if info.name.endswith(".jpg")
        ]
    assert [data[row]["image"]["bytes"] for row in range(len(data))] == images


@pytest.mark.parametrize("features", ["live", "stored"])
def test_a_frozen_teacher_teaches_on_shards(tars: Path, tmp_path: Path, features: str) -> None:
    layers = {
        "objective": {"name": "distill", "teacher_model": "tiny"},
        "data": {"corpus": str(tars), "workers": 0, "teacher_features": features, "augment": "none"},
        "schedule": {"steps": 3},
    }
    path = train(Plan(build(TrainSettings, SMALL, layers), tmp_path / "run"))
    assert len(runs.Run(path).training) == 3
