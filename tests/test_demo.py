"""The demonstration, small: it trains, evaluates, draws, and passes on what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.data.corpus import Corpus
from softclip_cli.demo import DemoOptions, run_side_by_side, same_training
from softclip_cli.errors import SoftclipError
from softclip_cli.runs import Run


def test_the_demo_trains_evaluates_and_draws(tmp_path):
    options = ["--out", str(tmp_path / "demo"), "--pairs", "1000", "--steps", "12", "--batch-size", "32", "--json"]
    result = CliRunner().invoke(app, ["demo", *options])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    for name in ("clip", "softclip"):
        tasks = {entry["task"] for entry in document["evaluations"][name]}
        assert tasks == {"zeroshot", "probe", "retrieval", "shift", "composition"}
    page = (tmp_path / "demo" / "index.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    made = DemoOptions(tmp_path / "demo", pairs=1000, steps=12, batch_size=32)
    run, corpus = Run(document["runs"]["softclip"]), Corpus.open(tmp_path / "demo" / "corpus")
    assert same_training(run, made, corpus)
    assert not same_training(run, replace(made, steps=13), corpus)
    assert not same_training(run, made, replace(corpus, info={**corpus.info, "fingerprint": "another"}))


def test_a_failing_part_passes_on_its_message_and_exit_code(tmp_path):
    paths = {"a": tmp_path / "a"}
    with pytest.raises(SoftclipError, match="no corpus at") as caught:
        run_side_by_side({"a": [["train", "--data", str(tmp_path / "nowhere")]]}, paths, 1, lambda kind, facts: None)
    assert caught.value.exit_code == 3
