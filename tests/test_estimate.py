"""`softclip train --estimate`: counts that agree with arithmetic, with torch's own counter, and with what a run really writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.registry import open_model
from softclip_cli.resources import duration
from softclip_cli.training.encoder import TowerEncoder
from softclip_cli.training.estimate import Estimate, estimate
from softclip_cli.training.replay import replay
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train
from softclip_cli.training.step_trace import Counting, Shape, StepTrace, trace_step


def settings(corpus: Path, **layers: dict) -> TrainSettings:
    small = {
        "data": {"corpus": str(corpus), "batch_size": 16, "workers": 0},
        "schedule": {"steps": 2},
        "device": "cpu",
        "precision": "fp32",
    }
    return build(TrainSettings, small, layers)


def counted(corpus: Path, **layers: dict) -> Estimate:
    return estimate(settings(corpus, **layers), timed=False)


def traced(pairs: int = 8, tokens: int = 16, **more: int) -> StepTrace:
    model = open_model("tiny").train()
    return trace_step(model, Shape(pairs, tokens, **more), lambda hollow: TowerEncoder(hollow, torch.float32))


def test_memory_and_flops_of_a_chain_by_hand():
    """Two layers, n rows: h = relu(x A) is kept, and y; backward adds the gradients of A and B, and for a moment that of h."""
    n, a, b, c = 64, 32, 128, 16
    with FakeTensorMode():
        first, second = nn.Linear(a, b, bias=False), nn.Linear(b, c, bias=False)
        x = torch.empty(n, a)
        counting = Counting([first.weight, second.weight, x])
        with counting:
            y = second(first(x).relu_())
            alive = counting.alive
            y.backward(torch.empty_like(y))
    assert alive == 4 * (n * b + n * c)
    assert counting.trace.flops == 2 * n * (2 * a * b + 3 * b * c)  # the gradient of x is asked by nobody
    gradients = 4 * (a * b + b * c)
    del y
    assert counting.alive == gradients
    assert counting.trace.peak >= alive + 4 * n * c


def test_what_depends_on_values_counts_at_its_most():
    """Rows picked by a condition: without data all of them."""
    with FakeTensorMode():
        x, chosen = torch.empty(64, 8), torch.empty(64, dtype=torch.bool)
        counting = Counting([x, chosen])
        with counting:
            picked = x[chosen.nonzero().flatten()]
    assert picked.shape == (64, 8)
    assert counting.trace.peak == 64 * 8 + 4 * 64 * 8


def test_flops_are_those_of_torch_s_counter_and_of_attention():
    """torch's counter does not know attention on a CPU: two products forwards and five backwards, queries × keys × width each."""
    pairs, tokens = 8, 16
    model = open_model("tiny").train()
    batch = Shape(pairs, tokens).batch(model.preprocess.size)
    batch.text[:, -1] = (
        model.config["text_cfg"]["vocab_size"] - 1
    )  # the end of text: all texts are as long as the batch
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            attention: lambda q, k, *_, **__: 2 * 2 * math.prod(q) * k[-2],
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, *_, **__: (
                5 * 2 * math.prod(q) * k[-2]
            ),
        },
    )
    with counter:
        image, text = TowerEncoder(model, torch.float32)(batch.image, batch.text)
        (image.sum() + text.sum()).backward()
    assert counter.get_flop_counts()["Global"][attention] > 0
    assert traced(pairs, tokens).flops == counter.get_total_flops()


def test_activations_grow_with_the_pairs_and_micro_batches_bound_them():
    small, large = traced(8), traced(32)
    assert large.activations == pytest.approx(4 * small.activations, rel=0.02)
    assert large.flops == pytest.approx(4 * small.flops, rel=0.01)
    assert small.gradients == large.gradients == 4 * sum(p.numel() for p in open_model("tiny").net.parameters())
    bounded = traced(32, micro_batch=8)
    assert bounded.peak < large.peak
    assert bounded.flops > 1.3 * large.flops  # the towers are passed forwards twice


def test_the_loss_is_planned_for():
    assert traced(8, loss_bytes=1 << 30).peak - traced(8).activations >= 1 << 30


def test_a_checkpoint_has_the_size_that_was_estimated(colour_corpus, tmp_path):
    path = train(Plan(settings(colour_corpus, objective={"name": "ema-kd"}), tmp_path / "run"))
    written = sum(file.stat().st_size for file in (path / "checkpoints" / "step-00000002").iterdir())
    assert counted(colour_corpus, objective={"name": "ema-kd"}).checkpoint["each"] == pytest.approx(written, rel=0.02)


def test_what_is_frozen_or_averaged_shows(colour_corpus):
    plain = counted(colour_corpus, objective={"name": "psd"})
    assert plain.total == sum(plain.memory.values())
    assert plain.memory["optimiser"] == pytest.approx(2 * plain.memory["weights"], rel=0.01)
    assert (
        counted(colour_corpus, objective={"name": "psd"}, optimizer={"name": "sgd"}).memory["optimiser"]
        == plain.memory["optimiser"] // 2
    )
    averaged = counted(colour_corpus, objective={"name": "ema-kd"})
    assert averaged.memory["moving average"] == pytest.approx(plain.memory["weights"], rel=0.01)
    assert averaged.flops > 1.2 * plain.flops
    locked = counted(colour_corpus, objective={"name": "psd"}, model={"lock": "text"})
    assert locked.memory["gradients"] < plain.memory["gradients"] and locked.activations < plain.activations
    features = counted(colour_corpus, objective={"name": "psd"}, model={"lock": "image,text"})
    assert features.flops < plain.flops / 50
    assert features.memory["stored features"] < 1 << 20
    assert plain.sharded[2] > plain.sharded[4] > plain.sharded[8]


def test_a_frozen_teacher_is_counted_live_and_stored(colour_corpus):
    teacher = {"name": "distill", "teacher_model": "tiny"}
    live, stored = (
        counted(colour_corpus, objective=teacher, data={"teacher_features": how}) for how in ("live", "stored")
    )
    assert live.memory["teacher"] == pytest.approx(live.memory["weights"], rel=0.01)
    assert live.flops > 1.2 * stored.flops
    assert "teacher" not in stored.memory and stored.memory["teacher's stored embeddings"] > 0


def test_replayed_operators_add_up():
    """An operator that occurs three times costs three times as much; one that cannot be run gets its share."""
    operators = list(traced().operators.values())
    heavy = max(operators, key=lambda operator: operator.flops)
    once, thrice = (replay([heavy], [times], torch.device("cpu"), 0.2) for times in (1.0, 3.0))
    assert once.covered == thrice.covered == 1
    assert once.seconds > 0 and once.flops_per_second > 0
    none = replay(operators, [o.count for o in operators], torch.device("cpu"), budget=0.0)
    assert none.covered == 0 and none.seconds > 0


def test_the_command_prints_and_starts_nothing(colour_corpus, tmp_path):
    words = f"train --data {colour_corpus} --batch-size 16 --steps 10 --device cpu --precision fp32 --estimate --json"
    result = CliRunner().invoke(app, [*words.split(), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["seconds"]["run"] == pytest.approx(
        document["seconds"]["training"] + document["seconds"]["evaluation"]
    )
    assert document["seconds"]["training"] == pytest.approx(10 * document["seconds"]["step"])
    assert document["run"]["samples"] == 96
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()


def test_the_generated_corpus_is_not_made_for_an_estimate(tmp_path):
    found = estimate(build(TrainSettings, {"device": "cpu", "precision": "fp32"}), timed=False)
    assert "not there yet" in found.notes[0]
    assert not (tmp_path / "data").exists()


def test_estimate_smoke_and_profile_exclude_each_other(colour_corpus):
    result = CliRunner().invoke(app, ["train", "--data", str(colour_corpus), "--estimate", "--profile", "3"])
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0021, "2.1 ms"),
        (0.035, "35 ms"),
        (1.25, "1.2 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (270_000, "3 d 3 h"),
        (3600, "1 h"),
    ],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text
