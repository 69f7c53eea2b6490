"""How much each pair of a batch counts: the probability that image and caption belong together, found without labels.

A batch of N pairs also holds N² − N pairs that do not belong together, so how mismatched pairs score is known; how well an own pair
stands out from them is a test statistic with a known null distribution:

    z_i = ½ [ (s_ii − mean_j≠i s_ij) / sd_j≠i s_ij  +  (s_ii − mean_j≠i s_ji) / sd_j≠i s_ji ],   s = the teacher's V̄ T̄ᵀ

Over the pairs of the last batches, z is a mixture of two normal distributions: N(0, 1) of the mismatched ones and N(μ, σ²) of the
others, whose share π, μ and σ² are followed by online expectation maximisation (Cappé and Moulines 2009). The weight is one minus the local
false discovery rate (Efron 2001):

    p_i = π f₁(z_i) / (π f₁(z_i) + (1 − π) f₀(z_i)),   and 1 where z_i ≥ μ.

A model that cannot tell pairs apart yet must not judge them: weights are 1 − t (1 − p_i), where t rises from 0 to 1 while μ goes from
1 to 3. The method is softclip's own [ours]; two-component mixtures over *losses* were used for noisy labels by Arazo et al. 2019 and
Li et al. 2020 (DivideMix).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEMORY = 0.98  # of the running mixture, in batches
TRUSTED = (
    1.0,
    3.0,
)  # weights take effect while the mean of matching pairs goes from one to the other, in sd of mismatched ones
LEAST = 1e-3  # no pair is wholly forgotten: a weight of 0 could never be corrected by what the pair itself teaches


def standardised_scores(image: Tensor, text: Tensor) -> Tensor:
    """How far each own pair's similarity lies above those of its image with other texts and of its text with other images.

    Memory is linear in N for large batches: means and second moments follow from d × d sums.

    Args:
        image, text: (N, d), L2-normalised, row i of both being a pair; N ≥ 3.

    Returns:
        (N,) z, the mean over both directions, in standard deviations.
    """
    count, width = image.shape
    own = (image * text).sum(dim=1)
    if count <= 2 * width:
        similarity = image @ text.T
        squares = similarity.square()
        sums = (similarity.sum(dim=1), squares.sum(dim=1)), (similarity.sum(dim=0), squares.sum(dim=0))
    else:
        sums = _sums(image, text), _sums(text, image)
    z = torch.zeros_like(own)
    for total, square in sums:
        mean = (total - own) / (count - 1)
        variance = (square - own.square()) / (count - 1) - mean.square()
        z += 0.5 * (own - mean) / variance.clamp_min(1e-8).sqrt()
    return z


def _sums(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_j s_ij and Σ_j s_ij² of s = left rightᵀ, without it."""
    return left @ right.sum(dim=0), ((left @ (right.T @ right)) * left).sum(dim=1)


class PairWeights(nn.Module):
    """The running mixture, and weights by it. Its state is in `state_dict`, so that a resumed run goes on with it."""

    mixture: Tensor
    """float32 (4,): π, μ, σ², batches seen"""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mixture", torch.tensor([0.5, 0.0, 1.0, 0.0]))
        self._before: Tensor | None = None

    @torch.no_grad()
    def forward(self, image: Tensor, text: Tensor, *, update: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights of a global batch's pairs.

        Args:
            image, text: (N, d) the teacher's embeddings.
            update: take the batch into the mixture.

        Returns:
            (N,) weights with mean 1, and what is worth logging: `clean_share` π, `separation` μ, `judged` t, `pair_weight` the mean
            weight before the division.
        """
        if image.shape[0] < 3:
            return image.new_ones(image.shape[0]), {}
        z = standardised_scores(image, text)
        share, mean, variance, _ = self.mixture.to(z, copy=True).unbind()
        null = (1 - share) * torch.exp(-0.5 * z.square())
        other = share * torch.exp(-0.5 * (z - mean).square() / variance) / variance.sqrt()
        belongs = torch.where(z >= mean, 1.0, other / (null + other).clamp_min(torch.finfo(z.dtype).tiny))
        if update:
            self._learn(z, belongs)
        low, high = TRUSTED
        trust = ((mean - low) / (high - low)).clamp(0, 1)
        weights = (1 - trust * (1 - belongs)).clamp_min(LEAST)
        report = {"clean_share": share, "separation": mean, "judged": trust, "pair_weight": weights.mean()}
        return weights / weights.mean(), report

    def _learn(self, z: Tensor, belongs: Tensor) -> None:
        """One step of online EM, with the E step that was made already."""
        share, mean, variance, seen = self.mixture.to(z, copy=True).unbind()
        keep = torch.minimum((1 + seen) / (10 + seen), seen.new_tensor(MEMORY))
        number = belongs.sum().clamp_min(1e-6)
        found = torch.stack(
            [belongs.mean(), (belongs * z).sum() / number, (belongs * (z - mean).square()).sum() / number]
        )
        moved = torch.lerp(found, torch.stack([share, mean, variance]), keep)
        limits = [(0.02, 0.98), (0.5, 1e3), (0.1, 9.0)]
        moved = torch.stack([value.clamp(*limit) for value, limit in zip(moved.unbind(), limits, strict=True)])
        self._before = self.mixture.clone()
        self.mixture.copy_(torch.cat([moved, (seen + 1)[None]]))

    @torch.no_grad()
    def take_back(self, where: Tensor | None = None) -> None:
        """Undo the last update; with `where`, a bool scalar on the device, only if it is true."""
        if self._before is None:
            return
        before, self._before = self._before, None
        self.mixture.copy_(before if where is None else torch.where(where, before, self.mixture))
