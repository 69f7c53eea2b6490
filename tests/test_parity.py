"""Zero-shot and retrieval give the numbers of clip-benchmark's definitions, computed from the same checkpoint by stock open_clip.

Its definitions as published: top-k of 100 × cosine; scikit-learn's balanced accuracy; for retrieval the share of queries with a right item
among the top-k of the whole matrix. They are written out here; where the package itself can be imported, it is asked too.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from eval_fixtures import lively_model, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from softclip_cli.evaluation import scoring
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.ranks import Ranks
from softclip_cli.evaluation.retrieval import retrieval
from softclip_cli.evaluation.scoring import Block, rank_both, rank_images, rank_texts
from softclip_cli.evaluation.sets import ClassificationSet, RetrievalSet
from softclip_cli.evaluation.zeroshot import zero_shot
from softclip_cli.model import Model

CLASSES = ("red fox", "blue bird", "small green frog", "car", "boat", "house", "tree", "old wooden bridge")
PROMPTS = ("a photo of a {}.", "a drawing of the {}, in a long sentence with many words.", "{}")
COUNT = 48


@pytest.fixture(scope="module")
def model() -> Model:
    return lively_model()


@pytest.fixture(scope="module")
def stock(model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Callable, Callable]:
    """The same checkpoint as open_clip loads it: network, transform and tokenizer, none of them softclip's."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save(folder)
    net, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return net.eval(), transform, open_clip.get_tokenizer(f"local-dir:{folder}")


@pytest.fixture(scope="module")
def pixels(stock: tuple[Any, Callable, Callable]) -> torch.Tensor:
    return torch.stack([stock[1](Image.open(io.BytesIO(data))) for data in pictures(COUNT)])


@pytest.fixture(scope="module")
def labelled() -> ClassificationSet:
    labels = np.random.default_rng(1).permutation(np.arange(COUNT) % (len(CLASSES) + 3) % len(CLASSES))
    return ClassificationSet("pictures", "test", BytesImages(pictures(COUNT)), labels, CLASSES, prompts=PROMPTS)


@pytest.fixture(scope="module")
def captioned() -> RetrievalSet:
    texts = [[f"picture {i} of {CLASSES[i % 8]}", f"number {i}, seen from above", f"{i}"] for i in range(COUNT)]
    return RetrievalSet("pictures", "test", BytesImages(pictures(COUNT)), texts)


def test_zero_shot_to_the_last_digit(
    model: Model, stock: tuple[Any, Callable, Callable], pixels: torch.Tensor, labelled: ClassificationSet
) -> None:
    net, _, tokenizer = stock
    with torch.no_grad():
        columns = []
        for name in CLASSES:
            mean = F.normalize(net.encode_text(tokenizer([p.replace("{}", name) for p in PROMPTS])), dim=-1).mean(dim=0)
            columns.append(mean / mean.norm())
        logits = 100.0 * F.normalize(net.encode_image(pixels), dim=-1) @ torch.stack(columns, dim=1)
    best = logits.topk(5, dim=1).indices.numpy()
    assert len(np.unique(best[:, 0])) > 1, "the test needs images that are told apart"
    found = zero_shot(model, labelled, options=EmbedOptions(batch_size=11, workers=0))["metrics"]
    labels = labelled.labels
    assert found["top1"]["value"] == np.mean(best[:, 0] == labels)
    assert found["top5"]["value"] == np.mean([label in row for label, row in zip(labels, best, strict=True)])
    assert found["mean_per_class"]["value"] == pytest.approx(balanced_accuracy_score(labels, best[:, 0]), abs=1e-12)


def test_recalls_to_the_last_digit(
    model: Model, stock: tuple[Any, Callable, Callable], pixels: torch.Tensor, captioned: RetrievalSet
) -> None:
    net, _, tokenizer = stock
    with torch.no_grad():
        images = F.normalize(net.encode_image(pixels), dim=-1)
        texts = F.normalize(net.encode_text(tokenizer(captioned.texts)), dim=-1)
    scores, owner = (texts @ images.T).numpy(), captioned.owner
    found = retrieval(model, captioned, options=EmbedOptions(batch_size=13, workers=0))["metrics"]
    for k in (1, 5, 10):
        first = np.argsort(-scores, axis=1)[:, :k]
        assert found[f"text_to_image_r{k}"]["value"] == np.mean((first == owner[:, None]).any(axis=1))
        first = np.argsort(-scores.T, axis=1)[:, :k]
        assert found[f"image_to_text_r{k}"]["value"] == np.mean((owner[first] == np.arange(COUNT)[:, None]).any(axis=1))


def test_clip_benchmark_itself_agrees(
    model: Model,
    stock: tuple[Any, Callable, Callable],
    pixels: torch.Tensor,
    labelled: ClassificationSet,
    captioned: RetrievalSet,
) -> None:
    reason = "clip-benchmark is not installed; benchmarks/evaluation.py fetches it and compares whole runs"
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason=reason)
    classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification", reason=reason)
    net, _, tokenizer = stock
    batches = [(pixels[i : i + 16], captioned.captions[i : i + 16]) for i in range(0, COUNT, 16)]
    expected = theirs.evaluate(net, batches, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    found = retrieval(model, captioned)["metrics"]
    for k in (1, 5, 10):
        assert found[f"text_to_image_r{k}"]["value"] == pytest.approx(expected[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert found[f"image_to_text_r{k}"]["value"] == pytest.approx(expected[f"text_retrieval_recall@{k}"], abs=1e-6)
    prompts = [prompt.replace("{}", "{c}") for prompt in PROMPTS]
    classifier = classification.zero_shot_classifier(net, tokenizer, list(CLASSES), prompts, "cpu", amp=False)
    loader = [(pixels, torch.from_numpy(labelled.labels))]
    logits, target = classification.run_classification(net, classifier, loader, "cpu", amp=False)
    # Its `accuracy` fails with numpy 2.4 and later, so its logits are taken.
    metrics = zero_shot(model, labelled)["metrics"]
    assert metrics["top1"]["value"] == (logits.argmax(1) == target).double().mean()
    assert metrics["top5"]["value"] == (logits.topk(5, dim=1).indices == target[:, None]).any(1).double().mean()


def same(one: Ranks, other: Ranks) -> bool:
    return all(np.array_equal(getattr(one, part), getattr(other, part)) for part in ("better", "equal", "own"))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31), st.booleans(), st.sampled_from([16, 500, 1 << 20]))
def test_both_directions_from_one_product_are_those_of_two(
    count: int, most: int, seed: int, repeated: bool, block: int
) -> None:
    # Whole numbers: products are exact, so that there are ties, and every way of blocking must agree.
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(count), rng.integers(1, most + 1, count))
    rows = rng.integers(0, max(1, len(owner) // 2), len(owner)) if repeated else None
    images = torch.from_numpy(rng.integers(-2, 3, (count, 3))).float()
    texts = torch.from_numpy(rng.integers(-2, 3, (len(owner), 3))).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring.block_rows, "__defaults__", (block,))
        to_text, to_image = rank_both(images, texts, owner, rows=rows)
        assert same(to_text, rank_texts(images, texts, owner, rows=rows))
        assert same(to_image, rank_images(images, texts, owner, rows=rows))
    scores = (images @ (texts if rows is None else texts[rows]).T).numpy()
    for j, i in enumerate(owner):
        assert to_image.better[j] == sum(scores[:, j] > scores[i, j])
        assert to_image.equal[j] == sum(scores[:, j] == scores[i, j]) - 1


def test_no_block_holds_more_scores_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Watched(Block):
        def __init__(self, queries: int, gallery: int, device: torch.device) -> None:
            held.append(4 * queries * gallery)
            super().__init__(queries, gallery, device)

    monkeypatch.setattr(scoring, "Block", Watched)
    monkeypatch.setattr(scoring.block_rows, "__defaults__", (40_000,))
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(300, 8, generator=generator), torch.randn(900, 8, generator=generator)
    rank_both(images, texts, np.repeat(np.arange(300), 3))
    assert len(held) == 2 and max(held) <= 40_000
