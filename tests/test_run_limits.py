"""What ends a run before its last step: its time, too many damaged images; and clocks that jump, which must not."""

from __future__ import annotations

import ast
import json
import time
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import encoded
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import softclip_cli.training
from softclip_cli import runs
from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.errors import DataError, UsageError
from softclip_cli.training import checkpoint, run_folder
from softclip_cli.training.distributed import World
from softclip_cli.training.limits import TimeLimit, parse_duration, too_many_replaced
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare, train

SMALL = {
    "model": {"reference": "tiny"},
    "data": {"batch_size": 16, "workers": 0},
    "schedule": {"steps": 6},
    "log": {"every": 1},
    "eval": {"every": 100},
    "device": "cpu",
    "precision": "fp32",
}


def settings(corpus: Path, **layers: dict) -> TrainSettings:
    return build(TrainSettings, SMALL, {"data": {"corpus": str(corpus)}}, layers)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30m", 1800),
        ("2h", 7200),
        ("90s", 90),
        ("1:30:00", 5400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (" 5min ", 300),
        ("29:58", 1798),
        ("1-12:00:00", 129600),
        ("1d", 86400),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@given(st.integers(1, 10**6))
def test_a_duration_as_a_clock_writes_it(seconds):
    whole = timedelta(seconds=seconds)
    clock = str(timedelta(seconds=whole.seconds))
    assert parse_duration(f"{whole.days}-{clock}" if whole.days else clock) == seconds


@pytest.mark.parametrize("text", ["30", "half an hour", "-5m", "0s", "1:2:3", "5m 3", "1:30:00:00"])
def test_what_is_no_duration_is_refused_with_the_settings(text):
    with pytest.raises(UsageError, match="max_time") as refused:
        build(TrainSettings, {"schedule": {"max_time": text}})
    if text == "30":
        assert "30m, 30s" in str(refused.value)


def test_time_that_is_up_saves_and_ends_well(colour_corpus, tmp_path):
    """A real command: exit 0, everything saved, the way to go on said, and it goes on to the last step."""
    out = tmp_path / "run"
    options = [
        "--data",
        str(colour_corpus),
        "--batch-size",
        "16",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    rare = ["--set", "log.every=1", "--set", "eval.every=100000"]
    stopped = CliRunner().invoke(
        app, ["train", *options, *rare, "--steps", "100000", "--out", str(out), "--max-time", "1s", "--json"]
    )
    assert stopped.exit_code == 0, stopped.stderr
    assert "1s are over" in stopped.stderr
    assert f"--resume {out}" in stopped.stderr
    run = runs.Run(out)
    assert run.state == json.loads(stopped.stdout)["status"]["state"] == "interrupted"
    done = run.status["step"]
    assert 0 < done < 100000
    assert checkpoint.to_resume(out / "checkpoints")[0] == out / "checkpoints" / checkpoint.folder_name(done)
    assert (out / "README.md").is_file()

    resumed = CliRunner().invoke(app, ["train", "--resume", str(out), "--steps", str(done + 1), "--max-time", "1h"])
    assert resumed.exit_code == 0, resumed.stderr
    assert runs.Run(out).state == "finished"
    assert runs.Run(out).training[-1]["step"] == done + 1


def test_time_that_is_up_before_the_first_line_of_metrics(colour_corpus, tmp_path):
    out = tmp_path / "run"
    options = [
        "--data",
        str(colour_corpus),
        "--batch-size",
        "16",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--steps",
        "500",
    ]
    result = CliRunner().invoke(app, ["train", *options, "--out", str(out), "--max-time", "0.001s"])
    assert result.exit_code == 0, result.stderr
    assert checkpoint.saved_steps(out / "checkpoints") == [1]


def test_time_is_counted_anew_by_each_process_from_its_start(colour_corpus, tmp_path):
    made = prepare(Plan(settings(colour_corpus, schedule={"max_time": "1h"}), tmp_path / "run"), World())
    assert made.time_limit.seconds == 3600
    assert not made.time_limit.over()
    assert not TimeLimit("").over()


def test_clocks_that_jump_change_nothing_but_labels(colour_corpus, tmp_path, monkeypatch):
    """The time of day jumps by years with every look; seconds, speeds and the time limit know nothing of it."""
    began, looks = time.perf_counter(), []
    first = time.time()

    def jumping() -> float:
        looks.append(first + (-1) ** len(looks) * 3e8)
        return looks[-1]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(run_folder, "now", lambda: f"{2000 + 37 * (int(jumping()) % 2)}-01-01T00:00:00+00:00")
    path = train(Plan(settings(colour_corpus, schedule={"max_time": "1h"}), tmp_path / "run"))
    run = runs.Run(path)
    assert looks
    assert run.state == "finished"
    assert 0 < run.status["seconds"] <= time.perf_counter() - began + 0.001
    assert all(line["samples_per_second"] > 0 and 0 <= line["data_wait"] <= 1 for line in run.training)

    train(Plan(settings(colour_corpus, schedule={"steps": 8}), path))  # adds to the seconds from before
    assert run.status["seconds"] < runs.Run(path).status["seconds"] <= time.perf_counter() - began + 0.001


def test_the_time_of_day_is_looked_at_for_labels_only():
    """In training/ nothing but `now` (labels) and `new_run_path` (a name) asks for the time of day."""
    found = set()
    for path in Path(softclip_cli.training.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                        "time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.localtime", "date.today",
                    ):  # fmt: skip
                        found.add((path.name, function.name))
    assert found == {("run_folder.py", "now"), ("run_folder.py", "new_run_path")}


@pytest.mark.parametrize(
    ("replaced", "seen", "share", "too_many"),
    [
        (1, 2, 0.05, False),
        (10, 10, 0.05, False),
        (11, 220, 0.05, False),
        (11, 219, 0.05, True),
        (999, 1000, 1.0, False),
    ],
)
def test_how_many_damaged_images_are_too_many(replaced, seen, share, too_many):
    assert too_many_replaced(replaced, seen, share) == too_many


def test_too_many_damaged_images_end_the_run_after_saving(tmp_path):
    from softclip_cli.data.corpus import CorpusWriter, Record

    with CorpusWriter(tmp_path / "corpus") as writer, writer.split("train") as part:
        for i in range(64):
            good = encoded((3 * i, 0, 0), seed=i)
            part.write(Record(str(i), good if i % 4 else good[:200], ["a"]))
    made = settings(tmp_path / "corpus", schedule={"steps": 12})
    with pytest.raises(DataError, match="images cannot be decoded, more than 5% of those seen") as ended:
        train(Plan(made, tmp_path / "run"))
    assert ended.value.exit_code == 3
    assert "row " in ended.value.why
    assert "data prepare" in ended.value.hint
    run = runs.Run(tmp_path / "run")
    assert run.state == "failed"
    done = run.status["step"]
    assert 0 < done < 12
    assert checkpoint.to_resume(run.path / "checkpoints")[0].name == checkpoint.folder_name(done)
    allowed = settings(tmp_path / "corpus", schedule={"steps": done + 1}, data={"max_replaced": 0.5})
    train(Plan(allowed, run.path))
    assert runs.Run(run.path).state == "finished"
