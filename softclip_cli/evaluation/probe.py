"""Linear probe: logistic regression on features before the projection, by CLIP's protocol (Radford et al. 2021)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation import outcomes, result
from softclip_cli.evaluation.embed import EmbeddingModel, EmbedOptions, ImageFeatures, Progress, embed_images
from softclip_cli.evaluation.intervals import LEVEL, metric
from softclip_cli.evaluation.locate import stratified_split
from softclip_cli.evaluation.sets import ClassificationSet
from softclip_cli.evaluation.zeroshot import classification_metrics, dataset_facts, per_class

# 96 steps from 1e-6 to 1e6, eight a decade.
GRID = tuple(10.0 ** (-6 + step / 8) for step in range(97))
COARSE = 16  # two decades: 1e-6, 1e-4, ..., 1e6
MAX_ITERATIONS = 1000
VALIDATION_SHARE = 0.2  # of the training images where there is no validation split [ours: the paper gives no share]
SINGLE_ABOVE = 4 << 30  # bytes of float64 features beyond which they are fitted in float32
THREADS_ABOVE = 100_000_000  # numbers in the feature matrix from which on threads pay
SEEDS = (0, 1, 2, 3, 4)  # of the few-shot draws
OVERLAP = 0.5  # share of test images found in the training set beyond which the splits must have been mixed up


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


def fit(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[Any, bool]:
    """Fit scikit-learn's LogisticRegression with C = 1/λ.

    It minimises ½‖W‖² + C · Σ cross-entropy, a sum over the images and not a mean, so that C = 1/λ makes it
    Σ cross-entropy + (λ/2)‖W‖². The intercept is not penalised. Features are not standardised.

    Args:
        features: float64 or float32 (N, width).
        labels: int64 (N,), at least two different ones.
        strength: λ.

    Returns:
        The fitted classifier, and whether it converged.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    # The solver makes many short BLAS calls, whose threads wait for each other: on two cores shared with other
    # programs, three fits on 4,000 × 1,280 features took 39 s of CPU time with two threads and 3.5 s with one.
    threads = threadpool_limits(1 if features.size < THREADS_ABOVE else None)
    with threads, warnings.catch_warnings(record=True) as caught:
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
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], progress: Progress | None = None
) -> list[Tried]:
    """Search λ by the accuracy on the validation images; each pair is (features, labels)."""

    def evaluate(strength: float) -> Tried:
        classifier, converged = fit(*train, strength)
        accuracy = float((classifier.predict(validation[0]) == validation[1]).mean())
        return Tried(strength, accuracy, int(np.max(classifier.n_iter_)), converged)

    return search(evaluate, progress)


def few_shot_draw(labels: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `shots` training and min(shots, 4) validation images a class, as CoOp's linear probe draws them.

    Raises:
        DataError: a class has too few images.
    """
    rng = np.random.default_rng(seed)
    train, validation, extra = [], [], min(shots, 4)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < shots + extra:
            raise DataError(
                f"class {label} has {len(members)} training images",
                f"{shots} shots take {shots} to fit and {extra} to choose the regularisation",
                "ask for fewer shots with --shots",
            )
        train.append(members[:shots])
        validation.append(members[shots : shots + extra])
    return np.concatenate(train), np.concatenate(validation)


def _matrix(features: ImageFeatures, single: bool) -> np.ndarray:
    assert features.trunk is not None
    return np.ascontiguousarray(features.trunk.numpy(), dtype=np.float32 if single else np.float64)


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
    shots: int | None = None,
    seeds: Sequence[int] = SEEDS,
    seed: int = 0,
    notes: dict[str, object] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a linear probe.

    λ is chosen on the validation split, or on a stratified fifth of the training images; then the classifier is
    refitted on both together and judged on the test images. With `shots`, each seed draws that many images a class to
    fit on and min(shots, 4) to choose λ (which are not added afterwards); the mean over the seeds is reported.

    Args:
        model: the model; its training mode is left as it was.
        train, test, validation: sets of the same classes; validation is the official one, if there is one.
        options: how to embed.
        features: trunk features of train and test, where they are already there.
        shots: images a class; None takes all.
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
    if shots is not None and shots < 1:
        raise UsageError(f"{shots} shots are too few", hint="--shots takes 1 or more; left out, all images are used")

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
    x, y = _matrix(train_features, single), train.labels
    held = (_matrix(extra, single), validation.labels) if extra is not None and validation is not None else None
    x_test = _matrix(test_features, single)
    details: dict[str, Any] = {"chance": 1 / test.class_count, "test_images_also_in_train": shared}
    if shots is None:
        metrics, more, protocol = _full(x, y, held, x_test, test, seed, progress)
    else:
        metrics, more, protocol = _few_shot(x, y, held, x_test, test, shots, seeds, progress)
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


Held = tuple[np.ndarray, np.ndarray] | None
Outcome = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _full(
    x: np.ndarray,
    y: np.ndarray,
    held: Held,
    x_test: np.ndarray,
    test: ClassificationSet,
    seed: int,
    progress: Progress | None,
) -> Outcome:
    if held is None:
        rest, chosen = stratified_split(y, VALIDATION_SHARE, seed)
        part, held, whole = (x[rest], y[rest]), (x[chosen], y[chosen]), (x, y)
        protocol = {"validation": f"a stratified {VALIDATION_SHARE:.0%} of the training images, seed {seed}"}
    else:
        part, whole = (x, y), (np.concatenate([x, held[0]]), np.concatenate([y, held[1]]))
        protocol = {}
    path = choose_strength(part, held, progress)
    best = peak(path)
    classifier, converged = fit(*whole, best.strength)
    if progress is not None:
        progress(16, 16)
    predicted = classifier.predict(x_test)[:, None]
    metrics = classification_metrics(predicted, test.labels, test.class_count)
    details = {
        "lambda": best.strength,
        "C": 1 / best.strength,
        "validation_accuracy": best.accuracy,
        "fits_without_convergence": sum(not one.converged for one in path) + (not converged),
        "refit": {"images": len(whole[1]), "iterations": int(np.max(classifier.n_iter_)), "converged": converged},
        "search": [one.record() for one in path],
        "per_class": per_class(predicted, test),
        "outcomes": outcomes.packed(outcomes.classification(predicted, test.labels)),
    }
    return metrics, details, {**protocol, "refit": "on training and validation images together"}


def _few_shot(
    x: np.ndarray,
    y: np.ndarray,
    held: Held,
    x_test: np.ndarray,
    test: ClassificationSet,
    shots: int,
    seeds: Sequence[int],
    progress: Progress | None,
) -> Outcome:
    from scipy import stats

    runs, scores = [], []
    for number, seed in enumerate(seeds):
        drawn, rest = few_shot_draw(y, shots, seed)
        judge = (x[rest], y[rest])
        if held is not None:
            # With an official validation split, λ is judged on images of it.
            rest, _ = few_shot_draw(held[1], min(shots, 4), seed)
            judge = (held[0][rest], held[1][rest])

        def tell(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * total + done, len(seeds) * total)

        path = choose_strength((x[drawn], y[drawn]), judge, tell)
        classifier, converged = fit(x[drawn], y[drawn], peak(path).strength)
        tell(16, 16)
        single = classification_metrics(classifier.predict(x_test)[:, None], test.labels, test.class_count)
        values = {name: entry["value"] for name, entry in single.items()}
        scores.append(values)
        missed = sum(not one.converged for one in path) + (not converged)
        runs.append({"seed": seed, "lambda": peak(path).strength, "fits_without_convergence": missed, **values})
    metrics = {}
    for name in scores[0]:
        values_of = np.array([values[name] for values in scores])
        mean, bounds = float(values_of.mean()), None
        if len(values_of) > 1:
            half = float(
                stats.t.ppf((1 + LEVEL) / 2, len(values_of) - 1) * values_of.std(ddof=1) / np.sqrt(len(values_of))
            )
            bounds = (mean - half, mean + half)
        metrics[name] = metric(mean, len(values_of), bounds, interval="Student's t over the draws, 95 %")
    details = {
        "draws": runs,
        "fits_without_convergence": sum(run["fits_without_convergence"] for run in runs),
    }
    protocol = {
        "shots": shots,
        "seeds": list(seeds),
        "validation": f"{min(shots, 4)} further training images a class [ours, as CoOp's linear probe]",
        "refit": "none: the classifier is fitted on the shots only",
    }
    return metrics, details, protocol
