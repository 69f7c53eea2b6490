"""Fitting on torch tensors through scikit-learn's array API equals fitting on NumPy arrays, and the choice says why."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from softclip_cli.evaluation import solver_arrays
from softclip_cli.evaluation.probe import fitted
from softclip_cli.evaluation.solver_arrays import SolverArrays, choose_arrays, unsupported

CPU = torch.device("cpu")

# In a process of its own: SciPy reads the variable when it is imported, and other tests have imported it.
ON_TORCH = """
import numpy as np, torch
from softclip_cli.evaluation.solver_arrays import SolverArrays, allow_dispatch, unsupported
allow_dispatch()
lacking = unsupported()
if lacking:
    raise SystemExit("SKIP " + lacking)
from softclip_cli.evaluation.few_shot import few_shot
from softclip_cli.evaluation.logistic import choose_strength, fit, iterations, predict
rng = np.random.default_rng(0)
for classes in (2, 5):
    y = rng.integers(0, classes, 120)
    features = torch.from_numpy(rng.normal(size=(120, 16)) + np.eye(classes, 16)[y] * 1.5)
    torch_, numpy_ = SolverArrays(torch.device("cpu"), "test"), SolverArrays(reason="test")
    for single, precise in ((False, 1e-5), (True, 2e-2)):
        for strength in (1e-2, 1.0, 100.0):
            ours, _ = fit(torch_.matrix(features, single), torch_.labels(y), strength)
            plain, _ = fit(numpy_.matrix(features, single), y, strength)
            assert isinstance(ours.coef_, torch.Tensor) and isinstance(plain.coef_, np.ndarray)
            assert np.abs(ours.coef_.numpy() - plain.coef_).max() < precise, (classes, single, strength)
            assert (predict(ours, torch_.matrix(features, single)) == predict(plain, numpy_.matrix(features, single))).all()
            assert iterations(ours) > 0
    paths = []
    for arrays in (torch_, numpy_):
        x = arrays.matrix(features, False)
        part, held = np.arange(80), np.arange(80, 120)
        paths.append(choose_strength((arrays.rows(x, part), arrays.labels(y[part])), (arrays.rows(x, held), y[held])))
        assert arrays.joined(x, x).shape == (240, 16)
    assert [one.strength for one in paths[0]] == [one.strength for one in paths[1]]
    assert [one.accuracy for one in paths[0]] == [one.accuracy for one in paths[1]]
"""


def test_torch_tensors_give_the_results_of_numpy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_TORCH],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if "SKIP" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def test_numpy_is_taken_without_a_gpu_and_for_few_features() -> None:
    assert choose_arrays(10**6, 1024, False, CPU).described() == "NumPy on the CPU: the model is on cpu"
    few = choose_arrays(1000, 100, False, torch.device("cuda"))
    assert few.device is None
    assert "1,000 × 100 features are few" in few.reason


def test_a_gpu_is_taken_for_many_features_where_scikit_learn_can(monkeypatch: pytest.MonkeyPatch) -> None:
    device, room = torch.device("cuda", 1), 80 << 30
    monkeypatch.setattr(solver_arrays, "unsupported", lambda: "")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (room, room))
    chosen = choose_arrays(100_000, 1000, False, device)
    assert chosen.described() == "torch on cuda:1: 100,000 × 1,000 features, scikit-learn's array API"
    room = 1 << 30
    crowded = choose_arrays(100_000, 1000, False, device)
    assert crowded.device is None
    assert crowded.reason == "2.2 GiB are needed on cuda:1, 1.0 GiB are free there"
    monkeypatch.setattr(solver_arrays, "unsupported", lambda: "scikit-learn 1.6 fits NumPy arrays only")
    assert choose_arrays(100_000, 1000, False, device).reason == "scikit-learn 1.6 fits NumPy arrays only"


def test_an_old_scikit_learn_or_a_scipy_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    if unsupported():
        assert "SCIPY_ARRAY_API=1" in unsupported() or "NumPy arrays only" in unsupported()
    tags = LogisticRegression().__sklearn_tags__()
    tags.array_api_support = False
    monkeypatch.setattr(LogisticRegression, "__sklearn_tags__", lambda self: tags)
    assert "fits NumPy arrays only" in unsupported()


def test_a_device_that_is_full_after_all_gives_way_to_numpy() -> None:
    def judged(arrays: SolverArrays) -> tuple[dict, dict, dict]:
        if arrays.device is not None:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
        return {"done": np.ones(1)}, {}, {}

    outcome, where = fitted(judged, SolverArrays(torch.device("cuda", 0), "large"))
    assert "done" in outcome[0]
    assert where.described() == "NumPy on the CPU: cuda:0 failed: CUDA out of memory."
    with pytest.raises(torch.OutOfMemoryError):
        fitted(lambda _: judged(SolverArrays(CPU)), SolverArrays())
