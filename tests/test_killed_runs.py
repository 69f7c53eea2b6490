"""A run killed with SIGKILL at any step and resumed is the run that was never killed, to the bit."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import folder_with, minute
from processes import CommandServer
from safetensors.torch import load_file
from tar_samples import member, put_tar

from softclip_cli.data.corpus import Corpus
from softclip_cli.training import checkpoint

# What is measured of the machine is all that may differ between a run and its repetition: time, and the memory of the process.
MEASURED = {"samples_per_second", "data_wait", "memory"}
STEPS = 14  # six an epoch, with a checkpoint every four: kills come before the first one, in the middle of an epoch, in the next

OBJECTIVES = {
    "psd": ("objective.name=psd", "objective.teacher=ema", "objective.ema_decay=0.9"),
    "albef": ("objective.name=albef", "objective.queue_size=48"),
}
# Every pair of workers, data, objective and accumulation.
CASES = [
    (0, "corpus", "psd", 6),
    (0, "tars", "albef", 0),
    (1, "corpus", "albef", 6),
    (1, "tars", "psd", 0),
    (2, "corpus", "psd", 0),
    (2, "tars", "albef", 6),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that draws random numbers in its forward pass."""
    config = minute()
    config["vision_cfg"] |= {"patch_dropout": 0.3}
    return folder_with(config, tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def data(colour_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pictures as a prepared corpus and as tars."""
    folder = tmp_path_factory.mktemp("tars")
    split = Corpus.open(colour_corpus).split("train")
    for shard in range(3):
        rows = range(shard * 32, shard * 32 + 32)
        put_tar(
            folder / f"{shard}.tar",
            [
                one
                for row in rows
                for one in (
                    member(f"{row:03}.jpg", split[row]["image"]["bytes"]),
                    member(f"{row:03}.json", json.dumps({"caption": split[row]["captions"][0]})),
                )
            ],
        )
    return {"corpus": colour_corpus, "tars": folder}


def command(data: Path, model: Path, out: Path, workers: int, objective: str, micro_batch: int) -> list[object]:
    assignments = (
        *OBJECTIVES[objective],
        "log.every=1",
        "eval.every=7",
        "checkpoint.every=4",
        "checkpoint.keep=9",
        "data.flip=0.5",
        "data.crop_scale=[0.5, 1.0]",
        "data.shuffle_window=1",
    )
    options = [
        "train",
        "--data",
        data,
        "--out",
        out,
        "--steps",
        STEPS,
        "--batch-size",
        16,
        "--micro-batch",
        micro_batch,
    ]
    options += ["--workers", workers, "--device", "cpu", "--precision", "fp32"]
    return [*options, *(part for text in assignments for part in ("--set", text))]


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything that the last checkpoint holds: weights, averages, optimiser, queue."""
    files = sorted((run / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"))
    return {f"{path.stem}: {name}": value for path in files for name, value in load_file(path).items()}


@pytest.mark.parametrize(("workers", "kind", "objective", "micro_batch"), CASES)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    commands: CommandServer,
    model: Path,
    data: dict[str, Path],
    tmp_path: Path,
    workers: int,
    kind: str,
    objective: str,
    micro_batch: int,
) -> None:
    """Metrics but for the measured ones, and every tensor of the last checkpoint. The run that is not killed decodes by itself."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rest = objective, micro_batch
    seed = random.randrange(1 << 32)
    step = random.Random(seed).randrange(2, STEPS - 4)
    print(f"killed at step {step} (seed {seed})")
    first = commands.start(*command(data[kind], model, cut, workers, *rest))
    first.wait_for_step(cut, step)
    first.kill(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, f"it was to be killed at step {step}:\n{first.said}"
    saved = checkpoint.saved_steps(cut / "checkpoints")
    assert STEPS not in saved

    runs = [
        commands.start(*command(data[kind], model, cut, workers, *rest)),
        commands.start(*command(data[kind], model, whole, 0, *rest)),
    ]
    for run in runs:
        assert run.wait() == 0, run.said
    assert ("resuming" in runs[0].said) == bool(saved)
    assert metrics(cut) == metrics(whole)
    one, other = tensors(cut), tensors(whole)
    assert one.keys() == other.keys()
    assert any("queue" in name for name in one) == (objective == "albef")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
