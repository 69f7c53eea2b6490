"""Zero-shot classification: an image gets the class whose prompts' mean embedding is nearest (Radford et al. 2021)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softclip_cli.errors import DataError
from softclip_cli.evaluation import names, outcomes, result
from softclip_cli.evaluation.embed import (
    EmbeddingModel,
    EmbedOptions,
    ImageFeatures,
    Progress,
    embed_images,
    embed_texts,
    text_cache_key,
)
from softclip_cli.evaluation.images import digest
from softclip_cli.evaluation.intervals import bootstrap_class_mean, metric, share_metric
from softclip_cli.evaluation.scoring import top_matches
from softclip_cli.evaluation.sets import ClassificationSet, MultiLabelSet

Kept = TypeVar("Kept")
TEXTS_AT_ONCE = 65_536  # prompts whose embeddings are held together: 1,000 classes × 80 need two rounds


def class_embeddings(
    model: EmbeddingModel,
    class_names: Sequence[str],
    prompts: Sequence[str],
    *,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """One embedding a class: every prompt encoded and L2-normalised, their mean L2-normalised again.

    As in CLIP's prompt ensembling (Radford et al. 2021, section 3.1.4) and `open_clip.build_zero_shot_classifier`.

    Returns:
        float32 (C, embed_dim).
    """
    options = options or EmbedOptions()
    key: dict[str, Any] = {}
    if options.cache is not None:
        key = text_cache_key(model, options, digest(list(class_names), list(prompts)))
        found = options.cache.load(key)
        if found is not None:
            return found["classes"]
    at_once = max(1, TEXTS_AT_ONCE // len(prompts))
    parts = []
    total = len(class_names) * len(prompts)
    for start in range(0, len(class_names), at_once):
        some = class_names[start : start + at_once]
        texts = [prompt.replace("{}", name) for name in some for prompt in prompts]
        done = start * len(prompts)

        def tell(step: int, steps: int, done: int = done, size: int = len(texts)) -> None:
            if progress is not None:
                progress(done + step * size // steps, total)

        encoded = embed_texts(model, texts, options=options, progress=tell)
        parts.append(F.normalize(encoded.view(len(some), len(prompts), -1).mean(dim=1), dim=-1))
    classes = torch.cat(parts)
    if options.cache is not None:
        options.cache.store(key, {"classes": classes})
    return classes


def classification_metrics(best: np.ndarray, labels: np.ndarray, class_count: int) -> dict[str, Any]:
    """top1, top5 (with more than five classes) and mean_per_class from the best classes (N, k) of each image."""
    hits = best == labels[:, None]
    metrics = {"top1": share_metric(hits[:, 0])}
    if class_count > 5 and best.shape[1] >= 5:
        metrics["top5"] = share_metric(hits[:, :5].any(axis=1))
    totals = np.bincount(labels, minlength=class_count)
    correct = np.bincount(labels[hits[:, 0]], minlength=class_count)
    mean = float((correct[totals > 0] / totals[totals > 0]).mean())
    bounds = bootstrap_class_mean(correct, totals)
    metrics["mean_per_class"] = metric(mean, len(labels), bounds, interval="bootstrap within classes, 95 %")
    return metrics


def per_class(best: np.ndarray, data: ClassificationSet) -> list[dict[str, Any]]:
    """For each class: its name, number of images, share correct, and the class it is most often taken for."""
    rows = []
    for index in range(data.class_count):
        predicted = best[data.labels == index, 0]
        wrong = predicted[predicted != index]
        taken_for = int(np.bincount(wrong).argmax()) if len(wrong) else None
        rows.append(
            {
                "class": data.class_label(index),
                "n": len(predicted),
                "accuracy": float((predicted == index).mean()) if len(predicted) else None,
                "mostly_taken_for": None if taken_for is None else data.class_label(taken_for),
            }
        )
    return rows


def confusion(best: np.ndarray, labels: np.ndarray, class_count: int) -> dict[str, list[int]]:
    """How often images of each class are taken for each other one, as lists of equal length: `true`, `predicted`, `n`.

    Only what occurs is listed: 1,000 classes have a million pairs, and 50,000 images fill 50,000 of them at most.
    """
    pairs, counts = np.unique(labels * class_count + best[:, 0], return_counts=True)
    return {
        "true": (pairs // class_count).tolist(),
        "predicted": (pairs % class_count).tolist(),
        "n": counts.tolist(),
    }


def dataset_facts(data: ClassificationSet | MultiLabelSet, features: ImageFeatures) -> dict[str, Any]:
    """The `dataset` part of a result."""
    facts: dict[str, Any] = {
        "name": data.name,
        "split": data.split,
        "size": len(data.images),
        "classes": data.class_count,
        "layout": data.layout,
        "fingerprint": features.fingerprint(data.content()),
    }
    if data.expected_size is not None and data.expected_size != len(data.images):
        facts["expected_size"] = data.expected_size
    return facts


def require_class_names(data: ClassificationSet | MultiLabelSet) -> tuple[str, ...]:
    """The set's class names.

    Raises:
        DataError: it has none.
    """
    if data.class_names is None:
        raise DataError(
            f"{data.name} comes without class names, which zero-shot classification needs",
            "neither the data nor a dataset card (README.md) beside it names the classes",
            f"write the {data.class_count:,} names in label order, one a line, and give --classnames FILE"
            " (for a dataset of the catalogue, pip install clip-benchmark also helps: its lists are read)",
        )
    return data.class_names


def with_prompts(
    model: EmbeddingModel,
    data: ClassificationSet | MultiLabelSet,
    judge: Callable[[Tensor], tuple[dict[str, Any], Kept]],
    *,
    options: EmbedOptions,
    single_only: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Kept, dict[str, Any]]:
    """Judge the class embeddings of the single prompt and of the ensemble, which is the headline where there is one.

    Args:
        model, options, progress: as for `zero_shot`.
        data: class names and prompts.
        judge: from class embeddings, float32 (C, embed_dim), to metrics and whatever else the caller wants of them.
        single_only: leave the ensemble out.

    Returns:
        The metrics, those of the single prompt beside the ensemble's as `single_prompt_*`; what `judge` gave besides;
        and the part of the protocol that is about prompts.

    Raises:
        DataError: the set has no class names.
    """
    class_names = require_class_names(data)
    prompt = names.single_prompt(data.prompts)
    ensemble = not single_only and len(data.prompts) > 1
    metrics, kept = judge(class_embeddings(model, class_names, [prompt], options=options))
    if ensemble:
        alone = metrics
        metrics, kept = judge(class_embeddings(model, class_names, data.prompts, options=options, progress=progress))
        metrics |= {f"single_prompt_{name}": entry for name, entry in alone.items()}
    protocol = {
        "prompts": [prompt] if not ensemble else list(data.prompts),
        "prompts_source": data.prompts_source,
        "single_prompt": prompt,
        "class_names_source": data.class_names_source,
        "class_embedding": "mean of the normalised prompt embeddings, normalised",
        "features": "projected, L2-normalised",
        **options.protocol(),
    }
    return metrics, kept, protocol


def repeated_names(data: ClassificationSet | MultiLabelSet) -> dict[str, Any]:
    """For the details: the names that several classes share, where there are any."""
    given = data.class_names or ()
    repeated = sorted({name for name in given if given.count(name) > 1})
    return {"classes_of_the_same_name": repeated} if repeated else {}


def zero_shot(
    model: EmbeddingModel,
    data: ClassificationSet,
    *,
    options: EmbedOptions | None = None,
    features: ImageFeatures | None = None,
    single_only: bool = False,
    with_confusion: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate zero-shot classification.

    The ensemble of all prompts is the headline (`top1`, `top5`, `mean_per_class`); the single prompt stands beside it
    as `single_prompt_*`. With one prompt, or `single_only`, there is just the single one.

    Args:
        model: the model; its training mode is left as it was.
        data: images, labels, class names and prompts.
        options: how to embed.
        features: the images' projected features, where they are already there.
        single_only: leave the ensemble out.
        with_confusion: count in the details which class is taken for which (`reports/confusion.py` draws it).
        progress: called with (done, total), over images and then prompts.

    Returns:
        A result document (docs/design.md).

    Raises:
        DataError: the set has no class names, or an image cannot be decoded.
        ModelError: an embedding is not finite.
    """
    started = time.perf_counter()
    options = options or EmbedOptions()
    require_class_names(data)
    if features is None:
        features = embed_images(
            model, data.images, name=data.name, split=data.split, options=options, progress=progress
        )
    projected = features.projected
    assert projected is not None
    matches: list[np.ndarray] = []  # of the single prompt, then of the ensemble, where there is one

    def judge(classes: Tensor) -> tuple[dict[str, Any], np.ndarray]:
        best = top_matches(projected, classes, 5)
        matches.append(best)
        return classification_metrics(best, data.labels, data.class_count), best

    metrics, best, protocol = with_prompts(
        model, data, judge, options=options, single_only=single_only, progress=progress
    )
    items = outcomes.classification(best, data.labels)
    if len(matches) > 1:
        items |= outcomes.classification(matches[0], data.labels, "single_prompt_")
    details: dict[str, Any] = {"chance": 1 / data.class_count, "per_class": per_class(best, data)}
    details |= repeated_names(data)
    if with_confusion:
        details["confusion"] = confusion(best, data.labels, data.class_count)
    if len(data.empty_classes):
        details["empty_classes"] = [data.class_label(index) for index in data.empty_classes]
    return result.build(
        task="zeroshot",
        dataset=dataset_facts(data, features),
        protocol=protocol,
        model=model,
        metrics=metrics,
        details=details,
        outcomes=outcomes.packed(items),
        seconds=time.perf_counter() - started,
    )
