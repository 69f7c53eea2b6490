"""The command line as a whole: quick help, frozen flags, exit codes and three-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from softclip_cli.app import app

runner = CliRunner()
HEAVY = {
    "torch",
    "open_clip",
    "datasets",
    "pandas",
    "sklearn",
    "matplotlib",
    "transformers",
    "torchvision",
    "timm",
}
COMMON = {"--json", "--debug", "--help"}
# The flags of every command. A change here is a change of the interface: say so in CHANGELOG.md.
FLAGS = json.loads((Path(__file__).parent / "flags.json").read_text())


def flags_of(command: typer.core.TyperCommand) -> list[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return sorted(name for name in names if name.startswith("-"))


def commands(group: typer.core.TyperGroup, prefix: str = "") -> dict[str, list[str]]:
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = flags_of(command)
    return found


def test_the_flags_are_frozen():
    assert commands(typer.main.get_command(app)) == FLAGS


def test_every_command_takes_json_and_debug():
    for name, flags in FLAGS.items():
        assert set(flags) >= COMMON - {"--help"}, name


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["eval", "zeroshot", "--help"], ["data", "prepare", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom softclip_cli.app import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip().splitlines()[-1] == "[]"


def run(*arguments: str) -> tuple[int, str, str]:
    result = runner.invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("eval", "zeroshot", "--dataset", "imagenet"), 3, "layout"),
        (("probe", "--dataset", "cifar10"), 3, "layout"),
        (("retrieve", "--split", "coco-5k"), 3, "layout"),
        (("eval", "zeroshot", "--dataset", "imagenett"), 3, "imagenet"),
        (("train", "--data", "nowhere"), 3, "softclip data prepare"),
        (("train", "--objective", "pds"), 2, "psd"),
        (("train", "--set", "objective.alhpa_end=1", "--set", "optimizer.lrr=1"), 2, "2 problems"),
        (("train", "--objective", "albef", "--set", "objective.queue_size=10", "--lr", "-1"), 2, "2 problems"),
        (("train", "--objective", "distill"), 2, "needs teacher_model"),
        (("train", "--config", "nowhere.toml"), 2, "nowhere.toml"),
        (("train", "--recipe", "nothing"), 2, "recipe"),
        (("models", "show", "ViT-B-23"), 4, "ViT-B-32"),
        (("train", "--resume", "no-such-run"), 4, "no-such-run"),
        (("train", "--batch-size", "1"), 2, "batch-size"),
        (("trian",), 2, "train"),
    ],
)
def test_what_goes_wrong_is_said_with_the_right_exit_code(arguments, code, words):
    got, out, err = run(*arguments)
    assert got == code, err
    assert words in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err


def test_an_unknown_model_is_exit_4(colour_corpus):
    code, _, err = run("train", "--data", str(colour_corpus), "--model", "tinny", "--batch-size", "16")
    assert code == 4
    assert "'tiny'" in err


def test_a_batch_larger_than_the_corpus_is_exit_2(colour_corpus):
    code, _, err = run("train", "--data", str(colour_corpus), "--batch-size", "4096")
    assert code == 2
    assert "96 samples" in err


def test_json_is_exactly_one_document(colour_corpus):
    code, out, _ = run("models", "list", "tiny", "--json")
    assert code == 0
    assert json.loads(out)[0]["reference"] == "tiny"
    code, out, _ = run(
        "train",
        "--data",
        str(colour_corpus),
        "--batch-size",
        "16",
        "--steps",
        "2",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--json",
    )
    assert code == 0
    assert json.loads(out)["status"]["state"] == "finished"


def test_the_newest_run_is_the_default_model(colour_corpus):
    run(
        "train", "--data", str(colour_corpus), "--batch-size", "16", "--steps", "2", "--workers", "0", "--device", "cpu"
    )
    code, out, err = run("retrieve", "--split", f"{colour_corpus}:val", "--json")
    assert code == 0, err
    assert json.loads(out)["task"] == "retrieval"
    assert "run" in err


def test_settings_can_be_shown_and_read_back(tmp_path):
    code, out, _ = run("train", "--show-config", "--objective", "clip", "--lr", "0.01")
    assert code == 0
    (tmp_path / "c.toml").write_text(out)
    assert run("train", "--show-config", "--config", str(tmp_path / "c.toml"))[1] == out
