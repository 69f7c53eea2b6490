"""The linear probe equals plain scikit-learn, and its search equals trying everything."""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from eval_fixtures import lively_model, pictures, png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation import logistic as module
from softclip_cli.evaluation.cache import FeatureCache
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.few_shot import few_shot_draw
from softclip_cli.evaluation.images import BytesImages
from softclip_cli.evaluation.locate_probe import stratified_split
from softclip_cli.evaluation.logistic import GRID, Tried, fit, peak, search
from softclip_cli.evaluation.probe import probe
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.model import Model

DIGITS = tuple(f"digit {number}" for number in range(3))


@pytest.fixture(scope="module")
def model() -> Model:
    found = lively_model()
    whole = found.image_trunk
    found.image_trunk = lambda pixels: whole(pixels)[:, :40]  # narrow features: the fits take most of the time
    return found


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EmbedOptions:
    """The tests share most of their images, so a feature cache spares time."""
    return EmbedOptions(cache=FeatureCache(tmp_path_factory.mktemp("features")))


@cache
def digits(start: int, stop: int, split: str) -> ClassificationSet:
    """Real pictures: scikit-learn's scanned digits 0, 1 and 2."""
    found = load_digits(n_class=3)
    grey = (found.images[start:stop] * 15).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = [png(np.stack([image] * 3, axis=2)) for image in grey]
    return ClassificationSet("digits", split, BytesImages(images), found.target[start:stop], DIGITS)


def plain_features(model: Model, data: ClassificationSet) -> np.ndarray:
    """Trunk features without softclip's embedding loop or decoding."""
    spec = model.preprocess
    images = [
        Image.open(io.BytesIO(data.images[i])).resize((spec.size,) * 2, Image.Resampling.BICUBIC)
        for i in range(len(data.images))
    ]
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    with torch.no_grad():
        return model.image_trunk(pixels).double().numpy()


@pytest.fixture(scope="module")
def result(model: Model, options: EmbedOptions) -> dict:
    return probe(model, digits(0, 60, "train"), digits(120, 160, "test"), options=options)


def test_accuracy_equals_plain_scikit_learn(model: Model, result: dict) -> None:
    train, test = digits(0, 60, "train"), digits(120, 160, "test")
    x, x_test = plain_features(model, train), plain_features(model, test)
    rest, held = stratified_split(train.labels, 0.2, 0)
    for tried in result["details"]["search"]:
        plain = LogisticRegression(C=tried["C"], max_iter=1000).fit(x[rest], train.labels[rest])
        assert tried["validation_accuracy"] == pytest.approx(plain.score(x[held], train.labels[held]))
    best = max(result["details"]["search"], key=lambda tried: (tried["validation_accuracy"], tried["lambda"]))
    assert result["details"]["C"] == best["C"]
    final = LogisticRegression(C=best["C"], max_iter=1000).fit(x, train.labels)
    predicted = final.predict(x_test)
    assert result["metrics"]["top1"]["value"] == pytest.approx((predicted == test.labels).mean())
    by_class = [(predicted[test.labels == c] == c).mean() for c in range(3)]
    assert result["metrics"]["mean_per_class"]["value"] == pytest.approx(np.mean(by_class))
    assert result["metrics"]["top1"]["value"] > 0.6


def test_the_protocol_is_told(result: dict) -> None:
    protocol, details = result["protocol"], result["details"]
    assert "C = 1/λ" in protocol["objective"] and "not standardised" in protocol["features"]
    assert protocol["fitted_in"] == "float64" and protocol["train"]["size"] == 60
    assert len(details["search"]) <= 15 and details["refit"]["images"] == 60
    assert details["C"] * details["lambda"] == pytest.approx(1)
    assert [row["class"] for row in details["per_class"]] == list(DIGITS)


def test_an_official_validation_split_is_used_and_then_fitted_on(model: Model, options: EmbedOptions) -> None:
    train, held, test = digits(0, 40, "train"), digits(40, 60, "val"), digits(120, 160, "test")
    document = probe(model, train, test, validation=held, options=options)
    x, x_held, x_test = (plain_features(model, data) for data in (train, held, test))
    for tried in document["details"]["search"]:
        plain = LogisticRegression(C=tried["C"], max_iter=1000).fit(x, train.labels)
        assert tried["validation_accuracy"] == pytest.approx(plain.score(x_held, held.labels))
    both = np.concatenate([x, x_held]), np.concatenate([train.labels, held.labels])
    final = LogisticRegression(C=document["details"]["C"], max_iter=1000).fit(*both)
    assert document["metrics"]["top1"]["value"] == pytest.approx(final.score(x_test, test.labels))
    assert document["protocol"]["validation"] == "split val, 20 images"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 96), st.floats(0.001, 1), st.floats(0.001, 1))
def test_the_search_finds_the_peak_of_a_hill(top: int, left: float, right: float) -> None:
    def accuracy(strength: float) -> float:
        index = GRID.index(strength)
        return 1 - (left * (top - index) if index < top else right * (index - top)) / 100

    calls = []
    path = search(lambda strength: calls.append(strength) or Tried(strength, accuracy(strength), 1, True))
    exhaustive = max(GRID, key=lambda strength: (accuracy(strength), strength))
    assert len(calls) == len(set(calls)) <= 15
    assert calls[:7] == pytest.approx([1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    # The coarse step may pick either neighbour of the peak; halving then walks to it, as far as 16 steps reach.
    assert abs(GRID.index(peak(path).strength) - top) <= 1 or accuracy(peak(path).strength) == accuracy(exhaustive)


def test_the_grid_has_eight_steps_a_decade() -> None:
    assert len(GRID) == 97 and GRID[0] == 1e-6 and GRID[-1] == 1e6
    assert np.diff(np.log10(GRID)) == pytest.approx(1 / 8)


def test_of_equal_values_the_strongest_regularisation_is_taken() -> None:
    path = search(lambda strength: Tried(strength, 0.5, 1, True))
    assert peak(path).strength == 1e6


def test_lambda_weighs_the_sum_of_the_losses() -> None:
    # At the optimum of Σ CE + λ/2 ‖W‖² the gradient is zero; with a mean in the place of the sum it would not be.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    classifier, converged = fit(x, y, 5.0)
    assert converged
    weights = torch.tensor(classifier.coef_, requires_grad=True)
    logits = torch.from_numpy(x) @ weights.T + torch.from_numpy(classifier.intercept_)
    loss = (
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
        + 5.0 / 2 * weights.square().sum()
    )
    loss.backward()
    assert float(weights.grad.abs().max()) < 60 * 2e-4  # scikit-learn stops at 1e-4 of the mean
    assert float(5.0 * weights.detach().abs().max()) > 0.1


def test_fits_that_do_not_converge_are_counted_and_silent(
    model: Model, options: EmbedOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = probe(model, digits(0, 60, "train"), digits(120, 160, "test"), options=options)
    tried = document["details"]["search"]
    missed = sum(not one["converged"] for one in tried) + (not document["details"]["refit"]["converged"])
    assert document["details"]["fits_without_convergence"] == missed > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0.05, 0.9), st.integers(0, 100))
def test_the_held_out_share_is_of_each_class(labels: list[int], share: float, seed: int) -> None:
    values = np.array(labels)
    rest, held = stratified_split(values, share, seed)
    assert sorted([*rest, *held]) == list(range(len(values)))
    for label in set(labels):
        size, count = labels.count(label), int((values[held] == label).sum())
        assert count == min(max(round(share * size), 1), size - 1)
    again = stratified_split(values, share, seed)
    assert (again[1] == held).all()


def test_few_shot_fits_on_so_many_images_a_class(model: Model, options: EmbedOptions) -> None:
    train, test = digits(0, 60, "train"), digits(120, 160, "test")
    document = probe(model, train, test, shots=6, seeds=(3, 4), options=options)
    x, x_test = plain_features(model, train), plain_features(model, test)
    for draw in document["details"]["draws"]:
        chosen, held = few_shot_draw(train.labels, 6, draw["seed"])
        assert np.bincount(train.labels[chosen]).tolist() == [6, 6, 6]
        assert np.bincount(train.labels[held]).tolist() == [4, 4, 4]
        assert not set(chosen) & set(held)
        plain = LogisticRegression(C=1 / draw["lambda"], max_iter=1000).fit(x[chosen], train.labels[chosen])
        assert draw["top1"] == pytest.approx(plain.score(x_test, test.labels))
    values = [draw["top1"] for draw in document["details"]["draws"]]
    assert document["metrics"]["top1"]["value"] == pytest.approx(np.mean(values))
    assert document["metrics"]["top1"]["n"] == 2


def test_more_shots_than_images_are_refused(model: Model, options: EmbedOptions) -> None:
    with pytest.raises(DataError, match="training images"):
        probe(model, digits(0, 60, "train"), digits(120, 160, "test"), shots=16, options=options)
    with pytest.raises(UsageError):
        probe(model, digits(0, 60, "train"), digits(120, 160, "test"), shots=0, options=options)


def test_mixed_up_splits_are_caught(model: Model, options: EmbedOptions) -> None:
    train = digits(0, 60, "train")
    with pytest.raises(DataError, match="are training images too"):
        probe(model, train, digits(0, 60, "test"), options=options)
    document = probe(model, train, digits(55, 80, "test"), options=options)
    assert document["details"]["test_images_also_in_train"] == 5
    other = ClassificationSet("digits", "test", BytesImages(pictures(8)), np.arange(8) % 4, (*DIGITS, "digit 3"))
    with pytest.raises(DataError, match="3 classes in the training split, 4 in the test split"):
        probe(model, train, other, options=options)


def test_several_numbers_of_shots_in_one_call_are_each_a_call_of_its_own(model: Model, options: EmbedOptions) -> None:
    train, test = digits(0, 60, "train"), digits(120, 160, "test")
    together = probe(model, train, test, shots=[4, 1], seeds=(0, 1, 2), options=options)
    assert together["protocol"]["shots"] == [1, 4]
    for shots in (1, 4):
        alone = probe(model, train, test, shots=shots, seeds=(0, 1, 2), options=options)
        for name in ("top1", "mean_per_class"):
            assert together["metrics"][f"{name}_shots_{shots}"] == alone["metrics"][name]
    draws = together["details"]["draws"]
    assert [(draw["shots"], draw["seed"]) for draw in draws] == [(1, 0), (1, 1), (1, 2), (4, 0), (4, 1), (4, 2)]
    for draw in draws:
        best = max(draw["search"], key=lambda tried: (tried["validation_accuracy"], tried["lambda"]))
        assert draw["C"] == best["C"]
    assert set(few_shot_draw(train.labels, 1, 2)[0]) < set(few_shot_draw(train.labels, 4, 2)[0])


def test_with_an_official_validation_split_the_shots_may_be_all_there_is(model: Model, options: EmbedOptions) -> None:
    train, validation, test = digits(0, 30, "train"), digits(30, 60, "val"), digits(120, 160, "test")
    smallest = int(np.bincount(train.labels).min())
    document = probe(model, train, test, validation=validation, shots=smallest, seeds=(0,), options=options)
    draw = document["details"]["draws"][0]
    chosen, _ = few_shot_draw(train.labels, smallest, 0, 0)
    held, _ = few_shot_draw(validation.labels, 4, 0, 0)
    x, x_held = plain_features(model, train), plain_features(model, validation)
    for tried in draw["search"][:4]:
        plain = LogisticRegression(C=tried["C"], max_iter=1000).fit(x[chosen], train.labels[chosen])
        assert tried["validation_accuracy"] == pytest.approx(plain.score(x_held[held], validation.labels[held]))
