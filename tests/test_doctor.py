"""`softclip doctor`: names what is broken with its remedy, survives crashes and hangs, exits 5 where it must."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer import Typer
from typer.testing import CliRunner

from softclip_cli.commands.doctor import doctor
from softclip_cli.reports import health, host
from softclip_cli.reports.health import Check, Ran
from softclip_cli.resources import size

DEVICES = {
    "cuda": [],
    "mps": False,
    "threads": 2,
    "cuda_build": None,
    "device": "cpu",
    "precision": "bfloat16",
    "reason": "the CPU multiplies bf16 natively (AMX)",
}


def healthy(code: str) -> Ran:
    """A machine on which everything can be imported."""
    if "get_device_properties" in code:
        return Ran(0, "noise of a library\nsoftclip-doctor:" + json.dumps(DEVICES) + "\n", "")
    return Ran(0, "".join(f"softclip-doctor:{module}\n" for module in health.IMPORTS.values()), "")


def run_doctor(*arguments: str) -> tuple[int, str]:
    app = Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def fake_package(folder: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package of this name before the installed one, for processes that are started."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_mismatched_pair_of_torch_and_torchvision_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')", monkeypatch)
    check = health.check_package("torchvision", health.run_python)
    assert check.status == "problem"
    assert "operator torchvision::nms does not exist" in check.message
    assert check.remedy == health.PAIR_REMEDY
    assert "\n" not in check.message + check.remedy


def test_a_package_that_crashes_or_hangs_does_not_take_the_doctor_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path, "timm", "import os; os.abort()", monkeypatch)
    crashed = health.check_package("timm", health.run_python)
    assert crashed.status == "problem"
    assert "crashed (signal 6)" in crashed.message
    (tmp_path / "timm" / "__init__.py").write_text("import time; time.sleep(60)")
    hung = health.check_package("timm", lambda code: health.run_python(code, time_limit=0.5))
    assert hung.status == "problem"
    assert "took more than" in hung.message


def test_a_missing_part_of_a_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, "timm", "import no_such_thing.inside", monkeypatch)
    check = health.check_package("timm", health.run_python)
    assert check.status == "problem"
    assert check.remedy == "install what is missing: pip install no_such_thing"


def test_after_the_first_failure_each_package_is_looked_at_by_itself() -> None:
    asked = []

    def run(code: str) -> Ran:
        if "get_device_properties" in code:
            return healthy(code)
        asked.append(code)
        if code.count("import") > 1:  # all in one process: it died at torchvision
            return Ran(-11, "softclip-doctor:torch\n", "")
        return Ran(1, "", "ImportError: broken") if code == "import open_clip" else Ran(0, "", "")

    checks = {check.name: check for check in health.examine(run)}
    assert "import torch" not in asked
    assert {"import torchvision", "import open_clip", "import typer"} <= set(asked)
    assert checks["torchvision"].status == "ok"
    assert checks["open_clip_torch"].status == "problem"
    assert "broken" in checks["open_clip_torch"].message


def test_versions_are_those_of_pyproject_and_an_old_one_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        requirement = Requirement(line)
        assert set(host.wanted_version(requirement.name).split(",")) == set(str(requirement.specifier).split(","))
    assert {Requirement(line).name for line in project["dependencies"]} >= set(health.IMPORTS)
    assert host.wanted_version("no-such-package") == ""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "timm" else real(name))
    old = health.check_package("timm", healthy)
    assert old.status == "problem"
    assert old.message == f"0.1, softclip needs {host.wanted_version('timm')}"
    assert old.remedy.startswith("pip install -U 'timm>=")


def test_an_absent_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    check = health.check_package("datasets", healthy)
    assert (check.status, check.message) == ("problem", "not installed")
    assert check.remedy == f"pip install 'datasets{host.wanted_version('datasets')}'"


def test_devices_come_with_the_choice_and_its_reason() -> None:
    checks = {check.name: check for check in health.check_devices(healthy)}
    assert checks["choice"].message == "auto takes cpu and bf16: the CPU multiplies bf16 natively (AMX)"
    gpu = {"name": "A GPU", "memory": 80 << 30, "capability": "9.0"}
    found = {**DEVICES, "cuda": [gpu], "device": "cuda", "reason": "the GPU multiplies bf16 natively"}
    told = {
        check.name: check
        for check in health.check_devices(lambda _: Ran(0, "softclip-doctor:" + json.dumps(found), ""))
    }
    assert told["CUDA 0"].message == "A GPU, 80.0 GiB, compute capability 9.0"
    broken = health.check_devices(lambda _: Ran(1, "", "Traceback\nOSError: libcudart.so: cannot open\n"))
    assert health.stops_training(broken)
    assert "libcudart.so" in broken[-1].message


def test_the_choice_is_the_trainers_own() -> None:
    """The real thing, in a process of its own: what doctor promises is what training takes."""
    from softclip_cli.training.device import choose_device, choose_precision

    device = choose_device("auto")
    dtype, reason = choose_precision("auto", device)
    name = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}[str(dtype)]
    (choice,) = (check for check in health.check_devices(health.run_python) if check.name == "choice")
    assert choice.message == f"auto takes {device} and {name}: {reason}"


def test_a_place_that_cannot_be_written_to_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path / "file" / "runs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checks = {check.name: check for check in health.check_folders()}
    assert checks["runs folder"].status == "problem"
    assert "$SOFTCLIP_RUNS" in checks["runs folder"].remedy
    assert checks["cache folder"].status in ("ok", "warning")
    assert "(will be made)" in checks["cache folder"].message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]  # the check leaves nothing behind


def test_little_space_is_a_warning_not_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LEAST_DISK", 1 << 62)
    monkeypatch.setattr(health, "LEAST_MEMORY", 1 << 62)
    assert health.check_folder("runs folder", tmp_path, "free some").status == "warning"
    memory = health.check_memory()
    assert memory.status in ("warning", "ok")
    assert not health.stops_training([memory])


def test_the_cache_is_where_evaluation_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from softclip_cli.evaluation.cache import default_folder

    for value in (str(tmp_path), "", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert host.cache_dir() == default_folder()


@pytest.mark.parametrize(("value", "words"), [("1", "local cache only"), ("true", "local cache only"), ("0", "off: ")])
def test_the_offline_switch_is_read_as_the_hub_reads_it(
    value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert words in health.check_offline().message


def test_a_healthy_machine_exits_0_and_a_broken_one_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        health, "examine", lambda: [Check("Python", "ok", "3.12"), Check("disk", "warning", "little", "free some")]
    )
    code, text = run_doctor()
    assert code == 0
    assert "free some" in text
    code, text = run_doctor("--json")
    assert (code, json.loads(text)["ready"]) == (0, True)
    monkeypatch.setattr(health, "examine", lambda: [Check("torch", "problem", "broken [bold]", "mend it")])
    code, text = run_doctor()
    assert code == 5
    assert "broken [bold]" in text  # markup in a message is text
    code, text = run_doctor("--json")
    assert code == 5
    assert json.loads(text) == {
        "ready": False,
        "checks": [{"name": "torch", "status": "problem", "message": "broken [bold]", "remedy": "mend it"}],
    }


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_in_powers_of_1024(count: int, text: str) -> None:
    assert size(count) == text
