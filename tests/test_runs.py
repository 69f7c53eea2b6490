"""Run folders are found, read and compared, whole or damaged; `softclip runs list|show|diff`."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fake_runs import make_run, write
from typer.testing import CliRunner

from softclip_cli.commands.runs import app
from softclip_cli.errors import ModelError
from softclip_cli.runs import Run, find_run, list_runs, newest_finished, parse_time, runs_dir


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def run_command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_runs_lie_in_runs_unless_the_environment_names_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOFTCLIP_RUNS", raising=False)
    assert runs_dir() == Path("runs")
    monkeypatch.setenv("SOFTCLIP_RUNS", "/elsewhere")
    assert runs_dir() == Path("/elsewhere")


def test_reading_runs_does_not_import_torch() -> None:
    code = (
        "import sys, softclip_cli.runs, softclip_cli.commands.runs; print(sorted({'torch', 'pandas'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_run_is_found_by_name_and_by_path(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = make_run(folder, "2026-11-22-201500-psd")
    elsewhere = make_run(tmp_path, "aside")
    assert find_run("2026-11-22-201500-psd").path == run.path
    assert find_run(run.path).path == run.path
    monkeypatch.chdir(tmp_path)
    assert find_run("aside").path.resolve() == elsewhere.path.resolve()
    assert find_run("./aside").path.resolve() == elsewhere.path.resolve()


def test_an_unknown_run_is_answered_with_near_names_and_exit_code_4(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as none:
        find_run("psd")
    assert none.value.exit_code == 4
    assert "no runs" in none.value.why
    make_run(folder, "2026-11-22-201500-psd")
    make_run(folder, "2026-11-22-201500-clip")
    with pytest.raises(ModelError) as near:
        find_run("psd")
    assert "2026-11-22-201500-psd" in near.value.hint
    assert "clip" not in near.value.hint
    with pytest.raises(ModelError, match="2026-11-22-20150-clip") as misspelt:
        find_run("2026-11-22-20150-clip")
    assert "2026-11-22-201500-clip" in misspelt.value.hint
    with pytest.raises(ModelError, match=r"no run"):
        find_run(tmp_path)


def test_the_newest_finished_run_is_the_one_that_ended_last_with_a_checkpoint(folder: Path) -> None:
    assert newest_finished() is None
    make_run(folder, "z-older", updated="2026-11-22T10:00:00+00:00")
    make_run(folder, "a-newer", updated="2026-11-22T13:30:00+02:00")  # 11:30 UTC
    make_run(folder, "later-but-running", state="running", updated="2026-11-23T10:00:00+00:00")
    make_run(folder, "later-without-checkpoint", checkpoints=(), updated="2026-11-23T10:00:00+00:00")
    (make_run(folder, "later-but-damaged", updated="2026-11-23T10:00:00+00:00").path / "status.json").write_text("{")
    (folder / "no-run").mkdir()
    newest = newest_finished()
    assert newest is not None
    assert newest.name == "a-newer"
    assert {run.name for run in list_runs()} == {path.name for path in folder.iterdir()} - {"no-run"}


def test_a_line_cut_short_is_left_out_and_a_repeated_step_counts_once(folder: Path) -> None:
    run = make_run(folder, "resumed", steps=40)
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 20, "loss": 99.0, "chance": 4.0}\n{"step": 40, "lo')
    run = Run(run.path)
    assert [line["step"] for line in run.training] == [10, 20, 30, 40]
    assert [line["loss"] for line in run.training if line["step"] == 20] == [99.0]
    assert {name: len(lines) for name, lines in run.evaluations.items()} == {"generated:kind-colour": 4, "val": 4}


def test_files_that_are_not_there_read_as_empty_and_damaged_ones_are_named(folder: Path) -> None:
    (folder / "bare").mkdir(parents=True)
    (folder / "bare" / "config.toml").write_text("")
    bare = find_run("bare")
    assert (bare.env, bare.data, bare.metrics, bare.evals, bare.training, bare.best) == ({}, {}, [], [], [], {})
    assert (bare.state, bare.objective, bare.corpus, bare.updated) == ("unknown", "", "", None)
    for name, content in (("env.json", "{"), ("data.json", "[1]"), ("config.toml", "= 3"), ("evals/x.json", "nul")):
        run = make_run(folder, f"damaged-{Path(name).stem}")
        (run.path / name).write_text(content)
        with pytest.raises(ModelError, match=name) as damaged:
            _ = (Run(run.path).env, Run(run.path).data, Run(run.path).config, Run(run.path).evals)
        assert damaged.value.exit_code == 4


def test_json_in_evals_that_is_no_evaluation_is_passed_over(folder: Path) -> None:
    run = make_run(folder, "a")
    count = len(run.evals)
    write(run.path / "evals" / "list.json", [1, 2])
    write(run.path / "evals" / "other.json", {"kind": "examples"})
    assert count > 5
    assert len(Run(run.path).evals) == count


def test_checkpoints_are_named_best_last_or_by_step(folder: Path) -> None:
    run = make_run(folder, "a", checkpoints=(200, 300, 400))
    (run.path / "checkpoints" / "step-00000500").mkdir()  # no weights in it: not whole
    assert run.steps == [200, 300, 400]
    assert run.checkpoint("best").name == "step-00000200"
    assert run.checkpoint("last").name == "step-00000400"
    assert run.checkpoint(300).name == run.checkpoint("300").name == "step-00000300"
    with pytest.raises(ModelError, match="step 500") as absent:
        run.checkpoint(500)
    assert "200, 300, 400" in absent.value.why
    assert absent.value.hint == "use run:a@400"
    with pytest.raises(ModelError, match="'newest'"):
        run.checkpoint("newest")
    (run.path / "checkpoints" / "best.json").unlink()
    assert Run(run.path).checkpoint("best").name == "step-00000400"
    (run.path / "checkpoints" / "last.json").unlink()
    assert Run(run.path).checkpoint("last").name == "step-00000400"
    with pytest.raises(ModelError, match="no checkpoint"):
        make_run(folder, "b", checkpoints=()).checkpoint("best")


def test_a_run_that_stopped_giving_news_is_called_silent(folder: Path) -> None:
    ago = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    silent = make_run(folder, "silent", state="running", updated=ago).silent_for
    assert silent is not None
    assert silent == pytest.approx(3 * 3600, abs=60)
    assert make_run(folder, "awake", state="running", updated=datetime.now(UTC).isoformat()).silent_for is None
    assert make_run(folder, "done", state="finished", updated=ago).silent_for is None


def test_times_without_a_zone_are_local_and_nonsense_is_none() -> None:
    naive = parse_time("2026-11-22T20:00:00")
    assert naive is not None
    assert naive.tzinfo is not None
    assert naive.replace(tzinfo=None) == datetime(2026, 11, 22, 20)
    assert parse_time("yesterday") is None
    assert parse_time(None) is None


def test_list_names_every_run_even_a_damaged_one(folder: Path) -> None:
    assert json.loads(run_command("list", "--json")) == []
    make_run(folder, "first", objective="clip", updated="2026-11-22T10:00:00+00:00")
    make_run(folder, "second", objective="psd", skill=0.5, updated="2026-11-22T11:00:00+00:00")
    (make_run(folder, "third", updated="2026-11-22T09:00:00+00:00").path / "data.json").write_text("{")
    entries = {entry["name"]: entry for entry in json.loads(run_command("list", "--json"))}
    assert list(entries) == ["second", "first", "third"]
    assert entries["second"]["objective"] == "psd"
    assert entries["second"]["best"] == {"metric": "rsum", "value": 100.0}
    assert entries["third"]["state"] == "damaged"
    assert "data.json" in entries["third"]["problem"]
    text = run_command("list")
    assert all(word in text for word in ("first", "second", "clip", "psd", "damaged"))


def test_show_tells_settings_checkpoints_and_results(folder: Path) -> None:
    make_run(folder, "one")
    document = json.loads(run_command("show", "one", "--json"))
    assert document["config"]["data"]["batch_size"] == 128
    assert document["checkpoints"]["steps"] == [200, 400]
    by_name = {(row["task"], row["dataset"], row["metric"]): row for row in document["metrics"]}
    assert by_name["probe", "generated:kind", "accuracy"]["values"]["one"]["value"] == pytest.approx(0.74)
    text = run_command("show", "one")
    assert "200 (best), 400" in text
    assert "single" not in text  # the single prompt is a refinement, shown by --all
    assert "single" in run_command("show", "one", "--all")
    assert "no run 'two'" in run_command("show", "two", code=4)


def test_show_of_a_run_that_was_never_evaluated_takes_its_last_checks(folder: Path) -> None:
    run = make_run(folder, "fresh")
    for file in (run.path / "evals").iterdir():
        file.unlink()
    rows = json.loads(run_command("show", "fresh", "--json"))["metrics"]
    last = run.evaluations["val"][-1]
    found = {row["metric"]: row["values"]["fresh"]["value"] for row in rows if row["dataset"] == "val"}
    assert found == {name: last[name] for name in ("image_to_text_r1", "text_to_image_r1", "rsum")}


def test_diff_names_what_makes_two_runs_incomparable(folder: Path) -> None:
    make_run(folder, "a", objective="clip", skill=0.3)
    other = make_run(folder, "b", objective="psd", skill=0.9, seed=1, data__batch_size=64, optimizer__lr=5e-4)
    write(
        other.path / "env.json",
        {**other.env, "precision": "fp32", "versions": {**other.env["versions"], "torch": "2.15.0"}},
    )
    write(other.path / "data.json", {**other.data, "fingerprint": "f" * 64})
    document = json.loads(run_command("diff", "a", "b", "--json"))
    decisive = {row["name"]: row for row in document["decisive"]}
    assert decisive["effective batch"] == {"name": "effective batch", "values": [128, 64], "same": False}
    assert decisive["precision"]["values"] == ["bf16", "fp32"]
    assert not decisive["data fingerprint"]["same"]
    assert decisive["steps"]["same"]
    settings = {row["name"]: row["values"] for row in document["settings"]}
    assert settings == {
        "objective.name": ["clip", "psd"],
        "schedule.seed": [0, 1],
        "data.batch_size": [128, 64],
        "optimizer.lr": [0.001, 0.0005],
    }
    assert document["versions"] == [{"name": "torch", "values": ["2.14.0", "2.15.0"]}]
    assert document["environment"] == []
    probe = next(row for row in document["metrics"] if row["task"] == "probe")
    assert probe["difference"] == pytest.approx(0.4 * 0.6)
    assert probe["better"] == "b"
    text = run_command("diff", "a", "b")
    assert "≠ effective batch" in text
    assert "objective.name" in text


def test_diff_of_a_run_with_itself_finds_nothing(folder: Path) -> None:
    make_run(folder, "a")
    document = json.loads(run_command("diff", "a", "a", "--json"))
    assert all(row["same"] for row in document["decisive"])
    assert [document[part] for part in ("settings", "versions", "environment")] == [[], [], []]
    assert {row["difference"] for row in document["metrics"]} == {0.0}
    assert {row["better"] for row in document["metrics"]} == {None}
