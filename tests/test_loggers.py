"""TensorBoard and Weights & Biases get what metrics.jsonl gets, once, and never stop a run."""

from __future__ import annotations

import importlib.util
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softclip_cli import runs
from softclip_cli.config import build
from softclip_cli.errors import HostError
from softclip_cli.training import loggers
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train

has_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="the extra tensorboard is not installed"
)
has_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")


def settings(corpus: Path, steps: int, names: list[str]) -> TrainSettings:
    small = {
        "data": {"corpus": str(corpus), "batch_size": 16, "workers": 0},
        "schedule": {"steps": 6, "decay": "constant", "warmup": 0},
        "log": {"every": 1, "loggers": names},
        "eval": {"every": 3},
        "checkpoint": {"every": 2},
        "device": "cpu",
        "precision": "fp32",
    }
    return build(TrainSettings, small, {"schedule": {"steps": steps}})


def expected(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What metrics.jsonl says."""
    return {"loss": [(line["step"], line["loss"]) for line in runs.Run(run).training]} | {
        "val/rsum": [(line["step"], line["rsum"]) for line in runs.Run(run).evaluations["val"]]
    }


@has_tensorboard
def test_tensorboard_shows_what_metrics_say_also_after_a_resume(colour_corpus, tmp_path):
    """The second sitting begins at a checkpoint of the first, and no step is there twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = train(Plan(settings(colour_corpus, 4, ["tensorboard"]), tmp_path / "run"))
    damaged = path / "checkpoints" / "step-00000004" / "state.json"
    damaged.write_text("{")  # so that it goes on at step 2
    train(Plan(settings(colour_corpus, 6, ["tensorboard"]), tmp_path / "run"))
    seen = EventAccumulator(str(path / "tensorboard"))
    seen.Reload()
    for name, values in expected(path).items():
        found = [(event.step, event.value) for event in seen.Scalars(name if "/" in name else f"train/{name}")]
        assert [step for step, _ in found] == [step for step, _ in values]
        assert [value for _, value in found] == pytest.approx([value for _, value in values], rel=1e-6)
    assert "train/memory" in seen.Tags()["scalars"]


class Recorder:
    """A logger that keeps what it is told."""

    told: list[tuple[int, dict[str, float]]]
    closed = ""

    def __init__(self, folder: Path, settings: dict[str, Any], first_step: int) -> None:
        type(self).told = []

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.told.append((step, numbers))

    def close(self, state: str) -> None:
        type(self).closed = state


def test_a_logger_hears_metrics_evaluations_and_the_end(colour_corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.KINDS, "wandb", Recorder)
    monkeypatch.setitem(loggers.PACKAGES, "wandb", "json")
    path = train(Plan(settings(colour_corpus, 6, ["wandb"]), tmp_path / "run"))
    for name, values in expected(path).items():
        assert [(step, numbers[name]) for step, numbers in Recorder.told if name in numbers] == values
    assert Recorder.closed == "finished"
    assert not any("step" in numbers or "best" in numbers for _, numbers in Recorder.told)


def test_a_failing_logger_is_said_once_and_the_run_goes_on(colour_corpus, tmp_path, monkeypatch):
    class Broken(Recorder):
        def log(self, step: int, numbers: dict[str, float]) -> None:
            raise ConnectionError("the disk of somebody else is full")

    monkeypatch.setitem(loggers.KINDS, "wandb", Broken)
    monkeypatch.setitem(loggers.PACKAGES, "wandb", "json")
    heard: list[str] = []
    path = train(
        Plan(settings(colour_corpus, 4, ["wandb"]), tmp_path / "run"),
        lambda kind, facts: heard.append(facts["text"]) if kind == "warning" else None,
    )
    assert [text for text in heard if "wandb" in text] == [
        "wandb is left out from here on: ConnectionError: the disk of somebody else is full"
    ]
    assert runs.Run(path).state == "finished"


def test_a_missing_package_is_told_before_anything_starts(colour_corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.PACKAGES, "tensorboard", "no_such_package")
    with pytest.raises(HostError, match=r"pip install 'softclip\[tensorboard\]'") as raised:
        train(Plan(settings(colour_corpus, 4, ["tensorboard"]), tmp_path / "run"))
    assert raised.value.exit_code == 5
    assert not (tmp_path / "run").exists()


@has_wandb
def test_wandb_offline_goes_on_with_the_same_run(colour_corpus, tmp_path, monkeypatch):
    """Two sittings, one id, and each step once: what lies on the disk is what `wandb sync` would send."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    warned: list[str] = []

    def hear(kind: str, facts: dict[str, Any]) -> None:
        if kind == "warning" and "wandb" in facts["text"]:
            warned.append(facts["text"])

    path = train(Plan(settings(colour_corpus, 4, ["wandb"]), tmp_path / "run"), hear)
    (path / "checkpoints" / "step-00000004" / "state.json").write_text("{")
    train(Plan(settings(colour_corpus, 6, ["wandb"]), tmp_path / "run"), hear)
    assert not warned
    sittings = sorted((path / "wandb").glob("offline-run-*"))
    assert len(sittings) == 2
    assert len({folder.name.rsplit("-", 1)[1] for folder in sittings}) == 1
    end = time.monotonic() + 20  # a process of wandb's own writes the files
    while len(steps := [step for folder in sittings for step in logged_steps(folder)]) < 6 and time.monotonic() < end:
        time.sleep(0.2)
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]


def logged_steps(folder: Path) -> list[int]:
    """Steps with a loss in an offline run's file: what `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in records(next(folder.glob("run-*.wandb")).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        names = {item.key or "/".join(item.nested_key) for item in record.history.item}
        if "loss" in names:
            found.append(record.history.step.num)
    return found


def records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, chunks of (checksum, length, kind) and content, behind seven bytes."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block is padding
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
