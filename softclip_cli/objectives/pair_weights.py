"""How much each pair of a batch counts: the probability that image and caption belong together, found without labels.

A batch of N pairs also holds N² − N pairs that do not belong together, so how mismatched pairs score is known. How well an own pair
stands out from them is a test statistic:

    z_i = ½ [ (s_ii − mean_j≠i s_ij) / sd_j≠i s_ij  +  (s_ii − mean_j≠i s_ji) / sd_j≠i s_ji ],   s = the teacher's V̄ T̄ᵀ

Over the pairs of the last batches z is a mixture of two normal distributions: f₀ of mismatched pairs, whose moments are those of z of an
image with the next pair's text, and f₁ = N(μ, σ²) of the others. A matching pair hardly ever scores below the mean of random ones, so the
share of mismatched pairs is that of z < 0 over its share among random pairs (the null proportion of Storey 2002, at one half); μ and σ²
follow from the first two moments. All are running means, with no iteration that could end in a wrong place. The weight is one minus the
local false discovery rate (Efron et al. 2001),

    p_i = π f₁(z_i) / (π f₁(z_i) + (1 − π) f₀(z_i)),   and 1 where z_i ≥ μ.

A model that cannot tell pairs apart yet must not judge them: weights are 1 − t (1 − p_i), where t rises from 0 to 1 while μ goes from
1 to 3 standard deviations of f₀. The method is softclip's own [ours]; two-component mixtures over *losses* were used for noisy labels
by Arazo et al. 2019 and Li et al. 2020 (DivideMix).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEMORY = 0.98  # of the running moments, in batches
TRUSTED = (1.0, 3.0)  # weights take effect while μ goes from one to the other, in sd of f₀
LEAST = 1e-3  # no pair is wholly forgotten: a weight of 0 could never be corrected by what the pair itself teaches
SHARES = (0.02, 0.98)  # π is kept between: below, μ and σ² would rest on nothing; above, no pair could be judged
VARIANCES = (0.1, 9.0)  # of both distributions
RANDOM = (0.5, 0.0, 1.0)  # share below 0, first and second moment of z of random pairs


def standardised_scores(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """How far a pair's similarity lies above those of its image with other texts and of its text with other images.

    Memory is linear in N for large batches: means and second moments follow from d × d sums.

    Args:
        image, text: (N, d), L2-normalised, row i of both being a pair; N ≥ 3.

    Returns:
        (N,) z of the pairs, the mean over both directions, in standard deviations; and (N,) z of each image with the next pair's
        text, compared with the same others.
    """
    count, width = image.shape
    own = (image * text).sum(dim=1)
    if count <= 2 * width:
        similarity = image @ text.T
        squares = similarity.square()
        sums = (similarity.sum(dim=1), squares.sum(dim=1)), (similarity.sum(dim=0), squares.sum(dim=0))
    else:
        sums = _sums(image, text), _sums(text, image)
    of_image, of_text = (_mean_and_deviation(total - own, square - own.square(), count - 1) for total, square in sums)
    following = (image * text.roll(-1, dims=0)).sum(dim=1)
    of_following = [moment.roll(-1) for moment in of_text]
    z, random = (
        0.5 * ((score - of_image[0]) / of_image[1] + (score - mean) / deviation)
        for score, (mean, deviation) in ((own, of_text), (following, of_following))
    )
    return z, random


def _sums(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_j s_ij and Σ_j s_ij² of s = left rightᵀ, without it."""
    return left @ right.sum(dim=0), ((left @ (right.T @ right)) * left).sum(dim=1)


def _mean_and_deviation(total: Tensor, square: Tensor, count: int) -> tuple[Tensor, Tensor]:
    mean = total / count
    return mean, (square / count - mean.square()).clamp_min(1e-8).sqrt()


class PairWeights(nn.Module):
    """The running mixture, and weights by it. Its state is in `state_dict`, so that a resumed run goes on with it."""

    moments: Tensor
    """float32 (7,): share below 0, first and second moment of z, the same three of random pairs, batches seen"""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moments", torch.tensor([*RANDOM, *RANDOM, 0.0]))
        self._before: Tensor | None = None

    @torch.no_grad()
    def forward(self, image: Tensor, text: Tensor, *, update: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights of a global batch's pairs, by what the batches before have told.

        Args:
            image, text: (N, d) the teacher's embeddings.
            update: take the batch into the running moments.

        Returns:
            (N,) weights with mean 1, and what is worth logging: `clean_share` π, `separation` (μ in sd of f₀, from its mean), `judged` t,
            `pair_weight` the mean weight before the division.
        """
        if image.shape[0] < 3:
            return image.new_ones(image.shape[0]), {}
        z, random = standardised_scores(image, text)
        share, mean, variance, null_mean, null_variance = self._mixture(z)
        null = (1 - share) * torch.exp(-0.5 * (z - null_mean).square() / null_variance) / null_variance.sqrt()
        match = share * torch.exp(-0.5 * (z - mean).square() / variance) / variance.sqrt()
        belongs = torch.where(z >= mean, 1.0, match / (null + match).clamp_min(torch.finfo(z.dtype).tiny))
        separation = (mean - null_mean) / null_variance.sqrt()
        low, high = TRUSTED
        trust = ((separation - low) / (high - low)).clamp(0, 1)
        weights = (1 - trust * (1 - belongs)).clamp_min(LEAST)
        if update:
            self._learn(z, random)
        report = {"clean_share": share, "separation": separation, "judged": trust, "pair_weight": weights.mean()}
        return weights / weights.mean(), report

    def _mixture(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """π, μ, σ², and mean and variance of f₀: scalars."""
        below, first, second, null_below, null_mean, null_second, _ = self.moments.to(like, copy=True).unbind()
        share = (1 - below / null_below.clamp_min(0.05)).clamp(SHARES[0], 1)
        mean = (first - (1 - share) * null_mean) / share
        variance = ((second - (1 - share) * null_second) / share - mean.square()).clamp(*VARIANCES)
        return (
            share.clamp_max(SHARES[1]),
            mean,
            variance,
            null_mean,
            (null_second - null_mean.square()).clamp(*VARIANCES),
        )

    def _learn(self, own: Tensor, random: Tensor) -> None:
        found = torch.stack([moment for z in (own, random) for moment in _moments(z)])
        seen = self.moments[-1:].clone()
        keep = ((1 + seen) / (10 + seen)).clamp_max(MEMORY).to(found)
        self._before = self.moments.clone()
        self.moments.copy_(torch.cat([torch.lerp(found, self.moments[:-1].to(found), keep), seen.to(found) + 1]))

    @torch.no_grad()
    def take_back(self, where: Tensor | None = None) -> None:
        """Undo the last update; with `where`, a bool scalar on the device, only if it is true."""
        if self._before is None:
            return
        before, self._before = self._before, None
        self.moments.copy_(before if where is None else torch.where(where, before, self.moments))


def _moments(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (z < 0).to(z).mean(), z.mean(), z.square().mean()
