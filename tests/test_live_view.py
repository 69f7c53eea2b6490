"""The live view: the same facts at every width, no line too long, plain lines where nobody can redraw."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from softclip_cli import console
from softclip_cli.console_live import BLOCKS, Facts, LiveView, sparkline
from softclip_cli.console_training import TrainingView

METRICS: dict[str, Any] = {
    "step": 640,
    "loss": 2.713,
    "chance": math.log(256),
    "lr": 4.2e-4,
    "logit_scale": 38.1,
    "samples_per_second": 1212.2,
    "data_wait": 0.03,
    "memory": 2150,
    "device_memory": 31744,
    "soft_share": 0.45,
}
EVALUATION = {"eval": "val", "metric": "rsum", "rsum": 123.4, "step": 500, "best": True}


def drawn(width: int) -> list[str]:
    stream = io.StringIO()
    view = LiveView(Console(file=stream, force_terminal=True, color_system=None, width=width, soft_wrap=True))
    view.bar("psd", 640, 1000)
    for i in range(50):
        view.facts.hear_metrics({**METRICS, "loss": 5.5 - i / 20})
    view.facts.hear_metrics(METRICS)
    view.facts.hear_evaluation(EVALUATION)
    view.progress.console.print(view)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40, 20])
def test_nothing_is_wider_than_the_terminal(width):
    lines = drawn(width)
    assert len(lines) == 4
    assert max(len(line) for line in lines) <= width


def test_what_matters_is_there_at_eighty_columns():
    text = "\n".join(drawn(80))
    for fact in (
        "640/1000",
        "loss 2.713  chance 5.55",
        "1,212 pairs/s",
        "data wait 3%",
        "memory 2.1 GiB",
        "device 31.0 GiB",
    ):
        assert fact in text, fact
    for fact in ("lr 4.2e-04", "scale 38.1", "soft rows 45%", "val rsum 123.40 (best so far)", "█"):
        assert fact in text, fact


def test_narrow_terminals_lose_whole_items_from_the_end():
    assert drawn(60)[2] == "1,212 pairs/s   data wait 3%   memory 2.1 GiB"
    assert drawn(40)[2] == "1,212 pairs/s   data wait 3%"


def test_the_curve_follows_the_values():
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == BLOCKS[::-1]
    assert sparkline([8, 8, 1, 1], 2) == "█▁"
    assert sparkline([1.0, 1.0], 8) == "▁▁"
    assert sparkline([math.nan, 1.0], 8) == "▁▁"
    assert len(sparkline(range(1000), 30)) == 30
    assert Facts().lines  # nothing is drawn before the first metrics
    assert drawn_nothing() == ""


def drawn_nothing() -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(Facts())
    return stream.getvalue()


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")])
def test_plain_lines_where_the_user_or_the_terminal_wants_them(monkeypatch: pytest.MonkeyPatch, variable):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(*variable)
    stream = io.StringIO()
    monkeypatch.setattr(
        console, "err", Console(file=stream, force_terminal=True, width=80, soft_wrap=True, highlight=False)
    )
    live = variable == ("TERM", "xterm")
    with TrainingView() as view:
        view(
            "start",
            {
                "steps": 1000,
                "first_step": 0,
                "objective": "psd",
                "model": "tiny",
                "pairs": 10,
                "batch_size": 2,
                "epochs": 1,
                "trainable": 5,
                "path": Path("runs/x"),
            },
        )
        view("metrics", METRICS)
        view("evaluation", EVALUATION)
        view("end", {"state": "finished", "step": 1000})
    text = stream.getvalue()
    assert ("\x1b[2K" in text) is live  # lines are redrawn only there
    assert ("step 640/1000  loss 2.713 (chance 5.55)" in text) is not live
