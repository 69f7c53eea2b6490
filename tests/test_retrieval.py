"""Retrieval equals the brute force over the whole score matrix, ties included."""

from __future__ import annotations

import io
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eval_fixtures import lively_model, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image

from softclip_cli.errors import DataError, HostError
from softclip_cli.evaluation import scoring
from softclip_cli.evaluation.embed import ImageFeatures
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.ranks import Ranks
from softclip_cli.evaluation.retrieval import Embedded, retrieval, retrieval_metrics
from softclip_cli.evaluation.saved_embeddings import save_embeddings
from softclip_cli.evaluation.scoring import rank_images, rank_texts, top_matches
from softclip_cli.evaluation.sets import RetrievalSet


def embeddings(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def brute_force(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """R@k and median ranks by sorting the whole matrix."""
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    to_text = [min(np.flatnonzero(owner[np.argsort(-row)] == i)) + 1 for i, row in enumerate(scores)]
    to_image = [np.flatnonzero(np.argsort(-row) == owner[j])[0] + 1 for j, row in enumerate(scores.T)]
    found = {}
    for name, ranks in (("image_to_text", to_text), ("text_to_image", to_image)):
        for k in (1, 5, 10):
            found[f"{name}_r{k}"] = np.mean([rank <= k for rank in ranks])
        found[f"{name}_median_rank"] = np.median(ranks)
    found["rsum"] = 100 * sum(value for name, value in found.items() if not name.endswith("median_rank"))
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([100, 4000, 1 << 20]))
def test_metrics_equal_brute_force(count: int, most: int, seed: int, block: int) -> None:
    owner = np.repeat(np.arange(count), np.random.default_rng(seed).integers(1, most + 1, count))
    images, texts = embeddings(count, 16, seed), embeddings(len(owner), 16, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring.block_rows, "__defaults__", (block,))
        metrics, ties = retrieval_metrics(images, texts, owner)
    expected = brute_force(images.numpy(), texts.numpy(), owner)
    assert {name: entry["value"] for name, entry in metrics.items()} == pytest.approx(expected)
    assert ties["queries_with_ties"] == {"image_to_text": 0, "text_to_image": 0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=2, max_size=4),
    st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=6, max_size=6),
)
def test_ties_count_as_the_mean_over_all_orders(images: list[list[int]], texts: list[list[int]]) -> None:
    # Whole numbers, so that ties are exact; the reference sorts the gallery in each of its 720 orders, stably.
    owner = np.sort(np.arange(6) % len(images))
    a, b = torch.tensor(images, dtype=torch.float32), torch.tensor(texts, dtype=torch.float32)
    ranks = rank_texts(a, b, owner)
    for i, row in enumerate((a @ b.T).numpy()):
        first = []
        for order in permutations(range(6)):
            ranked = sorted(order, key=lambda j, row=row: -row[j])
            first.append(min(place for place, j in enumerate(ranked) if owner[j] == i) + 1)
        for k in (1, 2, 5):
            assert ranks.hits(k)[i] == pytest.approx(np.mean([rank <= k for rank in first]))
        assert ranks.expected()[i] == pytest.approx(np.mean(first))


def test_text_to_image_ties_count_as_the_mean_over_all_orders() -> None:
    images = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    ranks = rank_images(images, torch.tensor([[1.0, 0], [0, 1]]), np.array([0, 0]))
    assert ranks.hits(1) == pytest.approx([1 / 3, 0])  # the second text: image 3 is better, then a tie of three
    assert ranks.hits(2) == pytest.approx([2 / 3, 1 / 3])
    assert ranks.expected() == pytest.approx([2, 3])


def test_a_collapsed_model_gets_chance() -> None:
    owner = np.repeat(np.arange(20), 5)
    metrics, _ = retrieval_metrics(torch.ones(20, 4) / 2, torch.ones(100, 4) / 2, owner)
    assert metrics["image_to_text_r1"]["value"] == pytest.approx(5 / 100)
    assert metrics["text_to_image_r1"]["value"] == pytest.approx(1 / 20)
    assert metrics["text_to_image_r10"]["value"] == pytest.approx(10 / 20)


def test_equal_texts_tie_exactly_wherever_they_stand() -> None:
    unique, rows = embeddings(7, 33, 0), np.array([0, 1, 2, 3, 0, 4, 5, 0, 6, 1])
    owner = np.repeat(np.arange(5), 2)
    ranks = rank_texts(embeddings(5, 33, 1), unique, owner, rows=rows)
    scores = embeddings(5, 33, 1).double() @ unique.double().T
    for i in range(5):
        row = scores[i].numpy()[rows]
        best = max(row[owner == i])
        reached = {rows[j] for j in range(10) if owner[j] == i and row[j] == best}
        assert ranks.equal[i] == sum(owner[j] != i and rows[j] in reached for j in range(10))
        assert ranks.better[i] == sum(owner[j] != i and row[j] > best and rows[j] not in reached for j in range(10))


def test_the_own_score_is_that_of_its_block() -> None:
    # Gallery items that equal the query to the last bit must tie with it, however the product is blocked and rounded.
    base = embeddings(1, 511, 3)
    images, texts = base.repeat(37, 1), base.repeat(37, 1)
    ranks = rank_images(images, texts, np.arange(37))
    assert (ranks.better == 0).all()


def test_hits_of_a_known_rank() -> None:
    ranks = Ranks(better=np.array([0, 4, 5]), equal=np.zeros(3, dtype=int), own=np.ones(3, dtype=int))
    assert ranks.hits(1).tolist() == [1, 0, 0]
    assert ranks.hits(5).tolist() == [1, 1, 0]
    assert ranks.expected().tolist() == [1, 5, 6]


def test_top_matches_are_the_first_of_a_sort() -> None:
    queries, gallery = embeddings(9, 8, 0), embeddings(31, 8, 1)
    expected = (queries @ gallery.T).argsort(dim=1, descending=True)[:, :4].numpy()
    assert (top_matches(queries, gallery, 4) == expected).all()


def test_intervals_resample_images_with_all_their_captions() -> None:
    # Text→image hits that are equal within an image have the interval of N images, not of 5 N texts.
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    images = F.one_hot(torch.arange(200)).float()
    wrong = torch.roll(images, 1, dims=0)
    texts = torch.where(torch.from_numpy(right)[:, None], images, wrong).repeat_interleave(5, dim=0)
    metrics, _ = retrieval_metrics(images, texts, np.repeat(np.arange(200), 5))
    entry = metrics["text_to_image_r1"]
    assert entry["value"] == pytest.approx(right.mean())
    spread = np.sqrt(right.mean() * (1 - right.mean()) / 200)
    assert (entry["high"] - entry["low"]) / 2 == pytest.approx(1.96 * spread, rel=0.15)


def test_the_document_equals_stock_open_clip() -> None:
    model = lively_model()
    captions = [
        [f"picture {i}", f"a thing of colour {i % 4} in a frame", "the same words"][: 2 + i % 2] for i in range(16)
    ]
    data = RetrievalSet("pictures", "test", BytesImages(pictures(16)), captions)
    document = retrieval(model, data)
    transform = image_transform(
        model.preprocess.size, is_train=False, mean=model.preprocess.mean, std=model.preprocess.std
    )
    pixels = torch.stack([transform(Image.open(io.BytesIO(data.images[i]))) for i in range(16)])
    with torch.no_grad():
        images = model.net.encode_image(pixels, normalize=True)
        texts = model.net.encode_text(model.tokenizer(data.texts), normalize=True)
    scores = (images.double() @ texts.double().T).numpy()
    text_of = np.array(data.texts)
    for k in (1, 5, 10):
        hits, found = [], []
        for i in range(16):
            best = scores[i][data.owner == i].max()
            # Equal texts share the places they take; only a text of other words can be ahead for certain.
            own = text_of[data.owner == i][scores[i][data.owner == i].argmax()]
            ahead = sum(scores[i][j] > best + 1e-9 for j in range(len(text_of)) if text_of[j] != own)
            tied = sum(text_of[j] == own and data.owner[j] != i for j in range(len(text_of)))
            hits.append(min(max((k - ahead) / (tied + 1), 0), 1))
        for j, owner in enumerate(data.owner):
            found.append(sum(scores[:, j] > scores[owner, j]) < k)
        assert document["metrics"][f"image_to_text_r{k}"]["value"] == pytest.approx(np.mean(hits), abs=1e-6)
        assert document["metrics"][f"text_to_image_r{k}"]["value"] == pytest.approx(np.mean(found), abs=1e-6)
    assert document["dataset"]["gallery"] == "16 images × 40 texts"
    assert document["protocol"]["captions_per_image"] == "2 to 3"
    assert document["details"]["repeated_texts"] == 40 - len(set(data.texts))


def test_embeddings_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = ImageFeatures(embeddings(2, 8, 0), None, np.zeros(2, dtype=np.int64))
    embedded = Embedded(features, embeddings(3, 8, 1), np.array([0, 1, 2]), 0.0)
    data = RetrievalSet("x", "test", BytesImages(pictures(2)), [["a", "b"], ["c"]])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(HostError, match="cannot be written"):
            save_embeddings(embedded, data, tmp_path / "vectors", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "vectors").mkdir()
    save_embeddings(embedded, data, tmp_path / "vectors", {})
    assert (np.load(tmp_path / "vectors" / "texts.npy") == embedded.texts.numpy()).all()


@pytest.mark.parametrize("captions", [[["a"], []], [["a"], ["b", " "]]])
def test_images_without_a_caption_are_named(captions: list[list[str]]) -> None:
    with pytest.raises(DataError, match="image number 1 has"):
        RetrievalSet("x", "test", BytesImages(pictures(2)), captions)
