"""Evaluation spread over processes: two of them find, to the bit, what one finds, each doing half; and fail alike."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import encoded
from model_folders import folder_with, small
from processes import gloo, together

from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import SoftclipError
from softclip_cli.evaluation.cache import FeatureCache
from softclip_cli.evaluation.embed import EmbedOptions, embed_images, embed_texts
from softclip_cli.evaluation.spread import Spread
from softclip_cli.model import Model
from softclip_cli.registry import open_model
from softclip_cli.training.encoder import TowerEncoder
from softclip_cli.training.validation import Validator

BATCH = 5  # 24 images are five batches, so one process gets one more than the other
TEXTS = [f"text number {i} {'of many words ' * (i % 5)}" for i in range(53)]


def measure(folder: Path, spread: Spread) -> dict[str, Any]:
    """Everything that is compared, as one of the processes sees it."""
    model = open_model(str(folder / "model"))
    corpus = Corpus.open(Path((folder / "corpus").read_text()))
    options = EmbedOptions(batch_size=BATCH, workers=0, spread=spread)
    seen: list[int] = []
    handle = model.net.visual.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    images = embed_images(model, corpus.split("val"), features="both", options=options)
    handle.remove()
    cached = replace(options, cache=FeatureCache(folder / f"cache.{spread.rank}"))
    if spread.rank == 0:  # only one of the processes finds them there
        embed_images(model, corpus.split("val"), options=replace(cached, spread=Spread()))
    again = embed_images(model, corpus.split("val"), options=cached)
    validator = Validator.open(model, corpus, "val", 100, options, False, "fp32", lambda *_: None)
    assert validator is not None
    return {
        "projected": images.projected,
        "trunk": images.trunk,
        "hashes": torch.from_numpy(images.hashes),
        "few": embed_images(model, corpus.split("val").select(range(3)), options=options).projected,
        "cached": again.projected,
        "texts": embed_texts(model, TEXTS, options=options),
        "metrics": validator(TowerEncoder(model, torch.float32)),
        "damaged": failure(model, damaged(), options),
        "not a number": failure(broken(model), damaged()[:5] * 4, options),
        "images seen": sum(seen),
    }


def damaged() -> list[bytes]:
    """24 images, the last of which cannot be decoded: of one process's share."""
    return [encoded((10 * i, 0, 0), seed=i) for i in range(23)] + [b"no image"]


def broken(model: Model) -> Model:
    with torch.no_grad():
        model.net.visual.proj.fill_(torch.nan)
    return model


def failure(model: Model, images: list[bytes], options: EmbedOptions) -> tuple[str, str]:
    with pytest.raises(SoftclipError) as caught:
        embed_images(model, images, options=options)
    return type(caught.value).__name__, str(caught.value)


def main(rank: int, world: int, folder: Path) -> None:
    """One of the processes."""
    torch.save(measure(folder, Spread(rank, world, world)), folder / f"found.{rank}")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, colour_corpus: Path) -> list[dict[str, Any]]:
    """What one process finds by itself, then what each of two finds."""
    folder = tmp_path_factory.mktemp("spread")
    (folder / "corpus").write_text(str(colour_corpus))
    folder_with(small("vit"), folder / "model")
    alone = measure(folder, Spread())
    shutil.rmtree(folder / "cache.0")
    together(__file__, 2, str(folder))
    return [alone, *(torch.load(folder / f"found.{rank}", weights_only=False) for rank in range(2))]


@pytest.mark.parametrize("what", ["projected", "trunk", "hashes", "few", "cached", "texts"])
def test_rows_are_those_of_one_process(found: list[dict[str, Any]], what: str) -> None:
    alone, *several = found
    for one in several:
        assert torch.equal(one[what], alone[what])


def test_validation_gives_the_same_metrics(found: list[dict[str, Any]]) -> None:
    alone, *several = found
    assert alone["metrics"]["rsum"] > 0
    assert all(one["metrics"] == alone["metrics"] for one in several)


def test_each_does_its_share(found: list[dict[str, Any]]) -> None:
    """Five batches: three for the first process; two for the second, and once more the last one (four images)."""
    assert [one["images seen"] for one in found] == [24, 5 + 5 + 4, 5 + 5 + 4]


@pytest.mark.parametrize("what", ["damaged", "not a number"])
def test_all_processes_fail_alike(found: list[dict[str, Any]], what: str) -> None:
    """An error in one share ends all of them, with the words of a single process; nobody waits for rows that never come."""
    alone, *several = found
    assert alone[what][0] == ("DataError" if what == "damaged" else "NotFiniteError")
    assert all(one[what] == alone[what] for one in several)


def test_shares_cover_everything_once() -> None:
    """Each batch is owned by one process, and all processes make as many passes."""
    for size in range(1, 6):
        for batches in range(14):
            shares = [Spread(rank, size).numbers(batches) for rank in range(size)]
            assert len({len(share) for share in shares}) == 1
            owned = [n for rank, share in enumerate(shares) for n in share if Spread(rank, size).own(n)]
            assert sorted(owned) == list(range(batches))
            assert all(n < batches for share in shares for n in share)


if __name__ == "__main__":
    place = Path(sys.argv[3])
    with gloo(int(sys.argv[1]), int(sys.argv[2]), place):
        main(int(sys.argv[1]), int(sys.argv[2]), place)
