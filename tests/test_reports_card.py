"""The model card: what the Hub reads from it, what it admits, and that its example runs in stock open_clip."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_runs import DATA, evaluations, make_run, write

from softclip_cli.reports.model_card import model_card, write_model_card
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
