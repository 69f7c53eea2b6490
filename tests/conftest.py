"""What several test files need: a little corpus, a quiet environment, and where real data may lie."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import CommandServer, serving

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many test processes as cores: a second thread in each would only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a script's background job: commands under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "grey": (128, 128, 128)}


def encoded(
    colour: tuple[int, int, int], size: tuple[int, int] = (64, 48), noise: int = 20, seed: int = 0, kind: str = "JPEG"
) -> bytes:
    """An encoded picture of one colour with some noise."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + rng.integers(-noise, noise + 1, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, datasets and caches of a test stay in its own folder."""
    monkeypatch.setenv("SOFTCLIP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SOFTCLIP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def colour_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus that a model can learn at once: 96 training and 24 validation pictures of four colours."""
    from softclip_cli.data.corpus import CorpusWriter, Record

    path = tmp_path_factory.mktemp("corpora") / "colours"
    with CorpusWriter(path) as writer:
        for split, rows in (("train", 96), ("val", 24)):
            with writer.split(split) as part:
                for i in range(rows):
                    name = list(COLOURS)[i % len(COLOURS)]
                    captions = [f"a {name} picture", f"something {name}"]
                    part.write(Record(f"{split}-{i}", encoded(COLOURS[name], seed=i), captions))
    return path


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """Starts `softclip ...` in processes of its own that may be killed."""
    with serving(tmp_path_factory.mktemp("commands")) as server:
        yield server
