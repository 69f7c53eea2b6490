"""Training: it learns, it is exact, it resumes to the bit, and it refuses what cannot work before it starts."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch
from model_folders import folder_with, small
from safetensors.torch import load_file
from typer.testing import CliRunner

from softclip_cli import runs
from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.data.batches import Batch, StepDataset, batches
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import Augment
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import DataError, ModelError, TrainingError, UsageError
from softclip_cli.registry import open_model
from softclip_cli.training import checkpoint
from softclip_cli.training.distributed import World
from softclip_cli.training.optimizer import learning_rate
from softclip_cli.training.settings import ScheduleSettings, TrainSettings
from softclip_cli.training.start import Plan, prepare, train

SMALL = {
    "model": {"reference": "tiny"},
    "data": {"batch_size": 16, "workers": 0},
    "schedule": {"steps": 6},
    "log": {"every": 1},
    "eval": {"every": 3},
    "device": "cpu",
    "precision": "fp32",
}


def settings(corpus: Path, **layers: dict) -> TrainSettings:
    return build(TrainSettings, SMALL, {"data": {"corpus": str(corpus)}}, layers)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / checkpoint.folder_name(step) / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in runs.Run(run).training]


def test_it_learns_and_leaves_a_whole_run_folder(colour_corpus, tmp_path):
    """Four colours, told apart after a few steps; every file of the contract is there."""
    path = train(Plan(settings(colour_corpus, schedule={"steps": 40}, eval={"every": 40}), tmp_path / "run"))
    run = runs.Run(path)
    assert run.state == "finished"
    assert "note: device cpu, precision fp32: as asked" in (path / "log.txt").read_text()
    assert run.training[-1]["loss"] < run.training[0]["loss"]
    assert run.training[-1]["chance"] == pytest.approx(math.log(16))
    for name in (
        "config.toml",
        "env.json",
        "data.json",
        "metrics.jsonl",
        "status.json",
        "checkpoints/last.json",
        "checkpoints/best.json",
    ):
        assert (path / name).is_file(), name
    net = open_clip.create_model(f"local-dir:{run.checkpoint('last')}")
    assert torch.equal(net.logit_scale, weights(path, 40)["logit_scale"])


def test_the_trainer_does_what_a_plain_loop_does(colour_corpus, tmp_path):
    """clip against a loop written from stock parts: open_clip's own loss, torch's own AdamW and clipping."""
    made = settings(
        colour_corpus, objective={"name": "clip"}, schedule={"steps": 4, "warmup": 0.25}, data={"augment": "none"}
    )
    path = train(Plan(made, tmp_path / "run"))

    model = open_model("tiny", seed=0).train()
    model.net.to(memory_format=torch.channels_last)
    corpus = Corpus.open(colour_corpus)
    data = corpus.split("train")
    dataset = StepDataset(data, EpochSampler(len(data), 16, 0), model.preprocess, None, model.tokens)
    named = dict(model.net.named_parameters())
    decay = [p for p in named.values() if p.ndim >= 2]
    plain = [p for p in named.values() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.2}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    loss_of = open_clip.ClipLoss()
    expected = []
    for step, batch in enumerate(batches(dataset, 0, 4, 0)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 if step == 0 else 1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 3))
        # The caption of a text is padded to the full context here.
        text = torch.nn.functional.pad(batch.text, (0, 32 - batch.text.shape[1]))
        loss = loss_of(
            model.encode_image(batch.image), model.net.encode_text(text, normalize=True), model.net.logit_scale.exp()
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.net.logit_scale.clamp_(0, math.log(100))
        expected.append(float(loss.detach()))
    assert losses(path) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_workers(colour_corpus, workers):
    model = open_model("tiny", seed=0)
    data = Corpus.open(colour_corpus).split("train")
    dataset = StepDataset(data, EpochSampler(len(data), 16, 3), model.preprocess, Augment(flip=0.5), model.tokens)

    def take(first: int, count: int) -> list[Batch]:
        return list(batches(dataset, first, count, workers))

    alone = [dataset[step] for step in range(4, 8)]
    for got, wanted in zip(take(4, 8), alone, strict=True):
        assert got.step == wanted.step
        assert torch.equal(got.image, wanted.image)
        assert torch.equal(got.text, wanted.text)


@pytest.mark.parametrize(
    "objective",
    [{"name": "psd"}, {"name": "psd", "teacher": "ema", "ema_decay": 0.9}, {"name": "albef", "queue_size": 32}],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_equals_not_stopping(colour_corpus, tmp_path, objective, workers):
    """The same metrics and the same weights, bit for bit, in the middle of an epoch, with augmentation, EMA and queue."""
    made = settings(
        colour_corpus,
        objective=objective,
        schedule={"steps": 9},
        checkpoint={"every": 4, "keep": 9},
        data={"workers": workers},
    )
    whole = train(Plan(made, tmp_path / "whole"))
    cut = tmp_path / "cut"
    train(Plan(made, cut))
    for step in checkpoint.saved_steps(cut / "checkpoints"):
        if step > 4:
            import shutil

            shutil.rmtree(cut / "checkpoints" / checkpoint.folder_name(step))
    train(Plan(made, cut))
    assert losses(cut) == losses(whole)
    one, other = weights(whole, 9), weights(cut, 9)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_damaged_newest_checkpoint_is_passed_over(colour_corpus, tmp_path):
    made = settings(colour_corpus, checkpoint={"every": 2, "keep": 5})
    path = train(Plan(made, tmp_path / "run"))
    newest = path / "checkpoints" / checkpoint.folder_name(6) / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    found, problems = checkpoint.newest_intact(path / "checkpoints")
    assert found is not None
    assert found.name == checkpoint.folder_name(4)
    assert "checksum" in problems[0]


def test_no_half_checkpoint_when_the_disk_is_full(colour_corpus, tmp_path, monkeypatch):
    from softclip_cli.errors import HostError

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    trainer = prepare(Plan(settings(colour_corpus), tmp_path / "run"), World())
    trainer.done = 1
    trainer._save()
    trainer.writer.finish()
    monkeypatch.setattr("softclip_cli.model.save_file", full)
    trainer.done = 2
    trainer._save()
    with pytest.raises(HostError, match="could not be written"):
        trainer.writer.finish()
    assert checkpoint.saved_steps(trainer.checkpoints) == [1]
    assert [entry.name for entry in trainer.checkpoints.iterdir() if "partial" in entry.name] == []


def test_micro_batches_give_the_whole_batch_s_gradient(tmp_path):
    """Dropout off or on, the gradient is that of the whole batch (towers without batch normalisation)."""
    from softclip_cli.objectives.objective import build_objective
    from softclip_cli.objectives.settings import ObjectiveSettings
    from softclip_cli.training.encoder import TowerEncoder
    from softclip_cli.training.step import StepContext, forward_backward

    model = open_model(str(folder_with(small("vit"), tmp_path / "m"))).train()
    batch = Batch(
        0,
        torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8),
        model.tokenize([f"text number {i} {'long ' * (i % 3)}" for i in range(12)]),
        torch.arange(12),
        torch.arange(12),
        torch.zeros(12, dtype=torch.int64),
    )
    for name in ("clip", "psd", "siglip", "otter"):
        gradients = []
        for size in (0, 5):
            model.net.zero_grad()
            objective = build_objective(
                ObjectiveSettings(name=name, teacher="self") if name == "otter" else ObjectiveSettings(name=name),
                embed_dim=model.embed_dim,
            )
            forward_backward(
                TowerEncoder(model, torch.float32), objective, batch, StepContext(0, 0.5, 0, micro_batch=size)
            )
            gradients.append({key: p.grad.clone() for key, p in model.net.named_parameters() if p.grad is not None})
        for key, whole in gradients[0].items():
            assert (gradients[1][key] - whole).norm() <= 1e-5 * whole.norm() + 1e-7, (name, key)


def test_frozen_towers_train_on_stored_features(colour_corpus, tmp_path):
    """Only projections and scale move, the trunks stay to the bit, and the saved model gives the validated embeddings."""
    made = settings(
        colour_corpus,
        model={"reference": "tiny", "lock": "image,text"},
        schedule={"steps": 20},
        data={"batch_size": 32},
    )
    path = train(Plan(made, tmp_path / "run"))
    before, after = open_model("tiny", seed=0).net.state_dict(), weights(path, 20)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved <= {"visual.attnpool.c_proj.weight", "visual.attnpool.c_proj.bias", "text_projection", "logit_scale"}
    assert "text_projection" in moved
    assert runs.Run(path).training[-1]["loss"] < runs.Run(path).training[0]["loss"]


@pytest.mark.parametrize("lock", ["", "image,text"])
def test_averaged_weights_are_what_is_evaluated_afterwards_too(colour_corpus, tmp_path, lock):
    """With eval.weights = ema a run's model is its average: in the file, for who opens the run, and for `softclip retrieve`."""
    made = settings(
        colour_corpus,
        model={"lock": lock},
        objective={"name": "psd", "teacher": "ema", "ema_decay": 0.5},
        eval={"weights": "ema", "every": 4},
        schedule={"steps": 8},
        optimizer={"lr": 0.01},
    )
    path = train(Plan(made, tmp_path / "run"))
    best = runs.Run(path).checkpoint("best")
    averaged, student = load_file(best / "ema.safetensors"), load_file(best / "student.safetensors")
    assert not torch.equal(averaged["text_projection"], student["text_projection"])
    opened = open_model(str(path)).net.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in averaged.items())

    result = CliRunner().invoke(app, ["retrieve", "--split", f"{colour_corpus}:val", "--model", str(path), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["metrics"]
    step = runs.Run(path).best["step"]
    line = next(line for line in runs.Run(path).evaluations["val"] if line["step"] == step)
    for name in ("image_to_text_r1", "text_to_image_r1", "rsum"):
        assert found[name]["value"] == pytest.approx(line[name])


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        ({"data": {"batch_size": 256}}, UsageError),
        ({"data": {"split": "trian"}}, DataError),
        ({"model": {"reference": "tinny"}}, ModelError),
        ({"eval": {"weights": "ema"}, "objective": {"name": "clip"}}, UsageError),
        ({"device": "cuda:7"}, Exception),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(colour_corpus, tmp_path, layers, error):
    with pytest.raises(error):
        train(Plan(settings(colour_corpus, **layers), tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_folder_that_is_no_run_is_not_touched(colour_corpus, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("…")
    with pytest.raises(UsageError, match="not a run folder"):
        train(Plan(settings(colour_corpus), tmp_path / "thesis"))
    assert [entry.name for entry in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_loss_that_stays_no_number_ends_the_run(colour_corpus, tmp_path):
    """Weights that are no numbers give nothing else any more, and there is no checkpoint from before (see test_skipping.py)."""
    made = settings(colour_corpus, optimizer={"lr": 1e30, "clip_norm": 0})
    with pytest.raises(TrainingError, match="step") as ended:
        train(Plan(made, tmp_path / "run"))
    assert ended.value.exit_code == 6
    assert runs.Run(tmp_path / "run").state == "failed"


def test_a_broken_image_is_replaced_counted_and_named(tmp_path):
    from conftest import encoded

    from softclip_cli.data.corpus import CorpusWriter, Record

    with CorpusWriter(tmp_path / "corpus") as writer, writer.split("train") as part:
        for i in range(16):
            good = encoded((10 * i, 0, 0), seed=i)
            part.write(Record(str(i), good if i != 5 else good[:200], ["a"]))
    said: list[str] = []
    made = settings(tmp_path / "corpus", schedule={"steps": 2})
    path = train(
        Plan(made, tmp_path / "run"),
        lambda kind, facts: said.append(facts.get("text", "")) if kind == "warning" else None,
    )
    assert any("row 5" in line for line in said)
    assert runs.Run(path).training[-1]["replaced"] == 1


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no POSIX signals")
def test_ctrl_c_saves_and_exits_130(colour_corpus, tmp_path):
    """A real process, a real signal: it finishes the step, saves, says how to go on, and can go on."""
    command = [
        sys.executable,
        "-m",
        "softclip_cli",
        "train",
        "--data",
        str(colour_corpus),
        "--batch-size",
        "16",
        "--steps",
        "5000",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "log.every=1",
        "--set",
        "eval.every=5000",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "--resume" in text
    run = runs.Run(tmp_path / "run")
    assert run.state == "interrupted"
    done = json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())["step"]
    made = build(
        TrainSettings,
        {
            **SMALL,
            "data": {"corpus": str(colour_corpus), "batch_size": 16, "workers": 0},
            "schedule": {"steps": done + 2},
            "eval": {"every": 5000},
        },
    )
    train(Plan(made, tmp_path / "run"))
    assert runs.Run(tmp_path / "run").training[-1]["step"] == done + 2


def test_learning_rate_warms_up_and_falls_to_the_end():
    schedule = ScheduleSettings(warmup=10, final_lr=0.0)
    rates = [learning_rate(step, 100, 1.0, schedule) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_wrong_model_name_is_told_before_a_corpus_is_drawn(tmp_path):
    made = build(TrainSettings, SMALL, {"model": {"reference": "ViT-B-33"}})
    said: list[str] = []
    with pytest.raises(ModelError, match="ViT-B-33"):
        train(Plan(made, tmp_path / "run"), lambda kind, facts: said.append(kind))
    assert "progress" not in said
