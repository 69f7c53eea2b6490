"""Towers through torch.compile, and batches on their way to a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

from softclip_cli.config import build
from softclip_cli.data.batches import Batch
from softclip_cli.data.text import Tokenize
from softclip_cli.errors import HostError
from softclip_cli.registry import open_model
from softclip_cli.training.device import choose_compile
from softclip_cli.training.encoder import TowerEncoder
from softclip_cli.training.prefetch import ahead
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train


def run(corpus: Path, out: Path, compiled: str) -> tuple[list[float], set[str]]:
    """Losses, and the names in the checkpoint."""
    settings = build(
        TrainSettings,
        {
            "data": {"corpus": str(corpus), "batch_size": 16, "workers": 0},
            "objective": {"name": "psd", "teacher": "ema"},
            "schedule": {"steps": 3},
            "log": {"every": 1},
            "precision": "fp32",
            "device": "cpu",
            "compile": compiled,
        },
    )
    path = train(Plan(settings, out))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    newest = sorted((path / "checkpoints").glob("step-*"))[-1]
    with safe_open(newest / "model.safetensors", "pt") as file:
        return [line["loss"] for line in lines if "loss" in line], set(file.keys())


def test_compiled_towers_train_to_the_same_losses_under_the_same_names(colour_corpus, tmp_path, monkeypatch):
    """What dynamo makes of the towers, without the minutes that generating code takes."""
    used = []
    stock = torch.compile

    def compile_(function, **options):
        used.append(function.__name__)
        return stock(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_)
    plain, names = run(colour_corpus, tmp_path / "plain", "never")
    assert not used
    compiled, same_names = run(colour_corpus, tmp_path / "compiled", "always")
    assert used == ["image", "text"] * 2  # the student's and its average's
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert same_names == names


def test_a_compiler_that_fails_is_no_bug_of_softclip(monkeypatch):
    def backend(graph, inputs):
        raise OSError("no compiler")

    stock = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: stock(function, backend=backend, **options))
    model = open_model("tiny")
    encoder, size = TowerEncoder(model, torch.float32, compiled=True), model.preprocess.size
    with pytest.raises(HostError) as seen:
        encoder(torch.zeros(2, size, size, 3, dtype=torch.uint8), torch.ones(2, 8, dtype=torch.int64))
    assert "no compiler" in seen.value.why and seen.value.hint == "--set compile=never"


def test_compiling_is_for_gpus_unless_asked():
    assert choose_compile("always", torch.device("cpu")) == (True, "as asked")
    assert choose_compile("never", torch.device("cuda")) == (False, "as asked")
    chosen, why = choose_compile("auto", torch.device("cpu"))
    assert not chosen and "cpu" in why


@pytest.mark.parametrize("step", [8, 16])
def test_lengths_of_texts_are_few(step):
    tokenize = Tokenize(open_clip.get_tokenizer("ViT-B-32"), step=step)
    widths = {tokenize([" ".join(["dog"] * count)]).shape[1] for count in range(1, 76)}
    assert widths == set(range(step, 77, step)) | {77}


def batch(step: int) -> Batch:
    numbers = torch.from_numpy(np.random.default_rng(step).integers(0, 99, (4, 8)))
    return Batch(step, numbers.to(torch.uint8), numbers, numbers[:, 0], numbers[:, 1], numbers[:, 2])


def test_batches_for_a_cpu_go_as_they_are():
    made = [batch(step) for step in range(3)]
    assert [id(one) for one in ahead(iter(made), torch.device("cpu"))] == [id(one) for one in made]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_arrive_whole():
    device = torch.device("cuda")
    for step, moved in enumerate(ahead((batch(step).pin_memory() for step in range(9)), device)):
        assert moved.image.is_cuda and not moved.index.is_cuda
        torch.cuda._sleep(10_000_000)
        for got, wanted in zip(moved.tensors(), batch(step).tensors(), strict=True):
            assert torch.equal(got.cpu(), wanted)
