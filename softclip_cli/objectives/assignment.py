"""The soft targets themselves, as matrices: what an objective would assign to the pairs of a batch."""

from __future__ import annotations

from torch import Tensor

from softclip_cli.errors import UsageError
from softclip_cli.objectives.batch import gather_batch
from softclip_cli.objectives.core import batch_soft_targets
from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.settings import ResolvedObjective
from softclip_cli.objectives.streaming import Plan, Product


def check_assigns(choice: ResolvedObjective) -> None:
    """Refuse an objective whose targets a model does not make of its own scores.

    Raises:
        UsageError: it is such a one.
    """
    if choice.rule not in ("softmax", "sinkhorn") or choice.similarity == "image":
        raise UsageError(
            f"objective {choice.name} assigns no soft targets that a model makes of its own scores",
            f"its rule is {choice.rule}" + (" on images alone" if choice.similarity == "image" else ""),
            "choose psd, ema-kd, otter, albef or distill: softclip objectives list",
        )


def assigned_targets(choice: ResolvedObjective, image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A_v and A_t of a batch whose teacher is the given model itself, whatever the objective's own teacher is.

    Dense, for looking at: N² numbers each. The hard part of the target, and the share α that it has, are left out.

    Args:
        choice: of an objective with soft targets of full rank.
        image, text: (N, d), L2-normalised; row i of both is pair i.
        scale: the model's logit scale, a scalar.

    Returns:
        A_v (N, N), whose row i says how image i is divided among the texts, and A_t (N, N), how text i is among the images;
        rows sum to 1.

    Raises:
        UsageError: an objective without such targets.
    """
    check_assigns(choice)
    teacher = None if choice.teacher == "self" else Embeddings(image, text, scale)
    batch = gather_batch(choice, image, text, teacher, scale, alpha=1.0, step=0, seed=0, groups=None, queue=None)
    everything = slice(0, batch.pairs)
    plan = Plan(batch.pairs, True, "whole matrices")
    targets = batch_soft_targets(batch, batch.teacher, Product([(image, text)], plan), everything, plan)
    targets.measure(everything)
    targets.close()
    ones, zeros, scratch = (
        image.new_ones(batch.pairs),
        image.new_zeros(batch.pairs),
        image.new_empty(batch.pairs, batch.pairs),
    )
    of_images, _ = targets.weighted(everything, ones, zeros, scratch, information=False)
    of_images = of_images.clone()
    of_texts, _ = targets.weighted(everything, zeros, ones, scratch, information=False)
    return of_images, of_texts.T.contiguous()
