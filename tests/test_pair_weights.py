"""Weights of pairs: do they find planted mismatches, leave alone what cannot be judged, and survive saving and bad batches?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from softclip_cli.objectives.pair_weights import LEAST, PairWeights, standardised_scores

WIDTH = 32


def batch(count: int, mismatched: float, blur: float, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Images, texts near them, and which pairs were exchanged."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, WIDTH, generator=generator)
    text = image + blur * torch.randn(count, WIDTH, generator=generator)
    wrong = round(mismatched * count)
    text[:wrong] = text[:wrong].roll(5, dims=0)
    return functional.normalize(image, dim=1), functional.normalize(text, dim=1), np.arange(count) < wrong


def trained(mismatched: float, blur: float, batches: int = 150) -> PairWeights:
    """What many batches have taught."""
    weights = PairWeights()
    for step in range(batches):
        image, text, _ = batch(128, mismatched, blur, step)
        weights(image, text, update=True)
    return weights


@pytest.mark.parametrize("count", [9, 40, 200])
def test_scores_are_the_same_with_and_without_the_matrix(count: int) -> None:
    """Small batches use N×N similarities, large ones d×d sums: against a loop over pairs."""
    image, text, _ = batch(count, 0.3, 1.0, 1)
    image, text = image.double(), text.double()
    scores = (image @ text.T).numpy()
    expected = []
    for i in range(count):
        row, column = np.delete(scores[i], i), np.delete(scores[:, i], i)
        expected.append((scores[i, i] - row.mean()) / row.std() / 2 + (scores[i, i] - column.mean()) / column.std() / 2)
    own, random = standardised_scores(image, text)
    np.testing.assert_allclose(own.numpy(), expected, rtol=1e-9)
    shifted = []
    for i in range(count):
        j = (i + 1) % count
        row, column = np.delete(scores[i], i), np.delete(scores[:, j], j)
        shifted.append((scores[i, j] - row.mean()) / row.std() / 2 + (scores[i, j] - column.mean()) / column.std() / 2)
    np.testing.assert_allclose(random.numpy(), shifted, rtol=1e-9)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_mismatched_pairs_are_found_and_counted(share: float) -> None:
    """Without a label: planted pairs get small weights, and the share of the others is estimated."""
    weights = trained(share, blur=1.0)
    image, text, wrong = batch(1000, share, 1.0, 999)
    found, report = weights(image, text, update=False)
    assert float(found.mean()) == pytest.approx(1)
    assert roc_auc_score(wrong, -found.numpy()) > 0.98
    assert float(report["clean_share"]) == pytest.approx(1 - share, abs=0.06)
    assert float(found[torch.from_numpy(wrong)].sum() / found.sum()) < 0.1 * share


def test_a_mixture_that_began_with_an_ignorant_model_is_found_too() -> None:
    """As in training: scores that mean nothing first, then better and better ones."""
    weights = PairWeights()
    for step in range(200):
        image, text, _ = batch(128, 0.4, max(1.0, 20.0 * 0.95**step), step)
        weights(image, text, update=True)
    _, report = weights(*batch(1000, 0.4, 1.0, 999)[:2], update=False)
    assert float(report["clean_share"]) == pytest.approx(0.6, abs=0.06)


def test_clean_pairs_keep_their_weight() -> None:
    """Where nothing is mismatched nearly every pair counts the same."""
    weights = trained(0.0, blur=1.0)
    image, text, _ = batch(1000, 0.0, 1.0, 999)
    found, _ = weights(image, text, update=False)
    assert float((found > 0.9).float().mean()) > 0.97


def test_a_model_that_knows_nothing_judges_nobody() -> None:
    """Random embeddings: all weights are exactly one, however long it goes on."""
    weights = trained(1.0, blur=1.0)
    image, text, _ = batch(500, 1.0, 1.0, 999)
    found, report = weights(image, text, update=False)
    assert float(report["judged"]) == 0
    assert torch.equal(found, torch.ones(500))


def test_no_pair_is_forgotten() -> None:
    """Weights stay above zero, so that a pair can come back."""
    weights = trained(0.4, blur=0.3)
    image, text, _ = batch(400, 0.4, 0.3, 999)
    found, _ = weights(image, text, update=False)
    assert float(found.min()) >= LEAST * 0.99


def test_tiny_batches_are_not_judged() -> None:
    """Two pairs leave one other to compare with, which has no spread."""
    image, text, _ = batch(2, 0.0, 1.0, 0)
    found, report = trained(0.2, 1.0, 20)(image, text, update=True)
    assert torch.equal(found, torch.ones(2)) and report == {}


@pytest.mark.parametrize("on_device", [False, True])
def test_a_bad_batch_is_taken_back(on_device: bool) -> None:
    """Also one full of NaN; and the state is saved."""
    weights = trained(0.3, 1.0, 20)
    before = weights.moments.clone()
    image, text, _ = batch(64, 0.3, 1.0, 77)
    weights(image * float("nan"), text, update=True)
    weights.take_back(torch.tensor(True) if on_device else None)
    assert torch.equal(weights.moments, before)
    weights(image, text, update=True)
    weights.take_back(torch.tensor(False)) if on_device else None
    assert not torch.equal(weights.moments, before)
    fresh = PairWeights()
    fresh.load_state_dict(weights.state_dict())
    assert torch.equal(fresh.moments, weights.moments)
