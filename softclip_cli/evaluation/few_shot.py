"""Few-shot linear probe: fitted on k images a class, for each k over several draws of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.embed import Progress
from softclip_cli.evaluation.intervals import metric, t_bounds
from softclip_cli.evaluation.logistic import choose_strength, fit, peak, predict
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.solver_arrays import SolverArrays
from softclip_cli.evaluation.zeroshot import classification_metrics

SEEDS = (0, 1, 2, 3, 4)  # of the draws
JUDGED = 4  # further images a class, at most, by which λ is chosen


def few_shot_draw(labels: np.ndarray, shots: int, seed: int, extra: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `shots` training and `extra` (default: min(shots, 4)) further images a class, as CoOp's linear probe draws them.

    Raises:
        DataError: a class has too few images.
    """
    rng = np.random.default_rng(seed)
    train, validation = [], []
    extra = min(shots, JUDGED) if extra is None else extra
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < shots + extra:
            raise DataError(
                f"class {label} has {len(members)} training images",
                f"{shots} to fit on and {extra} to choose the regularisation on are needed",
                "ask for fewer shots with --shots",
            )
        train.append(members[:shots])
        validation.append(members[shots : shots + extra])
    return np.concatenate(train), np.concatenate(validation)


def mean_over_draws(values: Sequence[float]) -> dict[str, Any]:
    """The metric of a mean over draws, with Student's t-interval where there are two or more."""
    return metric(float(np.mean(values)), len(values), t_bounds(values), interval="Student's t over the draws, 95 %")


def few_shot(
    x: Any,
    y: np.ndarray,
    held: tuple[Any, np.ndarray] | None,
    x_test: Any,
    test: ClassificationSet,
    shots: Sequence[int],
    seeds: Sequence[int],
    arrays: SolverArrays,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Fit on `shots` images a class for each seed, λ being chosen on min(shots, 4) further ones, and judge on the test.

    Args:
        x, y: features (as `arrays` has them) and labels of the training images.
        held: those of an official validation split, which λ is then chosen on.
        x_test, test: the test images.
        shots: one or more numbers of images a class. The images of a smaller number are among those of a larger one.
        seeds: of the draws.
        arrays: where to fit.
        progress: called with (fits done, fits).

    Returns:
        metrics (`top1` and `mean_per_class` for one number of shots, `top1_shots_4` and so on for several), details
        (every draw with its whole search), and the part of the protocol that is about shots.

    Raises:
        DataError: a class has too few images.
    """
    metrics: dict[str, Any] = {}
    draws: list[dict[str, Any]] = []
    fits, done = 16 * len(seeds) * len(shots), 0
    for count in shots:
        scores: list[dict[str, float]] = []
        for seed in seeds:
            drawn, rest = few_shot_draw(y, count, seed, None if held is None else 0)
            part = arrays.rows(x, drawn), arrays.labels(y[drawn])
            judge = arrays.rows(x, rest), y[rest]
            if held is not None:
                # With an official validation split, λ is judged on images of it.
                rest, _ = few_shot_draw(held[1], min(count, JUDGED), seed, extra=0)
                judge = arrays.rows(held[0], rest), held[1][rest]

            def tell(step: int, _: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + step, fits)

            path = choose_strength(part, judge, tell)
            best = peak(path)
            classifier, converged = fit(*part, best.strength)
            done += 16
            tell(16, 16)
            single = classification_metrics(predict(classifier, x_test)[:, None], test.labels, test.class_count)
            scores.append({name: entry["value"] for name, entry in single.items()})
            draws.append(
                {
                    "shots": count,
                    "seed": seed,
                    "lambda": best.strength,
                    "C": 1 / best.strength,
                    "fits_without_convergence": sum(not one.converged for one in path) + (not converged),
                    **scores[-1],
                    "search": [one.record() for one in path],
                }
            )
        for name in scores[0]:
            key = name if len(shots) == 1 else f"{name}_shots_{count}"
            metrics[key] = mean_over_draws([values[name] for values in scores])
    details = {"draws": draws, "fits_without_convergence": sum(draw["fits_without_convergence"] for draw in draws)}
    protocol = {
        "shots": shots[0] if len(shots) == 1 else list(shots),
        "seeds": list(seeds),
        "validation": f"min(shots, {JUDGED}) further training images a class [ours, as CoOp's linear probe]",
        "refit": "none: the classifier is fitted on the shots only",
    }
    return metrics, details, protocol
