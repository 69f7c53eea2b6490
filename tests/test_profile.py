"""`softclip train --profile`: the parts add up to the step, the trace says the same, and the run goes on as if nothing had been."""

from __future__ import annotations

import gzip
import json
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from softclip_cli import runs
from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.errors import TrainingError, UsageError
from softclip_cli.training import phases
from softclip_cli.training.phases import Stopwatch, phase
from softclip_cli.training.profile import TRACED, WARM_UP
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train

STEPS = WARM_UP + 4 + TRACED + 2


def settings(corpus: Path, **layers: dict) -> TrainSettings:
    small = {
        "model": {"reference": "tiny"},
        "data": {"corpus": str(corpus), "batch_size": 16, "workers": 0},
        "schedule": {"steps": STEPS},
        "log": {"every": 1},
        "eval": {"every": STEPS},
        "device": "cpu",
        "precision": "fp32",
    }
    return build(TrainSettings, small, layers)


def profiled(corpus: Path, folder: Path, wanted: int = 4, **layers: dict) -> dict:
    heard: list[dict] = []
    train(
        Plan(settings(corpus, **layers), folder, profile=wanted),
        lambda kind, facts: heard.append(facts) if kind == "profile" else None,
    )
    assert len(heard) == 1
    return heard[0]


def trace_of(facts: dict) -> list[dict]:
    with gzip.open(facts["trace"]) as stream:
        return json.load(stream)["traceEvents"]


def test_the_parts_add_up_to_the_step(colour_corpus, tmp_path):
    """And the step is the one that metrics.jsonl times by itself."""
    facts = profiled(colour_corpus, tmp_path / "run", objective={"name": "ema-kd"})
    parts = facts["phases"]
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(facts["step_ms"], abs=0.01)
    assert all(part["ms"] >= 0 for part in parts.values())
    assert parts["other"]["share"] < 0.5  # hardly anything is left unnamed
    for name in (
        "data wait",
        "forward: image tower",
        "forward: text tower",
        "teacher",
        "loss",
        "backward",
        "optimiser",
    ):
        assert parts[name]["ms"] > 0, name
    lines = runs.Run(tmp_path / "run").training[WARM_UP : WARM_UP + 4]
    timed = sum(16 / line["samples_per_second"] for line in lines) / len(lines) * 1e3
    assert facts["step_ms"] == pytest.approx(timed, rel=0.15)
    waited = sum(16 / line["samples_per_second"] * line["data_wait"] for line in lines) / len(lines) * 1e3
    assert parts["data wait"]["ms"] == pytest.approx(waited, rel=0.15, abs=0.3)


def test_the_trace_names_the_parts(colour_corpus, tmp_path):
    """What torch's profiler writes has each part, once a traced step, and the operators of the table inside. All by the command."""
    words = f"train --data {colour_corpus} --batch-size 16 --steps {STEPS} --device cpu --profile 4 --json"
    result = CliRunner().invoke(app, [*words.split(), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)["profile"]
    assert facts == json.loads((tmp_path / "run" / "profile" / "summary.json").read_text())
    assert "forward: image tower" in result.stderr
    counts: dict[str, int] = defaultdict(int)
    for event in trace_of(facts):
        if event.get("cat") == "user_annotation":
            counts[event["name"]] += 1
    for name in ("data wait", "forward: image tower", "forward: text tower", "loss", "backward", "optimiser"):
        assert counts[name] == TRACED == facts["traced"], name
    names = {event["name"] for event in trace_of(facts) if event.get("cat") == "cpu_op"}
    assert facts["operators"]
    assert {row["name"] for row in facts["operators"]} <= names


def test_micro_batches_and_frozen_towers_are_timed_too(colour_corpus, tmp_path):
    facts = profiled(colour_corpus, tmp_path / "micro", data={"micro_batch": 4})
    assert facts["phases"]["other"]["share"] < 0.5
    facts = profiled(colour_corpus, tmp_path / "locked", model={"lock": "image,text"})
    assert facts["phases"]["forward: image tower"]["ms"] > 0


def test_the_run_goes_on_as_if_nothing_had_been(colour_corpus, tmp_path):
    profiled(colour_corpus, tmp_path / "watched")
    train(Plan(settings(colour_corpus), tmp_path / "alone"))
    ends = [
        load_file(tmp_path / name / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")
        for name in ("watched", "alone")
    ]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_that_is_too_short_is_refused_before_it_starts(colour_corpus, tmp_path):
    with pytest.raises(UsageError, match=f"takes {WARM_UP + 50 + TRACED} steps, and this run has {STEPS} left"):
        train(Plan(settings(colour_corpus), tmp_path / "run", profile=50))
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_leaves_nobody_listening(colour_corpus, tmp_path):
    with pytest.raises(TrainingError):
        profiled(colour_corpus, tmp_path / "run", optimizer={"lr": 1e30, "clip_norm": 0.0})
    assert phases._listening is None


def test_marks_count_once_and_only_while_a_step_is_watched():
    watch = Stopwatch(torch.device("cpu"))
    with phase("loss"):
        time.sleep(0.01)  # nobody listens yet
    for _ in range(2):
        watch.begin()
        with phase("teacher"):
            time.sleep(0.02)
            with phase("forward: image tower"):  # a teacher that is a copy of the student
                time.sleep(0.02)
        watch.end()
    parts, whole = watch.milliseconds()
    assert parts["loss"] == parts["forward: image tower"] == 0
    assert parts["teacher"] >= 40
    assert sum(parts.values()) == pytest.approx(whole)
