"""Settings: layers, all problems at once, nearest names, and TOML there and back."""

from __future__ import annotations

import pytest

from softclip_cli.config import build, describe, parse_set, read_toml, to_toml
from softclip_cli.errors import UsageError
from softclip_cli.training.settings import TrainSettings


def test_later_layers_win():
    settings = build(TrainSettings, {"optimizer": {"lr": 1.0, "eps": 0.5}}, {"optimizer": {"lr": 2.0}})
    assert (settings.optimizer.lr, settings.optimizer.eps) == (2.0, 0.5)


def test_all_problems_are_reported_at_once_with_the_nearest_names():
    layer = {"optimizer": {"lr": -1, "weigth_decay": 0.1}, "data": {"batch_size": "many"}, "modle": {}}
    with pytest.raises(UsageError) as caught:
        build(TrainSettings, layer)
    text = str(caught.value)
    assert "4 problems" in text
    for part in ("optimizer.lr", "'weight_decay'", "data.batch_size", "'model'"):
        assert part in text
    assert caught.value.exit_code == 2


def test_a_wrong_value_does_not_hide_what_goes_wrong_together():
    """Values wrong by themselves, choices that exclude each other and a queue smaller than the batch: one message."""
    layer = {
        "objective": {"name": "albef", "alpha_end": 1.5, "queue_size": 10, "partition": "blocks"},
        "data": {"batch_size": 64, "micro_batch": 100},
        "optimizer": {"lr": -1, "betas": [0.9, "many"]},
        "eval": {"weights": "emma"},
    }
    with pytest.raises(UsageError) as caught:
        build(TrainSettings, layer)
    for part in (
        "objective.alpha_end",
        "optimizer.lr",
        "optimizer.betas",
        "eval.weights",
        "partition = blocks needs mix = subset",
        "queue_size = 10 is smaller than a batch of 64 pairs",
        "micro_batch (100) is larger",
    ):
        assert part in caught.value.why
    assert layer["objective"]["alpha_end"] == 1.5  # the layers are left as they were


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        ({"objective": {"teacher": "frosen", "teacher_model": "tiny"}}, 1),
        ({"data": {"batch_size": "many", "micro_batch": 10_000}}, 1),
        ({"objective": 3, "eval": {"weights": "ema"}}, 1),
        ({"objective": {"name": "distil"}, "eval": {"weights": "ema"}}, 1),
    ],
)
def test_nothing_is_said_of_the_default_in_the_place_of_a_wrong_value(layer, count):
    """The teacher that was misspelt is not told to be another one, too."""
    with pytest.raises(UsageError) as caught:
        build(TrainSettings, layer)
    assert len(caught.value.why.splitlines()) == count, caught.value.why


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"eval": {"weights": "ema"}, "objective": {"name": "clip"}}, "eval.weights = ema"),
        ({"data": {"teacher_features": "live"}, "objective": {"name": "psd"}}, "data.teacher_features = live"),
        (
            {
                "data": {"teacher_features": "live"},
                "model": {"lock": "image,text"},
                "objective": {"name": "distill", "teacher_model": "tiny"},
            },
            "needs pixels",
        ),
    ],
)
def test_sections_that_contradict_each_other_are_refused(layer, words):
    with pytest.raises(UsageError, match=words):
        build(TrainSettings, layer)


def test_a_setting_in_the_wrong_section_is_found():
    with pytest.raises(UsageError, match=r"optimizer\.lr"):
        build(TrainSettings, {"schedule": {"lr": 1e-3}})


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("optimizer.lr=0.5", {"optimizer": {"lr": 0.5}}),
        ("objective.teacher=ema", {"objective": {"teacher": "ema"}}),
        ("model.lock=['image']", {"model": {"lock": ["image"]}}),
        ("data.corpus=a=b", {"data": {"corpus": "a=b"}}),
        ("device=cpu", {"device": "cpu"}),
    ],
)
def test_assignments(assignment, expected):
    assert parse_set([assignment]) == expected


def test_bad_assignments_are_all_named():
    with pytest.raises(UsageError) as caught:
        parse_set(["optimizer.lr", "=3", "log.every=5"])
    assert "optimizer.lr:" in caught.value.why
    assert "=3:" in caught.value.why


def test_toml_there_and_back(tmp_path):
    settings = build(
        TrainSettings, {"model": {"lock": "image,text"}, "objective": {"name": "clip"}, "data": {"workers": 0}}
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(settings))
    assert build(TrainSettings, read_toml(path)) == settings


def test_broken_toml_names_the_file_and_line(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[optimizer\nlr = 1")
    with pytest.raises(UsageError, match=r"config\.toml"):
        read_toml(path)


def test_every_setting_is_explained():
    assert not [name for name, _, text in describe(TrainSettings) if not text]
