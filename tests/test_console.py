"""What a log shows where there is no terminal."""

from __future__ import annotations

import pytest

from softclip_cli import console


def test_long_work_speaks_now_and_then_off_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    count = console.PlainCounter()
    for done in (100, 2000, 3000, 4000):
        count("images", done, 5000)
    assert capsys.readouterr().err.splitlines() == ["images: 2,000 of 5,000", "images: 4,000 of 5,000"]
