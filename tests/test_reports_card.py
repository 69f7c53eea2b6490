"""The model card: what the Hub reads from it, what it admits, and that its example runs in stock open_clip."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_runs import DATA, evaluations, make_run, write

from softclip_cli.reports.card_file import EditedByHand
from softclip_cli.reports.model_card import model_card, renew_model_card, write_model_card
from softclip_cli.runs import Run


def again(run: Run) -> Run:
    """The same run, read anew."""
    return Run(run.path)


def limits(card: str) -> str:
    return card.partition("## Limitations")[2]


def test_the_hub_reads_the_header_and_the_results(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = make_run(tmp_path, "2026-11-22-201500-psd", skill=0.6)
    path = write_model_card(run)
    assert path == run.path / "README.md"
    card = ModelCard.load(path)
    assert card.data.library_name == "open_clip"
    assert card.data.license == "other"
    assert card.data.to_dict()["license_name"] == "unknown"
    assert {"softclip", "clip", "psd"} <= set(card.data.tags or [])
    found = {
        (result.dataset_name, result.task_name, result.metric_type): result.metric_value
        for result in card.data.eval_results or []
    }
    for one in evaluations(0.6):
        for name in ("top1", "accuracy", "image_to_text_r1"):
            if name in one["metrics"]:
                value = next(v for key, v in found.items() if key[0] == one["dataset"]["name"] and key[2] == name)
                assert value == pytest.approx(100 * one["metrics"][name]["value"], abs=1e-3)
    assert write_model_card(run, license_name="mit").read_text().count("license: mit") == 1
    assert "license_name" not in path.read_text()


def test_the_card_tells_data_settings_and_results_with_intervals(tmp_path: Path) -> None:
    card = model_card(make_run(tmp_path, "a", skill=0.6, objective__alpha_end=0.5)).replace("\N{NO-BREAK SPACE}", " ")
    assert "Known noise of the training pairs: mismatched 15 %, vague 10 %, partial 5 %." in card
    assert "| Fingerprint | 0123456789ab |" in card
    assert "| `objective.alpha_end` | 0.5 |" in card
    assert "| Linear probe | generated:kind | 1,000 | accuracy | 74.0 | [71.2, 76.6] |  |" in card
    assert "| Zero-shot classification | generated:kind | 1,000 | top-1 | 54.0 | [50.9, 57.1] | 25.0 |" in card
    assert 'folder = "local-dir:checkpoints/step-00000200"' in card


def test_a_frozen_teacher_is_named_with_its_fingerprint(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", skill=0.6)
    assert "| Teacher |" not in model_card(run)
    teacher = {"reference": "run:large", "fingerprint": "ab" * 32, "features": "live"}
    write(run.path / "data.json", {**DATA, "teacher": teacher})
    assert "| Teacher | run:large (live, abababababab) |" in model_card(again(run))


def test_limitations_follow_from_the_facts_of_the_run(tmp_path: Path) -> None:
    whole = make_run(tmp_path, "whole")
    assert "10,000 image-text pairs" in limits(model_card(whole))
    assert "has not finished" not in limits(model_card(whole))
    assert "photographs" not in limits(model_card(whole))
    write(whole.path / "data.json", {**DATA, "pairs": 400_000_000, "noise": {}, "generator": {"name": "drawn"}})
    changed = limits(model_card(again(whole)))
    assert "image-text pairs;" not in changed
    assert "How many of its training captions are wrong is not known" in changed
    assert "of no use on photographs" in changed
    stopped = make_run(tmp_path, "stopped", state="interrupted", model__lock=["image", "text"])
    assert "state: interrupted, step 200 of 400" in limits(model_card(stopped))
    assert "the image and text trunk" in limits(model_card(stopped))


def test_a_run_without_evaluations_or_checkpoints_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", checkpoints=())
    for file in (run.path / "evals").iterdir():
        file.unlink()
    card = model_card(again(run))
    assert "without intervals" in card
    assert "has kept no checkpoint" in card
    assert "create_model" not in card
    (run.path / "metrics.jsonl").unlink()
    assert "has not been evaluated" in model_card(again(run))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.toml").write_text("")
    assert "The run folder does not say." in model_card(Run(tmp_path / "bare"))


def test_the_example_loads_the_checkpoint_in_stock_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = pytest.importorskip("open_clip")
    import torch
    from safetensors.torch import save_file

    run = make_run(tmp_path, "a", checkpoints=(7,))
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    net = open_clip.CLIP(**config)
    folder = run.path / "checkpoints" / "step-00000007"
    save_file(net.state_dict(), folder / "model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    write(run.path / "checkpoints" / "best.json", {"step": 7})
    code = re.search(r"```python\n(import open_clip.*?)```", model_card(again(run)), re.DOTALL)
    assert code
    monkeypatch.chdir(run.path)
    names: dict[str, object] = {}
    exec(code[1], names)
    loaded, tokenizer = names["model"], names["tokenizer"]
    assert isinstance(loaded, torch.nn.Module)
    assert callable(tokenizer)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert tokenizer(["a red star"]).shape == (1, 8)


def test_the_objective_is_told_with_its_sources_and_its_paper(tmp_path: Path) -> None:
    from softclip_cli.objectives.settings import MARKS, find_preset

    card = model_card(make_run(tmp_path, "a", objective="ema-kd", objective__alpha_end=0.25))
    for name, (_, mark) in find_preset("ema-kd").choices.items():
        source = "set for this run" if name == "alpha_end" else MARKS[mark]
        assert re.search(rf"\| `objective\.{name}` \| .+ \| {re.escape(source)} \|", card), name
    assert "| `objective.alpha_end` | 0.25 | set for this run |" in card
    assert "[arXiv 2104.08945](https://arxiv.org/abs/2104.08945)" in card
    assert "| Training time | 4 min 10 s |" in card
    assert "| Device | cpu |" in card
    assert "carbon emissions were not measured" in card
    assert "not recorded: ask the data's source" in card


def test_folders_of_this_machine_do_not_get_into_a_card(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", model__reference="timm:x@/home/me/weights.pth+hf:/home/me/text")
    write(run.path / "data.json", {**DATA, "corpus": "/home/me/pictures"})
    card = model_card(again(run))
    assert "/home/me" not in card
    assert "| Corpus | pictures |" in card
    assert "timm:x@weights.pth+hf:text" in card


def test_results_are_those_of_the_weights_that_the_card_loads(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", skill=0.6)
    other = evaluations(0.9)[1]
    other["model"] = {"reference": "run:a@400", "name": "a", "fingerprint": "e" * 64}
    other["dataset"]["name"] = "elsewhere"
    write(run.path / "evals" / "other.json", other)
    card = model_card(again(run))
    assert "elsewhere" not in card
    assert "Left out: 1 evaluation of other weights of this run." in card
    for file in (run.path / "evals").iterdir():
        file.unlink()
    card = model_card(again(run))
    assert "From the check at step 200 during training" in card
    line = next(line for line in again(run).evaluations["val"] if line["step"] == 200)
    assert f"| rsum | {line['rsum']:.1f} |" in card


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = make_run(tmp_path, "a", skill=0.6)
    path = write_model_card(run)
    text = path.read_text().replace("license: other\nlicense_name: unknown", "license: apache-2.0\nlanguage: en")
    text = text.replace("- softclip\n", "- softclip\n- mine\n")
    before, _, behind = text.partition("<!-- softclip writes")
    path.write_text(f"{before}Mine, before.\n\n<!-- softclip writes{behind}\nMine, behind.\n")
    for file in (run.path / "evals").glob("probe*"):
        file.unlink()
    assert renew_model_card(again(run)) == ""
    card = path.read_text()
    assert "Linear probe" not in card
    assert "Mine, before." in card.partition("<!-- softclip writes")[0]
    assert card.endswith("<!-- softclip: end -->\n\nMine, behind.\n")
    data = ModelCard.load(path).data
    assert (data.license, data.language) == ("apache-2.0", "en")
    assert {"mine", "psd"} <= set(data.tags or [])
    assert len(data.eval_results or []) > 5
    assert write_model_card(again(run)).read_text() == card


def test_a_card_changed_within_softclips_part_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", skill=0.6)
    path = write_model_card(run)
    edited = path.read_text().replace("## Limitations", "## What it cannot do")
    path.write_text(edited)
    assert "changed between softclip's marks" in renew_model_card(again(run))
    assert path.read_text() == edited
    with pytest.raises(EditedByHand) as caught:
        write_model_card(again(run))
    assert caught.value.exit_code == 3
    assert "--overwrite" in caught.value.hint
    assert "## Limitations" in write_model_card(again(run), overwrite=True).read_text()
    for foreign in (
        "My own words.\n",
        "---\n: [\n---\n" + edited.partition("---\n\n")[2].replace("What it cannot do", "Limitations"),
    ):
        path.write_text(foreign)
        assert "left as it is" in renew_model_card(again(run))
        assert path.read_text() == foreign


def test_the_command_writes_the_card_anew_and_keeps_the_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard
    from typer.testing import CliRunner

    from softclip_cli.app import app

    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path))
    run = make_run(tmp_path, "a", skill=0.6)
    first = CliRunner().invoke(app, ["runs", "card", "a", "--license", "mit", "--json"])
    assert first.exit_code == 0, first.stderr
    document = json.loads(first.stdout)
    assert document == {"run": "a", "card": str(run.path / "README.md"), "evaluations": len(evaluations(0.6))}
    assert CliRunner().invoke(app, ["runs", "card", "a"]).exit_code == 0
    assert ModelCard.load(run.path / "README.md").data.license == "mit"
    (run.path / "README.md").write_text("mine")
    refused = CliRunner().invoke(app, ["runs", "card", "a"])
    assert refused.exit_code == 3
    assert "no part that is marked" in refused.stderr


def test_a_new_evaluation_renews_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softclip_cli.commands.evaluation_output import finish, finish_all

    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path))
    run = make_run(tmp_path, "a", skill=0.6)
    path = write_model_card(run)
    new = {**evaluations(0.6)[1], "model": {"reference": "run:a", "name": "a", "fingerprint": "f" * 64}}
    new["dataset"] = {**new["dataset"], "name": "cifar10"}
    finish(new, tmp_path / "elsewhere.json", True, lambda document: None)
    assert "cifar10" not in path.read_text()
    finish(new, None, True, lambda document: None)
    assert "| Zero-shot classification | cifar10 |" in path.read_text()
    several = [{**new, "dataset": {**new["dataset"], "name": name}} for name in ("stl10", "mnist")]
    finish_all(several, None, True, lambda documents: None)
    assert "stl10" in path.read_text() and "mnist" in path.read_text()
