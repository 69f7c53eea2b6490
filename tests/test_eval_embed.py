"""Embedding: batches and workers change nothing; the cache is hit only when all that shapes features is the same."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from eval_fixtures import lively_model, pictures

from softclip_cli.data.decode import eval_view
from softclip_cli.errors import DataError, HostError, UsageError
from softclip_cli.evaluation import embed
from softclip_cli.evaluation.cache import FeatureCache, default_folder
from softclip_cli.evaluation.embed import EmbedOptions, embed_images, embed_texts
from softclip_cli.evaluation.images import ArrowImages, BytesImages, FileImages, ParquetImages, Subset, as_images
from softclip_cli.evaluation.views import choose_workers, collate, hash64
from softclip_cli.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return lively_model()


def reference(model: Model, images: list[bytes]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([eval_view(data, model.preprocess) for data in images]))
    with torch.no_grad():
        return model.encode_image(pixels)


def test_features_are_in_order_and_both_kinds_belong_together(model: Model) -> None:
    images = pictures(11)
    features = embed_images(model, images, features="both", options=EmbedOptions(batch_size=4, workers=2))
    assert torch.allclose(features.projected, reference(model, images), atol=1e-5)
    assert features.projected.dtype == features.trunk.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(model.image_head(features.trunk), features.projected, atol=1e-5)
    assert features.hashes.tolist() == [hash64(data) for data in images]
    assert not features.projected.is_inference()  # they may be trained on


def test_texts_keep_their_order_and_equal_texts_are_equal(model: Model) -> None:
    texts = ["a dog", "a very long sentence about a very small dog that barks", "x", "a dog", "cats"]
    encoded = embed_texts(model, texts, options=EmbedOptions(batch_size=1))
    with torch.no_grad():
        expected = torch.cat([model.encode_text(model.tokenize([text])) for text in texts])
    assert torch.allclose(encoded, expected, atol=1e-5)
    assert torch.equal(encoded[0], encoded[3])


def test_bf16_is_near_fp32_and_comes_back_as_fp32(model: Model) -> None:
    images = pictures(3)
    half = embed_images(model, images, options=EmbedOptions(precision="bf16")).projected
    assert half.dtype == torch.float32
    assert not torch.equal(half, reference(model, images))
    assert torch.allclose(half, reference(model, images), atol=0.05)


def test_progress_ends_at_the_total(model: Model) -> None:
    told: list[tuple[int, int]] = []
    embed_images(
        model, pictures(5), options=EmbedOptions(batch_size=2), progress=lambda done, total: told.append((done, total))
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_sources_yield_the_same_bytes(tmp_path: Path) -> None:
    images = pictures(7, size=8)
    for number, data in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(data)
    rows = {"image": [{"bytes": data, "path": None} for data in images], "key": [f"k{i}" for i in range(7)]}
    table = datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image(), "key": datasets.Value("string")})
    )
    table.to_parquet(tmp_path / "x.parquet", batch_size=3)
    sources = [
        BytesImages(images),
        FileImages(tmp_path, [f"{i}.png" for i in range(7)]),
        as_images(table),
        ParquetImages([tmp_path / "x.parquet"], "image"),
        Subset(BytesImages([b"", *images]), range(1, 8)),
    ]
    for source in sources:
        assert len(source) == 7
        assert [source[i] for i in (6, 0, 3)] == [images[6], images[0], images[3]]
    assert sources[2].key(4) == "k4"
    assert len({source.signature() for source in sources}) == len(sources)


def test_a_cell_that_names_a_file_is_read_and_an_empty_one_is_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(pictures(1)[0])
    rows = {
        "image": [{"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": None, "path": str(tmp_path / "gone.png")}]
    }
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    source = ArrowImages(datasets.Dataset.from_dict(rows, features=features), "x", keys=None)
    assert source[0] == pictures(1)[0]
    with pytest.raises(DataError, match=r"mine \(split test\): image cannot be read: image 1, row 1"):
        embed_images(model, source, name="mine", split="test")


def test_a_failure_in_a_worker_process_is_named_too(model: Model) -> None:
    with pytest.raises(DataError, match="image 3, number 3") as caught:
        embed_images(model, [*pictures(3), b"broken"], options=EmbedOptions(batch_size=2, workers=1))
    assert caught.value.why


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_can_be_skipped(model: Model, tmp_path: Path, workers: int) -> None:
    """A row of NaN in their place, the others as without them, from the cache too; who does not ask for it gets the error."""
    whole = pictures(5)
    options = EmbedOptions(batch_size=2, workers=workers, cache=FeatureCache(tmp_path))
    broken = [*whole[:2], b"broken", *whole[3:]]
    for _ in range(2):
        found = embed_images(model, broken, features="both", skip_damaged=True, options=options)
        expected = embed_images(model, whole, features="both", options=EmbedOptions(batch_size=2, workers=0))
        for mine, theirs in ((found.projected, expected.projected), (found.trunk, expected.trunk)):
            assert mine is not None and theirs is not None
            assert mine[2].isnan().all()
            torch.testing.assert_close(mine[[0, 1, 3, 4]], theirs[[0, 1, 3, 4]])
    assert found.cached
    with pytest.raises(DataError, match="image 2"):
        embed_images(model, broken, options=options)


def test_the_choice_of_workers_has_a_reason() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_workers(10, cpu)[0] == 0 and "few" in choose_workers(10, cpu)[1]
    assert choose_workers(10_000, gpu)[0] >= 1 and "cores" in choose_workers(10_000, gpu)[1]
    assert choose_workers(10_000, cpu, asked=3) == (3, "as asked for")


def test_without_shared_memory_batches_travel_as_arrays() -> None:
    items = [(np.zeros((2, 2, 3), dtype=np.uint8), 1), (np.ones((2, 2, 3), dtype=np.uint8), -2)]
    for shared, kind in ((True, torch.Tensor), (False, np.ndarray)):
        pixels, hashes, failures = collate(items, shared)
        assert isinstance(pixels, kind) and tuple(pixels.shape) == (2, 2, 2, 3) and hashes.tolist() == [1, -2]
        assert failures == []


@pytest.mark.parametrize("wrong", [{"precision": "fp8"}, {"batch_size": 0}, {"workers": -1}])
def test_wrong_options_are_usage_errors(wrong: dict) -> None:
    with pytest.raises(UsageError):
        EmbedOptions(**wrong)


# The cache


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were decoded and embedded, call by call."""
    calls: list[int] = []
    whole = embed._embed_images

    def count(model: Model, source: BytesImages, *rest: object) -> object:
        calls.append(len(source))
        return whole(model, source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(embed, "_embed_images", count)
    return calls


def test_features_are_found_again(model: Model, tmp_path: Path, counted: list[int]) -> None:
    options, images = EmbedOptions(batch_size=4, cache=FeatureCache(tmp_path)), pictures(6)
    first = embed_images(model, images, options=options)
    again = embed_images(model, images, features="both", options=options)
    assert counted == [6] and again.cached and not first.cached
    assert torch.equal(first.projected, again.projected)
    assert (first.hashes == again.hashes).all() and first.trunk is None and again.trunk is not None


def test_other_weights_are_other_features(model: Model, tmp_path: Path, counted: list[int]) -> None:
    options, images = EmbedOptions(cache=FeatureCache(tmp_path)), pictures(3)
    embed_images(model, images, options=options)
    other = deepcopy(model)
    with torch.no_grad():
        other.net.visual.conv1.weight[0, 0, 0, 0] += 1.0
    other = Model(other.net, other.config, other.preprocess, other.tokenizer)
    changed = embed_images(other, images, options=options)
    assert counted == [3, 3] and not changed.cached
    assert torch.allclose(changed.projected, reference(other, images), atol=1e-5)


def test_another_preprocessing_is_other_features(model: Model, tmp_path: Path, counted: list[int]) -> None:
    options, images = EmbedOptions(cache=FeatureCache(tmp_path)), pictures(3)
    embed_images(model, images, options=options)
    for change in ({"resize_mode": "squash"}, {"mean": (0.5, 0.5, 0.5)}, {"interpolation": "bilinear"}):
        other = Model(model.net, model.config, replace(model.preprocess, **change), model.tokenizer)
        assert not embed_images(other, images, options=options).cached
    assert counted == [3] * 4


def test_other_images_or_precision_are_other_features(model: Model, tmp_path: Path, counted: list[int]) -> None:
    cache, images = FeatureCache(tmp_path / "cache"), pictures(3)
    paths = [f"{i}.png" for i in range(3)]
    for path, data in zip(paths, images, strict=True):
        (tmp_path / path).write_bytes(data)
    for _ in range(2):
        embed_images(model, FileImages(tmp_path, paths), options=EmbedOptions(cache=cache))
    assert counted == [3]
    embed_images(model, FileImages(tmp_path, paths), options=EmbedOptions(cache=cache, precision="bf16"))
    embed_images(model, FileImages(tmp_path, paths[::-1]), options=EmbedOptions(cache=cache))
    (tmp_path / "1.png").write_bytes(pictures(9)[8])
    changed = embed_images(model, FileImages(tmp_path, paths), options=EmbedOptions(cache=cache))
    assert counted == [3, 3, 3, 3]
    assert torch.allclose(changed.projected, reference(model, [images[0], pictures(9)[8], images[2]]), atol=1e-5)


def test_a_damaged_file_is_computed_anew_and_replaced(model: Model, tmp_path: Path, counted: list[int]) -> None:
    options, images = EmbedOptions(cache=FeatureCache(tmp_path)), pictures(3)
    embed_images(model, images, options=options)
    (stored,) = (tmp_path / "features").iterdir()
    stored.write_bytes(stored.read_bytes()[:100])
    assert not embed_images(model, images, options=options).cached
    assert embed_images(model, images, options=options).cached and counted == [3, 3]
    assert [path.name for path in (tmp_path / "features").iterdir()] == [stored.name]


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "softclip"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "softclip"


def test_a_cache_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError) as caught:
        FeatureCache(tmp_path / "file")
    assert "--no-cache" in caught.value.hint and caught.value.exit_code == 5
