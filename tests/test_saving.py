"""Checkpoints beside the training: exact, in order, one at a time, and no failure lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from softclip_cli import runs
from softclip_cli.config import build
from softclip_cli.errors import HostError, Interrupted
from softclip_cli.registry import open_model
from softclip_cli.training import checkpoint, saving
from softclip_cli.training.distributed import World
from softclip_cli.training.saving import CheckpointWriter, Written, copied
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare, train

SMALL = {
    "model": {"reference": "tiny"},
    "data": {"batch_size": 16, "workers": 0},
    "schedule": {"steps": 4},
    "log": {"every": 1},
    "eval": {"every": 100},
    "checkpoint": {"every": 1, "keep": 9},
    "device": "cpu",
    "precision": "fp32",
}


def settings(corpus: Path, **layers: dict) -> TrainSettings:
    return build(TrainSettings, SMALL, {"data": {"corpus": str(corpus)}}, layers)


class Slow:
    """`checkpoint.save` that waits until it is let go, and notes what happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.began, self.log = threading.Event(), threading.Event(), []
        self.threads: set[str] = set()
        original = checkpoint.save

        def save(folder: Path, step: int, *rest: Any) -> Path:
            self.log.append(f"begin {step}")
            self.threads.add(threading.current_thread().name)
            self.began.set()
            assert self.go.wait(60)
            path = original(folder, step, *rest)
            self.log.append(f"end {step}")
            return path

        monkeypatch.setattr(saving.checkpoint, "save", save)


def files(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": open_model("tiny", seed=0).net.state_dict(), "objective": {"x": torch.full((3,), value)}}


@pytest.fixture
def written(tmp_path: Path) -> tuple[CheckpointWriter, list[Written]]:
    told: list[Written] = []
    return CheckpointWriter(tmp_path / "checkpoints", open_model("tiny", seed=0), 2, told.append), told


def test_a_checkpoint_holds_the_step_it_is_of_though_training_goes_on(written, monkeypatch):
    writer, told = written
    slow = Slow(monkeypatch)
    content = files(1.0)
    writer.save(1, content, {})
    assert slow.began.wait(60)
    writer.poll()  # not written yet: nothing to tell, nothing to wait for
    assert told == []
    content["objective"]["x"].fill_(2.0)
    with torch.no_grad():
        content["model"]["logit_scale"].fill_(77.0)
    slow.go.set()
    writer.finish()
    assert [entry.step for entry in told] == [1]
    path = told[0].path
    assert load_file(path / "objective.safetensors")["x"].tolist() == [1.0] * 3
    assert float(load_file(path / "model.safetensors")["logit_scale"]) < 10
    assert checkpoint.damage(path) == ""
    assert slow.threads == {"checkpoint-1"}


def test_one_at_a_time_and_the_memory_of_one(written, monkeypatch):
    """The second waits before it copies: never more than one set of copies."""
    writer, told = written
    slow = Slow(monkeypatch)
    copies: list[int] = []
    monkeypatch.setattr(saving, "copied", lambda content: copies.append(len(slow.log)) or copied(content))
    writer.save(1, files(1.0), {})
    second = threading.Thread(target=writer.save, args=(2, files(2.0), {}))
    second.start()
    time.sleep(0.2)
    assert slow.log == ["begin 1"]
    assert copies == [0]
    slow.go.set()
    second.join()
    writer.finish()
    assert slow.log == ["begin 1", "end 1", "begin 2", "end 2"]
    assert copies == [0, 2]
    assert [entry.step for entry in told] == [1, 2]


def test_best_and_pruning_keep_their_order(written):
    writer, told = written
    for step, best in ((1, ("rsum", 5.0)), (2, None), (3, None), (4, None)):
        writer.save(step, files(float(step)), {}, best)
    writer.finish()
    assert checkpoint.saved_steps(writer.folder) == [1, 3, 4]
    assert checkpoint.read_best(writer.folder) == {"step": 1, "metric": "rsum", "value": 5.0}
    assert [entry.best for entry in told] == [True, False, False, False]


def test_copies_share_nothing_and_lie_in_order():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    made = copied({"a": {"x": weight, "y": weight[:2], "z": torch.tensor(3)}})["a"]
    assert made["x"].is_contiguous()
    assert torch.equal(made["x"], weight)
    assert torch.equal(made["y"], weight[:2])
    assert len({tensor.untyped_storage().data_ptr() for tensor in made.values()}) == 3
    assert made["x"].data_ptr() != weight.data_ptr()


def test_what_two_files_share_is_copied_once_but_never_within_a_file():
    weight = torch.randn(4, 3)
    made = copied(
        {"a": {"x": weight, "tied": weight}, "b": {"x": weight, "part": weight[:2]}, "c": {"empty": weight[:0]}}
    )
    assert made["b"]["x"] is made["a"]["x"]
    assert made["a"]["tied"].data_ptr() != made["a"]["x"].data_ptr()
    assert torch.equal(made["a"]["tied"], weight)
    assert torch.equal(made["b"]["part"], weight[:2])
    assert made["c"]["empty"].shape == (0, 3)


def test_averaged_weights_of_a_checkpoint_are_those_of_a_swap(colour_corpus, tmp_path):
    """Read in their place, they are what the model has while the averaged weights are swapped in."""
    for lock in ("", "image,text"):
        objective = {"name": "psd", "teacher": "ema", "ema_decay": 0.5}
        made = prepare(
            Plan(settings(colour_corpus, objective=objective, model={"lock": lock}), tmp_path / f"run{lock}"), World()
        )
        made.model.train()
        for batch in made.source(0, 3):
            made.step(batch, False)
        assert made.ema is not None
        with made.ema.swapped_into(made.encoder.module):
            wanted = {name: tensor.clone() for name, tensor in made.model.net.state_dict().items()}
        found = made.state.tensors()["ema"]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert any(not torch.equal(found[name], t) for name, t in made.model.net.state_dict().items())


def test_saving_beside_gives_the_same_run_as_saving_in_between(colour_corpus, tmp_path, monkeypatch):
    """With an EMA whose weights are saved as the model's: every file of every checkpoint, byte for byte."""
    made = settings(
        colour_corpus,
        objective={"name": "psd", "teacher": "ema", "ema_decay": 0.5},
        eval={"weights": "ema", "every": 2},
    )
    beside = train(Plan(made, tmp_path / "beside"))
    original = CheckpointWriter.save

    def in_between(self: CheckpointWriter, *args: Any) -> None:
        original(self, *args)
        self.finish()

    monkeypatch.setattr(CheckpointWriter, "save", in_between)
    between = train(Plan(made, tmp_path / "between"))
    names = sorted(path.relative_to(beside) for path in beside.glob("checkpoints/*/*"))
    assert len(names) >= 4 * 7
    for name in names:
        if name.name != "state.json":
            assert (beside / name).read_bytes() == (between / name).read_bytes(), name


def test_everything_is_on_the_disk_when_training_returns(colour_corpus, tmp_path, monkeypatch):
    original = checkpoint.save

    def late(*args: Any) -> Path:
        time.sleep(0.3)
        return original(*args)

    monkeypatch.setattr(saving.checkpoint, "save", late)
    path = train(Plan(settings(colour_corpus, checkpoint={"every": 0}), tmp_path / "run"))
    assert checkpoint.damage(path / "checkpoints" / "step-00000004") == ""
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


@pytest.mark.parametrize("ended", ["signal", "bug", "second Ctrl-C"])
def test_what_is_being_written_is_completed_whatever_ends_the_run(colour_corpus, tmp_path, monkeypatch, ended):
    """The thread is let go only when the run is ending."""
    made = prepare(Plan(settings(colour_corpus, checkpoint={"every": 2}), tmp_path / "run"), World())
    slow = Slow(monkeypatch)
    original, finish = made.step, made.writer.finish

    def step(batch: Any, log: bool) -> Any:
        if made.done == 2:
            assert slow.began.wait(60)
            if ended == "bug":
                raise ZeroDivisionError("a bug")
            if ended == "second Ctrl-C":
                raise KeyboardInterrupt
            import signal

            signal.raise_signal(signal.SIGTERM)
        return original(batch, log)

    monkeypatch.setattr(made, "step", step)
    monkeypatch.setattr(made.writer, "finish", lambda: (slow.go.set() if made.done >= 2 else None, finish()))
    with pytest.raises({"signal": Interrupted, "bug": ZeroDivisionError, "second Ctrl-C": KeyboardInterrupt}[ended]):
        made.run()
    assert checkpoint.saved_steps(made.checkpoints) == ([2, 3] if ended == "signal" else [2])
    assert checkpoint.damage(made.checkpoints / "step-00000002") == ""
    assert runs.Run(tmp_path / "run").state == ("failed" if ended == "bug" else "interrupted")


def test_a_failure_in_the_thread_ends_the_run_at_the_next_step(colour_corpus, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    made = prepare(
        Plan(settings(colour_corpus, schedule={"steps": 50}, checkpoint={"every": 3}), tmp_path / "run"), World()
    )
    original = made.step

    def step(batch: Any, log: bool) -> Any:
        if made.done == 4:
            made.writer.finish()
            monkeypatch.setattr("softclip_cli.training.checkpoint.save_file", full)
        return original(batch, log)

    monkeypatch.setattr(made, "step", step)
    with pytest.raises(HostError, match="checkpoint of step 6 could not be written") as ended:
        made.run()
    assert made.done <= 9  # at the latest when the next one is due
    assert ended.value.exit_code == 5
    assert "step 3 is whole" in ended.value.why
    assert "--resume" in ended.value.hint
    monkeypatch.undo()
    assert checkpoint.to_resume(made.checkpoints)[0] == made.checkpoints / "step-00000003"
    assert not list(made.checkpoints.glob(".*partial"))
