"""Linear probe: logistic regression on features before the projection, by CLIP's protocol (Radford et al. 2021)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation import outcomes, result
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, ImageFeatures, Progress, embed_images
from softclip_cli.evaluation.few_shot import SEEDS, few_shot
from softclip_cli.evaluation.locate_probe import stratified_split
from softclip_cli.evaluation.logistic import MAX_ITERATIONS, choose_strength, fit, iterations, peak, predict
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.solver_arrays import SolverArrays, choose_arrays
from softclip_cli.evaluation.zeroshot import classification_metrics, dataset_facts, per_class

VALIDATION_SHARE = 0.2  # of the training images where there is no validation split [ours: the paper gives no share]
SINGLE_ABOVE = 4 << 30  # bytes of float64 features beyond which they are fitted in float32
OVERLAP = 0.5  # share of test images found in the training set beyond which the splits must have been mixed up


def check_splits(
    train: ClassificationSet, test: ClassificationSet, train_hashes: np.ndarray, test_hashes: np.ndarray
) -> int:
    """How many test images are byte for byte in the training set.

    Raises:
        DataError: the two sets have other classes, or are the same images.
    """
    if train.class_count != test.class_count or train.class_names != test.class_names:
        raise DataError(
            f"{train.name}: {train.class_count:,} classes in the training split, {test.class_count:,} in the test split"
            if train.class_count != test.class_count
            else f"{train.name}: the training and the test split name their classes differently",
            hint="both splits must be of one dataset with one list of classes",
        )
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            f"{train.name} (split {train.split}) has images of one class only", hint="a probe needs two classes"
        )
    shared = int(np.isin(test_hashes, train_hashes).sum())
    if shared > OVERLAP * len(test_hashes):
        raise DataError(
            f"{test.name}: {shared:,} of {len(test_hashes):,} test images are training images too",
            f"splits {train.split!r} and {test.split!r} hold the same files: they were mixed up",
            "name the right ones with --train-split and --split",
        )
    return shared


def probe(
    model: EmbeddingModel,
    train: ClassificationSet,
    test: ClassificationSet,
    *,
    validation: ClassificationSet | None = None,
    options: EmbedOptions | None = None,
    features: tuple[ImageFeatures, ImageFeatures] | None = None,
    shots: int | Sequence[int] | None = None,
    seeds: Sequence[int] = SEEDS,
    seed: int = 0,
    notes: dict[str, object] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a linear probe.

    λ is chosen on the validation split, or on a stratified fifth of the training images; then the classifier is
    refitted on both together and judged on the test images. With `shots`, see `few_shot`; the mean over the seeds is
    reported.

    Args:
        model: the model; its training mode is left as it was.
        train, test, validation: sets of the same classes; validation is the official one, if there is one.
        options: how to embed.
        features: trunk features of train and test, where they are already there.
        shots: images a class, one number or several; None takes all.
        seeds: of the few-shot draws.
        seed: of the validation share.
        notes: what is to stand in the protocol besides (how the splits came about).
        progress: called with (done, total), over the images and then over the fits.

    Returns:
        A result document (docs/design.md) with `top1` and `mean_per_class`, and in the details the whole search.

    Raises:
        DataError: the splits do not fit together, a class has too few images, or an image cannot be decoded.
        ModelError: a feature is not finite.
    """
    started = time.perf_counter()
    options = options or EmbedOptions()
    several = None if shots is None else [shots] if isinstance(shots, int) else sorted(set(shots))
    if several is not None and (not several or several[0] < 1):
        raise UsageError(
            f"{several[0] if several else 'no'} shots are too few",
            hint="--shots takes 1 or more; left out, all images are used",
        )

    def embedded(data: ClassificationSet) -> ImageFeatures:
        return embed_images(
            model, data.images, name=data.name, split=data.split, features="trunk", options=options, progress=progress
        )

    train_features, test_features = features or (embedded(train), embedded(test))
    shared = check_splits(train, test, train_features.hashes, test_features.hashes)
    extra = embedded(validation) if validation is not None else None
    assert train_features.trunk is not None
    rows = len(train.labels) + (len(validation.labels) if validation is not None else 0)
    single = rows * train_features.trunk.shape[1] * 8 > SINGLE_ABOVE
    tests, training = test_features.trunk, train_features.trunk
    assert tests is not None

    def judged(arrays: SolverArrays) -> Outcome:
        x, x_test = arrays.matrix(training, single), arrays.matrix(tests, single)
        held = None
        if extra is not None and validation is not None:
            assert extra.trunk is not None
            held = arrays.matrix(extra.trunk, single), validation.labels
        if several is None:
            return _full(x, train.labels, held, x_test, test, seed, arrays, progress)
        return few_shot(x, train.labels, held, x_test, test, several, seeds, arrays, progress)

    (metrics, more, protocol), where = fitted(judged, choose_arrays(rows, training.shape[1], single, model.device))
    details: dict[str, Any] = {
        "chance": 1 / test.class_count,
        "test_images_also_in_train": shared,
        "fitted_with": where.described(),
    }
    items = more.pop("outcomes", None)
    if validation is not None:
        protocol["validation"] = f"split {validation.split}, {len(validation.labels):,} images"
    protocol |= {
        "features": "before the projection, not normalised, not standardised",
        "classifier": f"scikit-learn LogisticRegression, L-BFGS, at most {MAX_ITERATIONS:,} iterations, L2",
        "objective": "sum of cross-entropies + (λ/2)·‖W‖², so C = 1/λ; the intercept is not penalised",
        "lambda_search": "parametric binary search, 8 steps a decade, 1e-6 to 1e6; cold starts; ties to the larger λ",
        "fitted_in": "float32, since float64 features would exceed 4 GiB" if single else "float64",
        "train": {
            "split": train.split,
            "size": len(train.labels),
            "fingerprint": train_features.fingerprint(train.content()),
        },
        **options.protocol(),
        **(notes or {}),
    }
    return result.build(
        task="probe",
        dataset=dataset_facts(test, test_features),
        protocol=protocol,
        model=model,
        metrics=metrics,
        details=details | more,
        outcomes=items,
        seconds=time.perf_counter() - started,
    )


Held = tuple[Any, np.ndarray] | None
Outcome = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def fitted(judged: Callable[[SolverArrays], Outcome], arrays: SolverArrays) -> tuple[Outcome, SolverArrays]:
    """What `judged` makes with `arrays`, or with NumPy's where the device cannot do it after all; and which it was."""
    try:
        return judged(arrays), arrays
    except (torch.OutOfMemoryError, NotImplementedError) as error:
        if arrays.device is None:
            raise
        why = f"{arrays.device} failed: {str(error).partition(chr(10))[0]}"
    # Outside of the handler, whose traceback would keep the device's memory.
    arrays = SolverArrays(reason=why)
    return judged(arrays), arrays


def _full(
    x: Any,
    y: np.ndarray,
    held: Held,
    x_test: Any,
    test: ClassificationSet,
    seed: int,
    arrays: SolverArrays,
    progress: Progress | None,
) -> Outcome:
    if held is None:
        rest, chosen = stratified_split(y, VALIDATION_SHARE, seed)
        part, held, whole = (arrays.rows(x, rest), y[rest]), (arrays.rows(x, chosen), y[chosen]), (x, y)
        protocol = {"validation": f"a stratified {VALIDATION_SHARE:.0%} of the training images, seed {seed}"}
    else:
        part, whole = (x, y), (arrays.joined(x, held[0]), np.concatenate([y, held[1]]))
        protocol = {}
    path = choose_strength((part[0], arrays.labels(part[1])), held, progress)
    best = peak(path)
    classifier, converged = fit(whole[0], arrays.labels(whole[1]), best.strength)
    if progress is not None:
        progress(16, 16)
    predicted = predict(classifier, x_test)[:, None]
    metrics = classification_metrics(predicted, test.labels, test.class_count)
    details = {
        "lambda": best.strength,
        "C": 1 / best.strength,
        "validation_accuracy": best.accuracy,
        "fits_without_convergence": sum(not one.converged for one in path) + (not converged),
        "refit": {"images": len(whole[1]), "iterations": iterations(classifier), "converged": converged},
        "search": [one.record() for one in path],
        "per_class": per_class(predicted, test),
        "outcomes": outcomes.packed(outcomes.classification(predicted, test.labels)),
    }
    return metrics, details, {**protocol, "refit": "on training and validation images together"}
