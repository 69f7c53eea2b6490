"""Disks that are full, folders that vanish, checkpoints that are damaged: nothing is lost that could be kept, and it is said."""

from __future__ import annotations

import ast
import errno
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import softclip_cli
from softclip_cli import runs
from softclip_cli.app import app
from softclip_cli.config import build
from softclip_cli.errors import HostError, ModelError, TrainingError
from softclip_cli.training import checkpoint, run_folder
from softclip_cli.training.distributed import World
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, prepare, train

SMALL = {
    "model": {"reference": "tiny"},
    "data": {"batch_size": 16, "workers": 0},
    "schedule": {"steps": 6},
    "objective": {"name": "psd"},
    "log": {"every": 1},
    "eval": {"every": 100},
    "checkpoint": {"every": 2, "keep": 9},
    "device": "cpu",
    "precision": "fp32",
}


def settings(corpus: Path, **layers: dict) -> TrainSettings:
    return build(TrainSettings, SMALL, {"data": {"corpus": str(corpus)}}, layers)


@pytest.fixture(scope="module")
def finished(colour_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of steps 2, 4 and 6; copy it before damaging it."""
    return train(Plan(settings(colour_corpus), tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def at_step(made: Any, number: int, action: Callable[[], object]) -> None:
    """Do something just before a step of a trainer."""
    original = made.step

    def step(batch: Any, log: bool) -> Any:
        if made.done == number:
            action()
        return original(batch, log)

    made.step = step


# A full disk.


@pytest.mark.parametrize("name", ["metrics.jsonl", "status.json"])
def test_a_disk_that_is_full_for_the_small_files(colour_corpus, finished, tmp_path, monkeypatch, name):
    """Half a line is written, then no more: exit 5, the error says which file; resumed, the run is as if nothing had been."""
    made = prepare(Plan(settings(colour_corpus), tmp_path / "run"), World())
    write, opened = Path.write_text, Path.open

    def refuse() -> None:
        def write_text(self: Path, text: str, *args: Any, **kwargs: Any) -> int:
            if name in self.name:
                write(self, text[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, text, *args, **kwargs)

        def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if self.name == name and "a" in mode:
                with opened(self, mode) as stream:
                    stream.write('{"step": 4, "lo')
                raise OSError(errno.ENOSPC, "No space left on device")
            return opened(self, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "write_text", write_text)
        monkeypatch.setattr(Path, "open", open_)

    at_step(made, 3, refuse)
    with pytest.raises(HostError, match=f"{name} could not be written") as ended:
        made.run()
    assert ended.value.exit_code == 5
    assert "No space left" in ended.value.why
    assert "--resume" in ended.value.hint
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(".*partial"))
    assert checkpoint.to_resume(made.checkpoints)[0].name == "step-00000002"
    train(Plan(settings(colour_corpus), tmp_path / "run"))
    steps = [
        [(line["step"], line["loss"]) for line in runs.Run(path).training] for path in (finished, tmp_path / "run")
    ]
    assert steps[0] == steps[1]
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_file_that_the_system_refuses_to_let_grow(run, colour_corpus):
    """No injection: the process may write 200 KB a file, less than a checkpoint's weights."""
    assert (run / "checkpoints/step-00000006/model.safetensors").stat().st_size > 400_000
    before = {path: path.read_bytes() for path in run.glob("checkpoints/step-*/*")}
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from softclip_cli.app import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "train", "--resume", str(run), "--steps", "8"], capture_output=True, text=True
    )
    assert ended.returncode == 5, ended.stderr
    lines = ended.stderr.strip().splitlines()[-3:]
    assert "error:" in lines[0]
    assert "step 8 could not be written" in lines[0]
    assert "step 6 is whole" in lines[1]
    assert f"--resume {run}" in lines[2]
    assert {path: path.read_bytes() for path in run.glob("checkpoints/step-*/*")} == before
    assert not list(run.glob("checkpoints/.*partial"))
    assert checkpoint.to_resume(run / "checkpoints") == (run / "checkpoints/step-00000006", [])


def test_a_disk_that_is_full_at_the_start(colour_corpus, tmp_path, monkeypatch):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "replace_text", full)
    with pytest.raises(HostError, match=r"config\.toml could not be written"):
        train(Plan(settings(colour_corpus), tmp_path / "run"))


def test_what_ended_the_run_is_told_even_where_the_disk_is_full(colour_corpus, tmp_path, monkeypatch):
    made = prepare(Plan(settings(colour_corpus), tmp_path / "run"), World())

    def fail() -> None:
        monkeypatch.setattr(run_folder, "replace_text", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        raise TrainingError("diverged")

    at_step(made, 1, fail)
    with pytest.raises(TrainingError, match="diverged"):
        made.run()


# A folder that is removed.


@pytest.mark.parametrize("what", ["all of it", "checkpoints", "all of it, by a file in its place"])
def test_a_folder_removed_while_training(colour_corpus, finished, tmp_path, what):
    """It is made again and the run goes on to the same weights; where that cannot be, it ends with a plain error."""
    said: list[str] = []
    made = prepare(
        Plan(settings(colour_corpus), tmp_path / "run"),
        World(),
        lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None,
    )
    path = tmp_path / "run"

    def remove() -> None:
        made.writer.finish()
        shutil.rmtree(path / "checkpoints" if what == "checkpoints" else path)
        if "file" in what:
            path.write_text("in the way")

    at_step(made, 3, remove)
    if "file" in what:
        with pytest.raises(HostError, match="could not be written"):
            made.run()
        return
    made.run()
    assert runs.Run(path).state == "finished"
    assert checkpoint.saved_steps(path / "checkpoints") == [4, 6]
    one, other = (load_file(p / "checkpoints/step-00000006/model.safetensors") for p in (finished, path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    if what == "all of it":
        assert any("was removed while its run goes on" in line for line in said)
        assert [line["step"] for line in runs.Run(path).training] == [3, 4, 5, 6]
        for name in ("config.toml", "env.json", "data.json"):
            assert (path / name).read_text() == (finished / name).read_text()
        assert "was removed" in (path / "log.txt").read_text()


def test_a_folder_removed_after_the_last_step(colour_corpus, tmp_path):
    made = prepare(Plan(settings(colour_corpus), tmp_path / "run"), World())
    finish = made._finish
    made._finish = lambda: (made.writer.finish(), shutil.rmtree(tmp_path / "run"), finish())
    made.run()
    assert checkpoint.damage(tmp_path / "run/checkpoints/step-00000006") == ""
    assert runs.Run(tmp_path / "run").training[-1]["step"] == 6


def test_a_folder_removed_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    from softclip_cli.registry import open_model

    model = open_model("tiny", seed=0)
    folder, original, removed = tmp_path / "run" / "checkpoints", checkpoint.hash_file, []

    def hash_file(path: Path) -> str:
        if not removed:
            removed.append(path)
            shutil.rmtree(folder.parent)
        return original(path)

    monkeypatch.setattr(checkpoint, "hash_file", hash_file)
    path = checkpoint.save(folder, 3, model, {"model": model.net.state_dict()}, {})
    assert removed
    assert checkpoint.damage(path) == ""


# Damaged checkpoints.


def flip(path: Path, place: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 6', '"step": 4'))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("model.safetensors", halve, "model.safetensors is damaged"),
    "empty": ("optimizer.safetensors", lambda path: path.write_bytes(b""), "optimizer.safetensors is damaged"),
    "a bit flipped": ("optimizer.safetensors", flip, "checksum differs"),
    "a bit of the header flipped": ("model.safetensors", lambda path: flip(path, 20), "checksum differs"),
    "a file missing": ("optimizer.safetensors", Path.unlink, "optimizer.safetensors is missing"),
    "state.json half": ("state.json", halve, "state.json cannot be read"),
    "state.json no text": ("state.json", lambda path: path.write_bytes(b"\xff\xfe\x00{"), "state.json cannot be read"),
    "state.json a list": ("state.json", lambda path: path.write_text("[]"), "state.json cannot be read"),
    "state.json changed": ("state.json", edit, "state.json is damaged"),
    "state.json missing": ("state.json", Path.unlink, "state.json cannot be read"),
    "open_clip_config.json half": ("open_clip_config.json", halve, "open_clip_config.json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(run, name):
    file, harm, problem = DAMAGES[name]
    harm(run / "checkpoints/step-00000006" / file)
    found, problems = checkpoint.to_resume(run / "checkpoints")
    assert found == run / "checkpoints/step-00000004"
    assert len(problems) == 1
    assert problems[0].startswith("step-00000006: ")
    assert problem in problems[0]


def test_a_run_goes_on_from_the_one_before_and_says_so(run, finished, colour_corpus):
    """To the same weights as before the damage, which the repeated steps replace."""
    flip(run / "checkpoints/step-00000006/model.safetensors")
    said: list[str] = []
    train(
        Plan(settings(colour_corpus), run), lambda kind, facts: said.append(facts["text"]) if "text" in facts else None
    )
    assert any("step-00000006: model.safetensors is damaged" in line and "earlier" in line for line in said)
    assert any("at step 4 of 6" in line for line in said)
    one, other = (load_file(path / "checkpoints/step-00000006/model.safetensors") for path in (run, finished))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_when_all_are_damaged_nothing_is_started_anew(run, colour_corpus):
    for step in (2, 4, 6):
        halve(run / f"checkpoints/step-0000000{step}/model.safetensors")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["train", "--resume", str(run)])
    assert result.exit_code == 4
    assert "is whole" in result.stderr
    assert "step-00000002: model.safetensors is damaged" in result.stderr
    assert "start anew" in result.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["last.json", "best.json"])
@pytest.mark.parametrize("harm", [halve, Path.unlink, lambda path: path.write_text('{"step": 77, "value": 1.0}')])
def test_pointers_that_are_damaged_or_point_nowhere(run, colour_corpus, name, harm):
    """A run goes on from the folders that are there; a best checkpoint that is gone is no hurdle for the next."""
    harm(run / "checkpoints" / name)
    if name == "best.json":
        assert checkpoint.read_best(run / "checkpoints") == {}
    train(Plan(settings(colour_corpus, schedule={"steps": 7}), run))
    after = runs.Run(run)
    assert after.checkpoint("last").name == "step-00000007"
    assert after.best["step"] == 7  # of the evaluation at the end


@pytest.mark.parametrize("name", ["last", "best"])
def test_who_opens_a_run_by_a_pointer_to_nowhere_is_told(run, name):
    (run / "checkpoints" / f"{name}.json").write_text('{"step": 77, "value": 1.0}')
    with pytest.raises(ModelError, match="no checkpoint of step 77"):
        runs.Run(run).checkpoint(name)
    halve(run / "checkpoints" / f"{name}.json")
    with pytest.raises(ModelError, match=f"{name}.json is damaged"):
        runs.Run(run).checkpoint(name)


def test_what_a_killed_process_left_is_removed(run, colour_corpus):
    left = run / "checkpoints/.step-00000007.4711.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    train(Plan(settings(colour_corpus, schedule={"steps": 7}), run))
    assert not left.exists()


def test_lines_of_a_run_killed_before_its_first_checkpoint_are_forgotten(colour_corpus, tmp_path):
    """A run that begins anew in its folder begins metrics.jsonl anew, whose last line was cut by the kill."""
    prepare(Plan(settings(colour_corpus), tmp_path / "run"), World())
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "loss": 99.0}\n{"step": 2, "lo')
    train(Plan(settings(colour_corpus), tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["loss"] < 99


# Checkpoints of something else.


def test_another_architecture_is_refused_by_name(run):
    before = (run / "metrics.jsonl").read_bytes()
    result = CliRunner().invoke(app, ["train", "--resume", str(run), "--model", "ViT-S-32-alt", "--steps", "8"])
    assert result.exit_code == 4
    error = result.stderr[result.stderr.index("error:") :]
    assert "checkpoint of tiny" in error
    assert "ViT-S-32-alt" in error
    assert "embed_dim" in error
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_same_shapes_with_another_activation_are_another_architecture(run, colour_corpus):
    """Weights that would load without complaint and mean something else."""
    made = prepare(Plan(settings(colour_corpus), run), World())
    made.model.config["quick_gelu"] = not made.model.config.get("quick_gelu", False)
    with pytest.raises(ModelError, match="quick_gelu") as refused:
        made.resume(run / "checkpoints/step-00000006")
    assert "tiny" in str(refused.value)


def test_a_later_format_is_refused(run, colour_corpus):
    path = run / "checkpoints/step-00000006/state.json"
    state = json.loads(path.read_text())
    state["format"] = 2
    del state["digest"]
    path.write_text(json.dumps(state))
    with pytest.raises(ModelError, match="format 2"):
        train(Plan(settings(colour_corpus, schedule={"steps": 7}), run))


# Nothing is unpickled.

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Calls that unpickle, and the argument that forbids it: weights of towers that others publish may be torch files.
UNSAFE_CALLS = {
    "torch.load": "weights_only=True",
    "torch.jit.load": None,
    "pd.read_pickle": None,
    "pandas.read_pickle": None,
}


def call_arguments(node: ast.AST) -> list[str]:
    """The keyword arguments of a call, as text."""
    return [ast.unparse(keyword) for keyword in node.keywords] if isinstance(node, ast.Call) else []


MESSAGES = {"data/ray_map.py"}  # between the processes of one job, never from a file
ARRAYS = {
    "evaluation/layout_arrays.py"
}  # CIFAR's releases, by an unpickler that knows arrays only (tests/test_catalogue_faults.py)


def test_no_code_of_ours_unpickles():
    """No import of a pickling module, no call that unpickles; in training/ not even a restricted one."""
    root, found = Path(softclip_cli.__file__).parent, []
    for path in root.rglob("*.py"):
        if path.relative_to(root).as_posix() in MESSAGES | ARRAYS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            call, arguments = ast.unparse(node.func) if isinstance(node, ast.Call) else "", call_arguments(node)
            unsafe = call in UNSAFE_CALLS and (UNSAFE_CALLS[call] not in arguments or path.parent.name == "training")
            if UNSAFE_MODULES & set(names) or unsafe or "allow_pickle=True" in arguments:
                found.append(f"{path.name}:{node.lineno} {call}")
    assert found == []


def test_a_checkpoint_is_resumed_and_opened_without_unpickling(run, colour_corpus, monkeypatch):
    """Proved by running: any use of pickle fails while a run is resumed and its model opened."""
    from softclip_cli.registry import open_model

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    made = prepare(Plan(settings(colour_corpus, schedule={"steps": 7}), run), World())
    for place, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(place, name, forbidden)
    made.resume(run / "checkpoints/step-00000006")
    assert made.first_step == 6
    open_model(str(run))
    suffixes = {path.suffix for path in run.glob("checkpoints/**/*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
