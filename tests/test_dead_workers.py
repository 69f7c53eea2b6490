"""Decoding processes that are killed: batches go on to the bit, and who dies again and again is an error with a remedy."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from softclip_cli.config import build
from softclip_cli.data.batches import StepDataset, batches
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import Augment
from softclip_cli.data.loader import MAX_DEATHS, surviving
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import DataError, HostError
from softclip_cli.registry import open_model
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no POSIX signals")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks every five seconds whether the processes live that it waits for."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


def test_a_killed_worker_costs_no_sample(colour_corpus: Path) -> None:
    """Both of two workers die at different steps, and a third later: the batches are those of the dataset, in order."""
    model = open_model("tiny", seed=0)
    data = Corpus.open(colour_corpus).split("train")
    dataset = StepDataset(data, EpochSampler(len(data), 16, 3), model.preprocess, Augment(flip=0.5), model.tokens)
    said: list[str] = []
    killed: list[list[int]] = []
    before = set(multiprocessing.active_children())
    for number, batch in enumerate(batches(dataset, 4, 24, 2, warn=said.append), 4):
        wanted = dataset[number]
        assert batch.step == number
        assert torch.equal(batch.image, wanted.image)
        assert torch.equal(batch.text, wanted.text)
        assert torch.equal(batch.index, wanted.index)
        if number in (5, 13):
            victims = [child for child in multiprocessing.active_children() if child not in before]
            killed.append([int(victim.pid or 0) for victim in victims[: 2 if number == 5 else 1]])
            for pid in killed[-1]:
                os.kill(pid, signal.SIGKILL)
    assert number == 23
    assert len(said) == 2
    for line, pids in zip(said, killed, strict=True):  # of two, the first that is seen dead is named
        assert any(f"{pid} (SIGKILL)" in line for pid in pids)
    assert "memory" in said[0]


def test_a_run_whose_worker_is_killed_gives_the_same_metrics(colour_corpus: Path, tmp_path: Path) -> None:
    """The death comes in the middle of a step, which it must not disturb."""
    lines: dict[str, list[dict]] = {}
    for name, workers in (("whole", 0), ("cut", 1)):
        made = build(
            TrainSettings,
            {
                "data": {"corpus": str(colour_corpus), "batch_size": 16, "workers": workers},
                "schedule": {"steps": 9},
                "log": {"every": 1},
                "eval": {"every": 9},
                "device": "cpu",
                "precision": "fp32",
            },
        )
        said: list[str] = []
        lines[name] = []

        def report(kind: str, facts: dict, name: str = name, said: list[str] = said) -> None:
            if kind == "warning":
                said.append(facts["text"])
            if kind == "metrics":
                lines[name].append({key: facts[key] for key in ("step", "loss", "logit_scale", "grad_norm")})
                if name == "cut" and facts["step"] == 2:
                    for child in multiprocessing.active_children():
                        os.kill(int(child.pid or 0), signal.SIGKILL)

        train(Plan(made, tmp_path / name), report)
        assert any("SIGKILL" in line for line in said) == (name == "cut")
    assert lines["cut"] == lines["whole"]


class Deadly(Dataset):
    """Numbers, but whoever makes 3 does not live."""

    def __getitem__(self, number: int) -> int:
        if number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 9:
            raise DataError("picture 9 is none")
        return number


def deadly(first: int) -> Iterator[int]:
    return iter(DataLoader(Deadly(), batch_size=None, sampler=range(first, 20), num_workers=1))  # type: ignore[arg-type]


def test_workers_that_die_again_and_again_are_an_error() -> None:
    said: list[str] = []
    got: list[int] = []
    with pytest.raises(HostError, match=r"step [123]: .*SIGSEGV") as caught:
        got.extend(surviving(deadly, 1, 20, said.append))
    assert caught.value.exit_code == 5
    assert "--workers" in caught.value.hint
    assert "picture" in caught.value.why
    assert len(said) == MAX_DEATHS


def test_an_error_of_the_data_is_no_death() -> None:
    said: list[str] = []
    with pytest.raises(DataError, match="picture 9"):
        list(surviving(deadly, 8, 20, said.append))
    assert said == []
