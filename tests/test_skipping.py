"""Batches whose loss or gradient is no number: skipped without a trace, and gone back from when they stay."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from softclip_cli import runs
from softclip_cli.config import build
from softclip_cli.data.batches import Batch
from softclip_cli.errors import TrainingError
from softclip_cli.objectives.queue import FeatureQueue
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.training import checkpoint, stepper
from softclip_cli.training.distributed import World
from softclip_cli.training.guard import Guard, all_finite, gradient_norm
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare, train
from softclip_cli.training.trainer import Trainer

SMALL = {
    "model": {"reference": "tiny"},
    "data": {"batch_size": 16, "workers": 0},
    "schedule": {"steps": 8},
    "log": {"every": 1},
    "eval": {"every": 100},
    "checkpoint": {"every": 2, "keep": 9},
    "device": "cpu",
    "precision": "fp32",
}


def settings(corpus: Path, **layers: dict) -> TrainSettings:
    return build(TrainSettings, SMALL, {"data": {"corpus": str(corpus)}}, layers)


def poisoned(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int, int], bool], where: str = "gradient") -> list[int]:
    """Make the steps bad for which bad(step, position in the data) holds; returns the positions seen, as they come."""
    seen: list[int] = []
    original = stepper.forward_backward

    def step(encoder: Any, objective: Any, batch: Batch, context: Any, teacher: Any) -> Any:
        output = original(encoder, objective, batch, context, teacher)
        seen.append(batch.step)
        if bad(context.step, batch.step):
            with torch.no_grad():
                if where == "loss":
                    output.loss.fill_(float("inf"))
                else:
                    # The gradient of one parameter is enough.
                    next(p for p in encoder.module.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")
        return output

    monkeypatch.setattr(stepper, "forward_backward", step)
    return seen


def everything(made: Trainer) -> dict[str, Tensor]:
    """All that moves: every tensor of a checkpoint."""
    return {f"{file}/{name}": t.clone() for file, ts in made.state.tensors().items() for name, t in ts.items()}


OBJECTIVES = [
    {"name": "psd", "teacher": "ema", "ema_decay": 0.9},
    {"name": "albef", "queue_size": 32},
    {"name": "siglip"},
]


@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o["name"])
def test_a_bad_batch_moves_nothing(colour_corpus, tmp_path, monkeypatch, objective, where):
    """Weights, batch statistics, optimiser, averages, queue and scales: every tensor that a checkpoint holds, to the bit."""
    made = prepare(Plan(settings(colour_corpus, objective=objective), tmp_path / "run"), World())
    made.model.train()
    poisoned(monkeypatch, lambda step, _: step == 2, where)
    source = made.source(0, 4)
    for _ in range(2):
        made.step(next(source), False)
        made.done += 1
    before = everything(made)
    made.step(next(source), False)
    after = everything(made)
    assert made.stepper.guard.news() == [3]
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    made.done += 1
    made.step(next(source), False)
    assert made.stepper.guard.streak == 0
    assert any(not torch.equal(after[name], value) for name, value in everything(made).items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o["name"])
def test_a_device_that_is_not_waited_for_skips_the_same(colour_corpus, tmp_path, monkeypatch, objective, optimizer):
    """The way taken on a GPU, here on a CPU: the first batch and a later one are bad; weights as where the host waits."""
    results = []
    for waits in (True, False):
        with monkeypatch.context() as patched:
            plan = Plan(
                settings(colour_corpus, objective=objective, optimizer={"name": optimizer}), tmp_path / str(waits)
            )
            made = prepare(plan, World())
            made.stepper.guard = Guard(
                made.encoder.module, made.objective, made.stepper.optimizer, made.model.device, waits=waits
            )
            made.model.train()
            poisoned(patched, lambda step, _: step in (0, 3))
            source, before = made.source(0, 5), {}
            for _ in range(5):
                if made.done == 3:
                    before = everything(made)
                made.step(next(source), False)
                if made.done == 3:
                    after = everything(made)
                    ignored = {"objective/queue.position", "ema_state/updates"}  # counted by the host
                    same = [n for n in before if n in ignored or torch.equal(before[n], after[n])]
                    assert len(same) == len(before)
                made.done += 1
            made.stepper.guard.settle()
            assert made.stepper.guard.news() == [1, 4]
            assert made.stepper.guard.skipped == 2
            results.append(made.model.net.state_dict())
    if objective["name"] == "siglip":  # neither a moving average nor a queue, which know a step later
        assert all(torch.allclose(results[0][n], results[1][n], rtol=1e-5, atol=1e-7) for n in results[0])


def test_a_queue_takes_its_last_batch_back():
    queue = FeatureQueue(5, 2)
    first, second = torch.arange(6.0).view(3, 2), 10 + torch.arange(6.0).view(3, 2)
    queue.put(first, first)
    before = copy.deepcopy(queue.state_dict())
    queue.put(second, second)
    queue.take_back()
    assert all(torch.equal(before[name], value) for name, value in queue.state_dict().items())
    queue.put(second, second)
    queue.take_back(torch.tensor(False))
    assert torch.equal(queue.images(), torch.cat([second[2:], first[1:], second[:2]]))
    queue.put(first * float("nan"), first)
    queue.take_back(torch.tensor(True))
    assert torch.equal(queue.images(), torch.cat([second[2:], first[1:], second[:2]]))


def test_a_moving_average_told_by_the_device():
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    one, other = EmaTeacher(student, 0.7, warmup=False), EmaTeacher(student, 0.7, warmup=False)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += torch.randn_like(parameter)
    kept = copy.deepcopy(other.module.state_dict())
    other.update(student, torch.tensor(True))
    assert all(torch.equal(kept[name], value) for name, value in other.module.state_dict().items())
    one.update(student)
    other.update(student, torch.tensor(False))
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(other.module.state_dict()[name], value)


@pytest.mark.parametrize("largest", [0.0, 0.5])
def test_the_norm_of_the_gradient(largest):
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5)]
    gradients = [torch.randn(n, dtype=torch.float64) for n in (3, 5)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.float()
    expected = float(torch.cat(gradients).norm())
    assert float(gradient_norm(parameters, largest)) == pytest.approx(expected, rel=1e-5)
    assert float(torch.cat([p.grad for p in parameters]).norm()) == pytest.approx(largest or expected, rel=1e-4)
    assert all_finite(parameters)
    parameters[1].data[2] = float("-inf")
    assert not all_finite(parameters)


def test_skipped_batches_are_counted_named_and_left_out_of_the_mean(colour_corpus, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda step, _: step in (2, 3, 4), "loss")
    said: list[str] = []
    made = settings(colour_corpus, log={"every": 2})
    path = train(
        Plan(made, tmp_path / "run"),
        lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None,
    )
    assert [line.split(":")[0] for line in said if "skipped" in line] == ["step 3", "step 4", "step 5"]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped", 0) for line in lines if "eval" not in line] == [0, 2, 3, 3]
    assert [("loss" in line) for line in lines if "eval" not in line] == [True, False, True, True]
    assert all(abs(line["loss"]) < 10 for line in runs.Run(path).training)
    assert runs.Run(path).state == "finished"


def test_a_run_with_skipped_batches_resumes_to_the_bit(colour_corpus, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda step, _: step in (1, 5))
    made = settings(colour_corpus, objective={"name": "albef", "queue_size": 32})
    whole = train(Plan(made, tmp_path / "whole"))
    cut = train(Plan(made, tmp_path / "cut"))
    checkpoint.remove_after(cut / "checkpoints", 4)
    train(Plan(made, cut))
    for name in ("model", "objective", "optimizer"):
        one, other = (load_file(run / f"checkpoints/step-00000008/{name}.safetensors") for run in (whole, cut))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert [line.get("skipped") for line in runs.Run(cut).training] == [
        line.get("skipped") for line in runs.Run(whole).training
    ]


def test_after_too_many_it_goes_back_and_on_with_other_data(colour_corpus, tmp_path, monkeypatch):
    """Batches 5 to 7 of the data are bad for any weights: back to step 4, then past them, to the last step."""
    seen = poisoned(monkeypatch, lambda _, position: position in (5, 6, 7))
    said: list[str] = []
    made = settings(colour_corpus, optimizer={"max_skipped": 3})
    path = train(
        Plan(made, tmp_path / "run"),
        lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None,
    )
    assert seen == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]  # steps 0-7, then 4-7 with the data that follows
    assert any("back to the checkpoint of step 4" in line for line in said)
    run = runs.Run(path)
    assert run.state == "finished"
    assert [line["step"] for line in run.metrics if "eval" not in line] == [*range(1, 9)]
    assert run.training[-1]["rollbacks"] == 1
    assert run.training[-1]["skipped"] == 3

    # Killed after the checkpoint of step 6 and resumed: the offset in the data is in the checkpoint.
    wanted = load_file(path / "checkpoints/step-00000008/model.safetensors")
    checkpoint.remove_after(path / "checkpoints", 6)
    train(Plan(made, path))
    assert seen[12:] == [10, 11]
    found = load_file(path / "checkpoints/step-00000008/model.safetensors")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_a_checkpoint_from_the_middle_of_the_trouble_is_not_gone_back_to(colour_corpus, tmp_path, monkeypatch):
    """Steps 4 and 5 are skipped before the end of the streak: the checkpoint of step 4 was written with nothing good after it."""
    poisoned(monkeypatch, lambda _, position: position in (4, 5, 6))
    said: list[str] = []
    made = settings(colour_corpus, optimizer={"max_skipped": 3})
    train(
        Plan(made, tmp_path / "run"),
        lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None,
    )
    assert any("back to the checkpoint of step 2" in line for line in said)


def test_going_back_is_bounded(colour_corpus, tmp_path, monkeypatch):
    """Whatever the data, nothing gives a number after step 5: twice back, then exit 6, and the good checkpoint is still there."""
    seen = poisoned(monkeypatch, lambda step, _: step >= 5)
    made = settings(colour_corpus, optimizer={"max_skipped": 2})
    with pytest.raises(TrainingError, match="2 batches in a row") as ended:
        train(Plan(made, tmp_path / "run"))
    assert "gone back to step 4 2 times" in ended.value.why
    assert "--lr" in ended.value.hint
    assert ended.value.exit_code == 6
    assert len(seen) == 7 + 3 + 3
    assert runs.Run(tmp_path / "run").state == "failed"
    assert checkpoint.newest_intact(tmp_path / "run" / "checkpoints")[0].name == "step-00000004"


def test_a_run_killed_in_the_middle_of_a_streak_goes_back_where_it_would_have(colour_corpus, tmp_path, monkeypatch):
    """The streak is in the checkpoint: resumed from step 6, which is in the middle of it, all goes as without the kill."""
    seen = poisoned(monkeypatch, lambda _, position: position in (5, 6, 7))
    made = settings(colour_corpus, optimizer={"max_skipped": 3})
    run = prepare(Plan(made, tmp_path / "run"), World())
    monkeypatch.setattr(run, "_diverged", lambda: "" if run.done < 7 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run()
    train(Plan(made, tmp_path / "run"))
    assert seen == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11]
    assert runs.Run(tmp_path / "run").training[-1]["skipped"] == 3


def test_a_short_run_that_never_saw_a_number_is_no_success(colour_corpus, tmp_path, monkeypatch):
    poisoned(monkeypatch, lambda *_: True)
    with pytest.raises(TrainingError, match="all 3 batches"):
        train(Plan(settings(colour_corpus, schedule={"steps": 3}), tmp_path / "run"))


def test_weights_that_are_no_numbers_are_never_saved(colour_corpus, tmp_path, monkeypatch):
    """A spoilt update at a step that saves: no checkpoint of it, and the run goes back at once instead of skipping on."""
    made = prepare(Plan(settings(colour_corpus), tmp_path / "run"), World())
    original, spoilt = made.stepper.optimizer.step, []

    def step() -> None:
        original()
        if made.done == 5 and not spoilt:
            spoilt.append(made.done)
            with torch.no_grad():
                made.stepper.trainable[0].view(-1)[0] = float("inf")

    monkeypatch.setattr(made.stepper.optimizer, "step", step)
    said: list[str] = []
    made.report = lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None
    made.run()
    assert any("not finite after step 6" in line for line in said)
    assert any("no numbers after step 7: back to the checkpoint of step 4" in line for line in said)
    assert runs.Run(tmp_path / "run").state == "finished"
    for step_done in checkpoint.saved_steps(made.checkpoints):
        saved = load_file(made.checkpoints / checkpoint.folder_name(step_done) / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in saved.values())


def test_a_last_step_that_spoils_the_weights_is_noticed(colour_corpus, tmp_path, monkeypatch):
    made = prepare(Plan(settings(colour_corpus, checkpoint={"every": 0}), tmp_path / "run"), World())
    original = made.stepper.optimizer.step

    def step() -> None:
        original()
        if made.done == 7:
            with torch.no_grad():
                made.stepper.trainable[0].view(-1)[0] = float("nan")

    monkeypatch.setattr(made.stepper.optimizer, "step", step)
    with pytest.raises(TrainingError, match="weights are no numbers after step 8"):
        made.run()


def test_all_processes_skip_and_go_back_together(colour_corpus, tmp_path):
    """The gradient of one of two processes is bad, and later its time is up: both skip, go back, and end after the same step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("one_bad_rank.py")
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(colour_corpus), str(tmp_path / "run")],
            env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [rank.communicate(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    # Step 3 is skipped; 6 and 7 are, so both go back to step 4 and on with three batches that follow.
    assert said[0][0].split()[:4] == ["7", "3", "1", "3"]
    assert said[0][0] == said[1][0]
    run = runs.Run(tmp_path / "run")
    assert run.state == "interrupted"
    assert checkpoint.saved_steps(run.path / "checkpoints") == [2, 4, 6, 7]
