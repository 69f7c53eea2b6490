"""Logistic regression as CLIP's linear probe wants it: scikit-learn's, λ by a parametric binary search over 96 values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from softclip_cli.evaluation.embed import Progress
from softclip_cli.evaluation.solver_arrays import dispatching

# 96 steps from 1e-6 to 1e6, eight a decade.
GRID = tuple(10.0 ** (-6 + step / 8) for step in range(97))
COARSE = 16  # two decades: 1e-6, 1e-4, ..., 1e6
MAX_ITERATIONS = 1000
THREADS_ABOVE = 100_000_000  # numbers in the feature matrix from which on threads pay


@dataclass(frozen=True)
class Tried:
    """One fit of the search.

    Attributes:
        strength: λ.
        accuracy: on the validation images.
        iterations: of L-BFGS.
        converged: False where scikit-learn warned.
    """

    strength: float
    accuracy: float
    iterations: int
    converged: bool

    def record(self) -> dict[str, Any]:
        """For the result."""
        return {
            "lambda": self.strength,
            "C": 1 / self.strength,
            "validation_accuracy": self.accuracy,
            "iterations": self.iterations,
            "converged": self.converged,
        }


def fit(features: Any, labels: Any, strength: float) -> tuple[Any, bool]:
    """Fit scikit-learn's LogisticRegression with C = 1/λ.

    It minimises ½‖W‖² + C · Σ cross-entropy, a sum over the images and not a mean, so that C = 1/λ makes it
    Σ cross-entropy + (λ/2)‖W‖². The intercept is not penalised. Features are not standardised.

    Args:
        features: float64 or float32 (N, width), a NumPy array or a torch tensor, on whose device it is then fitted.
        labels: int64 (N,), likewise, at least two different ones.
        strength: λ.

    Returns:
        The fitted classifier, and whether it converged.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    # The solver makes many short BLAS calls, whose threads wait for each other: on two cores shared with other
    # programs, three fits on 4,000 × 1,280 features took 39 s of CPU time with two threads and 3.5 s with one.
    threads = threadpool_limits(1 if features.shape[0] * features.shape[1] < THREADS_ABOVE else None)
    with threads, dispatching(features), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # L-BFGS and an L2 penalty are the defaults; naming the penalty is deprecated.
        classifier = LogisticRegression(C=1 / strength, max_iter=MAX_ITERATIONS).fit(features, labels)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return classifier, converged


def predict(classifier: Any, features: Any) -> np.ndarray:
    """int64 (N,): the class of each row, by a classifier that was fitted on arrays of the same kind."""
    with dispatching(features):
        found = classifier.predict(features)
    return found.cpu().numpy() if isinstance(found, Tensor) else found


def iterations(classifier: Any) -> int:
    """How many iterations L-BFGS made."""
    return int(classifier.n_iter_.max())


def search(evaluate: Callable[[float], Tried], progress: Progress | None = None) -> list[Tried]:
    """CLIP's parametric binary search over `GRID`: λ = 1e-6, 1e-4, ..., 1e6, then halving the step around the peak.

    Of equally good values the largest λ is the peak [ours].

    Args:
        evaluate: fits with a λ and judges it on the validation images.
        progress: called with (fits done, 16), the sixteenth being the final refit.

    Returns:
        All that was tried, in order; `peak` finds the best.
    """
    tried: dict[int, Tried] = {}

    def visit(index: int) -> None:
        if 0 <= index < len(GRID) and index not in tried:
            tried[index] = evaluate(GRID[index])
            if progress is not None:
                progress(len(tried), 16)

    for index in range(0, len(GRID), COARSE):
        visit(index)
    step = COARSE
    while step > 1:
        step //= 2
        best = max(tried, key=lambda index: (tried[index].accuracy, index))
        visit(best - step)
        visit(best + step)
    return list(tried.values())


def peak(path: Sequence[Tried]) -> Tried:
    """The best of what was tried; of equally good ones the largest λ."""
    return max(path, key=lambda one: (one.accuracy, one.strength))


def choose_strength(
    train: tuple[Any, Any], validation: tuple[Any, np.ndarray], progress: Progress | None = None
) -> list[Tried]:
    """Search λ by the accuracy on the validation images; each pair is (features, labels), the latter ones NumPy's."""

    def evaluate(strength: float) -> Tried:
        classifier, converged = fit(*train, strength)
        accuracy = float((predict(classifier, validation[0]) == validation[1]).mean())
        return Tried(strength, accuracy, iterations(classifier), converged)

    return search(evaluate, progress)
