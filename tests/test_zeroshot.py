"""Zero-shot classification agrees with stock open_clip and with plain loops."""

from __future__ import annotations

import io
from copy import deepcopy

import numpy as np
import open_clip
import pytest
import torch
from eval_fixtures import lively_model, pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from scipy import stats

from softclip_cli.errors import DataError, ModelError
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.intervals import RESAMPLES, bootstrap_class_mean, wilson
from softclip_cli.evaluation.names import from_open_clip, single_prompt
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.zeroshot import class_embeddings, classification_metrics, zero_shot
from softclip_cli.model import Model

NAMES = ("red fox", "blue bird", "small green frog", "car", "boat", "house", "tree")
PROMPTS = ("a photo of a {}.", "a drawing of the {}, in a long sentence with many words.", "{}")


@pytest.fixture(scope="module")
def model() -> Model:
    return lively_model()


@pytest.fixture(scope="module")
def data() -> ClassificationSet:
    labels = np.random.default_rng(1).permutation(np.arange(28) % len(NAMES))
    return ClassificationSet("pictures", "test", BytesImages(pictures(28)), labels, NAMES, prompts=PROMPTS)


def stock_scores(model: Model, data: ClassificationSet, prompts: tuple[str, ...]) -> torch.Tensor:
    """Scores (N, C) by open_clip alone: its transform, its towers, its zero-shot classifier."""
    spec = model.preprocess
    transform = image_transform(spec.size, is_train=False, mean=spec.mean, std=spec.std)
    images = [transform(Image.open(io.BytesIO(data.images[i]))) for i in range(len(data.images))]
    templates = [lambda name, prompt=prompt: prompt.replace("{}", name) for prompt in prompts]
    with torch.no_grad():
        features = model.net.encode_image(torch.stack(images), normalize=True)
        classifier = open_clip.build_zero_shot_classifier(model.net, model.tokenizer, list(data.class_names), templates)
    return features.double() @ classifier.double()


def test_class_embeddings_equal_open_clips(model: Model) -> None:
    templates = [lambda name, prompt=prompt: prompt.replace("{}", name) for prompt in PROMPTS]
    expected = open_clip.build_zero_shot_classifier(model.net, model.tokenizer, list(NAMES), templates).T
    assert torch.allclose(class_embeddings(model, NAMES, PROMPTS), expected, atol=1e-5)


def test_classes_in_several_rounds_are_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = class_embeddings(model, NAMES, PROMPTS)
    monkeypatch.setattr("softclip_cli.evaluation.zeroshot.TEXTS_AT_ONCE", 5)
    assert torch.allclose(class_embeddings(model, NAMES, PROMPTS), whole, atol=1e-6)


def test_accuracies_equal_stock_open_clip(model: Model, data: ClassificationSet) -> None:
    document = zero_shot(model, data, options=EmbedOptions(batch_size=7, workers=0))
    for prefix, prompts in (("", PROMPTS), ("single_prompt_", PROMPTS[:1])):
        scores = stock_scores(model, data, prompts)
        order = scores.argsort(dim=1, descending=True).numpy()
        assert len(np.unique(order[:, 0])) > 1, "the test needs images that are told apart"
        top1 = [order[i, 0] == label for i, label in enumerate(data.labels)]
        top5 = [label in order[i, :5] for i, label in enumerate(data.labels)]
        by_class = [
            np.mean([hit for hit, label in zip(top1, data.labels, strict=True) if label == c]) for c in range(7)
        ]
        metrics = document["metrics"]
        assert metrics[f"{prefix}top1"]["value"] == pytest.approx(np.mean(top1))
        assert metrics[f"{prefix}top5"]["value"] == pytest.approx(np.mean(top5))
        assert metrics[f"{prefix}mean_per_class"]["value"] == pytest.approx(np.mean(by_class))
    for row, name in zip(document["details"]["per_class"], NAMES, strict=True):
        assert row["class"] == name
        assert row["n"] == np.sum(data.labels == NAMES.index(name))


def test_the_document_says_how_it_was_made(model: Model, data: ClassificationSet) -> None:
    document = zero_shot(model, data)
    assert document["task"] == "zeroshot" and document["dataset"]["size"] == 28
    assert document["protocol"]["prompts"] == list(PROMPTS)
    assert document["protocol"]["single_prompt"] == "a photo of a {}."
    assert document["model"]["fingerprint"] == model.fingerprint()
    assert document["details"]["chance"] == 1 / 7
    for entry in document["metrics"].values():
        assert entry["low"] <= entry["value"] <= entry["high"]
    changed = ClassificationSet("pictures", "test", data.images, (data.labels + 1) % 7, NAMES, prompts=PROMPTS)
    assert zero_shot(model, changed)["dataset"]["fingerprint"] != document["dataset"]["fingerprint"]


def test_single_prompt_only(model: Model, data: ClassificationSet) -> None:
    alone = zero_shot(model, data, single_only=True)
    both = zero_shot(model, data)
    assert set(alone["metrics"]) == {"top1", "top5", "mean_per_class"}
    assert alone["metrics"]["top1"] == both["metrics"]["single_prompt_top1"]


def test_images_are_embedded_in_worker_processes_as_in_the_main_one(model: Model, data: ClassificationSet) -> None:
    here = zero_shot(model, data, options=EmbedOptions(batch_size=16, workers=0))
    there = zero_shot(model, data, options=EmbedOptions(batch_size=16, workers=2))
    assert there["metrics"] == here["metrics"] and there["dataset"] == here["dataset"]


def test_classes_of_one_name_are_reported(model: Model) -> None:
    twice = ClassificationSet("x", "test", BytesImages(pictures(3)), [0, 1, 2], ("crane", "crane", "boat"))
    assert zero_shot(model, twice)["details"]["classes_of_the_same_name"] == ["crane"]


def test_a_model_in_training_stays_in_training(model: Model, data: ClassificationSet) -> None:
    model.net.train()
    model.net.visual.eval()
    document = zero_shot(model, data)
    assert model.net.training and not model.net.visual.training
    model.net.eval()
    assert document["metrics"] == zero_shot(model, data)["metrics"]


def test_a_set_without_names_says_what_to_do(model: Model) -> None:
    nameless = ClassificationSet("digits", "test", BytesImages(pictures(4)), [0, 1, 0, 1])
    with pytest.raises(DataError) as caught:
        zero_shot(model, nameless)
    assert "--classnames" in caught.value.hint and caught.value.exit_code == 3


def test_a_broken_image_is_named(model: Model) -> None:
    images = BytesImages([*pictures(3), b"no image"], keys=["a", "b", "c", "holiday.jpg"])
    with pytest.raises(DataError, match=r"pictures \(split test\).*image 3, holiday.jpg"):
        zero_shot(model, ClassificationSet("pictures", "test", images, [0, 1, 2, 0], NAMES[:3]))


def test_damaged_weights_are_named(model: Model) -> None:
    broken = deepcopy(model)
    with torch.no_grad():
        broken.net.visual.attnpool.c_proj.bias[0] = float("nan")
    with pytest.raises(ModelError, match="not a number") as caught:
        zero_shot(broken, ClassificationSet("x", "test", BytesImages(pictures(2)), [0, 1], NAMES[:2]))
    assert caught.value.exit_code == 4


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 12), st.integers(1, 60), st.integers(0, 2**31))
def test_metrics_equal_brute_force(classes: int, images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    best = np.stack([rng.permutation(classes)[:5] for _ in range(images)])
    labels = rng.integers(0, classes, images)
    metrics = classification_metrics(best, labels, classes)
    assert metrics["top1"]["value"] == pytest.approx(sum(best[i][0] == labels[i] for i in range(images)) / images)
    assert metrics["top5"]["value"] == pytest.approx(sum(labels[i] in list(best[i]) for i in range(images)) / images)
    shares = []
    for label in set(labels.tolist()):
        members = [i for i in range(images) if labels[i] == label]
        shares.append(sum(best[i][0] == label for i in members) / len(members))
    assert metrics["mean_per_class"]["value"] == pytest.approx(sum(shares) / len(shares))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_equals_scipys(n: int, share: float) -> None:
    hits = round(share * n)
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_class_mean_interval_equals_resampling_the_images() -> None:
    rng = np.random.default_rng(0)
    totals = np.array([20, 50, 8, 100])
    outcomes = [rng.random(n) < p for n, p in zip(totals, (0.9, 0.5, 0.3, 0.7), strict=True)]
    low, high = bootstrap_class_mean(np.array([o.sum() for o in outcomes]), totals)
    means = [np.mean([rng.choice(o, len(o)).mean() for o in outcomes]) for _ in range(4 * RESAMPLES)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)


def test_imagenet_names_and_templates_are_open_clips() -> None:
    assert from_open_clip("IMAGENET_CLASSNAMES") == tuple(open_clip.IMAGENET_CLASSNAMES)
    templates = from_open_clip("OPENAI_IMAGENET_TEMPLATES")
    assert len(templates) == 80
    for ours, theirs in zip(templates, open_clip.OPENAI_IMAGENET_TEMPLATES, strict=True):
        assert ours.replace("{}", "snow leopard") == theirs("snow leopard")
    assert single_prompt(templates) == "a photo of a {}."
