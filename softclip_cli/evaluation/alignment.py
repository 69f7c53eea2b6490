"""Agreement with people: does the model's score, or the soft target made of it, order pairs as human ratings do?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from softclip_cli.evaluation import outcomes, result
from softclip_cli.evaluation.embed import EmbedOptions, Progress, embed_images, embed_texts
from softclip_cli.evaluation.intervals import ends, metric
from softclip_cli.evaluation.ratings import RatedSet
from softclip_cli.model import Model
from softclip_cli.objectives.assignment import assigned_targets
from softclip_cli.objectives.settings import ResolvedObjective

RESAMPLES = 200  # each sorts all pairs anew
INTERVAL = f"bootstrap over images, {RESAMPLES} times, 95 %"


def kendall(scores: np.ndarray, ratings: np.ndarray, variant: str) -> float:
    """Kendall's τ between the scores of pairs and each single rating of them.

    Args:
        scores: (P,).
        ratings: (P, R), NaN where a rater gave none; each rating is an observation of its own, as in Hessel et al. 2021.
        variant: "b" or "c".
    """
    from scipy import stats

    given = ~np.isnan(ratings)
    repeated = np.broadcast_to(scores[:, None], ratings.shape)[given]
    return float(stats.kendalltau(repeated, ratings[given], variant=variant).statistic)


def auroc(scores: np.ndarray, described: np.ndarray) -> float:
    """The chance that a text that describes its image scores above one that does not; NaN where there is but one kind."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(described, scores)) if 0 < described.sum() < len(described) else float("nan")


def agreement(
    scores: np.ndarray,
    data: RatedSet,
    chosen: np.ndarray,
    seed: int = 0,
    keep: dict[str, np.ndarray] | None = None,
    prefix: str = "",
) -> dict[str, Any]:
    """The metrics of one kind of score: `kendall_tau` and `auroc`, with intervals from resampling images with all their pairs.

    Args:
        scores: float64 (P,), NaN where `chosen` is False.
        data: the rated pairs.
        chosen: bool (P,): the pairs that are counted.
        seed: of the bootstrap.
        keep: takes the values on the resampled pairs, under `draws_` and the metric's name: what is compared pair by pair later.
        prefix: of the metrics' names in `keep`.
    """
    scores, image = scores[chosen], data.image[chosen]
    ratings, described = data.ratings[chosen], data.described[chosen]
    order = np.argsort(image, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(image[order])) + 1)
    measures: dict[str, Callable[[np.ndarray], float]] = {
        "kendall_tau": lambda rows: kendall(scores[rows], ratings[rows], data.kendall),
        "auroc": lambda rows: auroc(scores[rows], described[rows]),
    }
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]) for _ in range(RESAMPLES)]
    found = {}
    for name, measure in measures.items():
        value = measure(np.arange(len(scores)))
        if np.isnan(value):
            continue  # all describe, or none does
        samples = np.array([measure(rows) for rows in draws])
        if keep is not None:
            keep[f"draws_{prefix}{name}"] = samples
        found[name] = metric(
            value, len(groups), ends(samples[~np.isnan(samples)]), interval=INTERVAL, unit="correlation"
        )
    return found


def target_scores(
    choice: ResolvedObjective, data: RatedSet, images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor
) -> dict[str, np.ndarray]:
    """What an objective would assign to each rated pair, in one batch of all rated texts with the images they were written for.

    Args:
        choice: of the objective; the evaluated model is its teacher.
        data: whose texts have a known author.
        images: float32 (N, d), L2-normalised.
        texts: float32 (T, d), L2-normalised.
        scale: the model's logit scale.

    Returns:
        float64 (P,) under `image_to_text` and `text_to_image`: logarithms of the shares. NaN for a pair whose image has no
        text of its own in the batch.
    """
    rows = np.flatnonzero(data.author >= 0)
    authors = data.author[rows]
    of_images, of_texts = assigned_targets(
        choice, images[torch.from_numpy(authors)].double(), texts[torch.from_numpy(rows)].double(), scale.double()
    )
    row_of_image = np.full(len(images), -1)
    row_of_image[authors[::-1]] = np.arange(len(rows))[::-1]  # the first text of each image
    row_of_text = np.full(len(texts), -1)
    row_of_text[rows] = np.arange(len(rows))
    image, text = row_of_image[data.image], row_of_text[data.text]
    known = (image >= 0) & (text >= 0)
    found = {}
    # An image may be there with several texts: its share for a text is that of any of its rows, a text's for it the sum of all.
    of_texts = torch.zeros(len(rows), len(images), dtype=of_texts.dtype).index_add_(
        1, torch.from_numpy(authors), of_texts
    )
    for name, table, one, other in (
        ("image_to_text", of_images, image, text),
        ("text_to_image", of_texts, text, data.image),
    ):
        scores = np.full(len(image), np.nan)
        scores[known] = table[torch.from_numpy(one[known]), torch.from_numpy(other[known])].log().numpy()
        found[name] = scores
    return found


def alignment(
    model: Model,
    data: RatedSet,
    *,
    objective: ResolvedObjective | None = None,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate agreement with human ratings, of the cosine and of the soft targets that an objective would make of it.

    Returns:
        A result document (docs/design.md): `kendall_tau` and `auroc` of the cosine; with an objective the same under
        `target_image_to_text_…` and `target_text_to_image_…`.

    Raises:
        DataError: an image cannot be decoded.
        ModelError: an embedding is not finite.
        UsageError: an objective without soft targets, or texts whose images are not known.
    """
    started = time.perf_counter()
    options = options or EmbedOptions()
    features = embed_images(model, data.images, name=data.name, split=data.split, options=options, progress=progress)
    assert features.projected is not None
    texts = embed_texts(model, data.texts, options=options, progress=progress)
    pairs = (torch.from_numpy(data.image), torch.from_numpy(data.text))
    cosine = (features.projected[pairs[0]].double() * texts[pairs[1]].double()).sum(dim=1).numpy()
    everyone = np.ones(len(cosine), dtype=bool)
    draws: dict[str, np.ndarray] = {}
    metrics = agreement(cosine, data, everyone, keep=draws)
    protocol: dict[str, Any] = {
        "kendall": f"tau-{data.kendall} over single ratings",
        "describes": f"the median rating is at least {data.describes:g}",
        **options.protocol(),
    }
    details: dict[str, Any] = {
        "pairs": len(cosine),
        "texts": len(data.texts),
        "raters": data.ratings.shape[1],
        "described": int(data.described.sum()),
        **data.notes,
    }
    if objective is not None:
        protocol["objective"] = objective.model_dump()
        scale = model.logit_scale.detach().cpu()
        for name, scores in target_scores(objective, data, features.projected, texts, scale).items():
            known = ~np.isnan(scores)
            details["pairs_with_targets"] = int(known.sum())
            of_target = agreement(scores, data, known, keep=draws, prefix=f"target_{name}_")
            metrics |= {f"target_{name}_{key}": entry for key, entry in of_target.items()}
            if not known.all():
                metrics |= {f"same_pairs_{key}": entry for key, entry in agreement(cosine, data, known).items()}
    dataset = {
        "name": data.name,
        "split": data.split,
        "size": len(data.images),
        "gallery": f"{len(cosine):,} pairs of {len(np.unique(data.image)):,} images and {len(data.texts):,} texts",
        "layout": data.layout,
        "fingerprint": features.fingerprint(data.content()),
    }
    return result.build(
        task="alignment",
        dataset=dataset,
        protocol=protocol,
        model=model,
        metrics=metrics,
        details=details,
        outcomes=outcomes.packed(draws, resampled="images with all their pairs", seed=0),
        seconds=time.perf_counter() - started,
    )
