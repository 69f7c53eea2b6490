"""Evidence collected over trainings among whose pairs some mismatches were planted, so that it is known what a mismatch looks like.

A pair that fits is learnt early, one that does not is learnt late or never: what a model says of a pair over all its epochs tells more than
what it says in the end. But every pair of a training is pulled together by it, so that random pairs that no training has seen
are no measure. Planted ones are: a small part of the captions is passed round, and these pairs are trained on as all others (after
the threshold samples of Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the Margin Ranking").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from softclip_cli.audit.evidence import Competition, Pairs
from softclip_cli.data.mismatch import pass_round
from softclip_cli.data.sampler import generator
from softclip_cli.model import Model
from softclip_cli.training.encoder import ProjectionEncoder
from softclip_cli.training.features import FeatureStore
from softclip_cli.training.projections import fit_projections
from softclip_cli.training.settings import TrainSettings

STREAM = 7  # keeps these random numbers apart from others of the same seed
SHARE = 0.1  # of the captions is passed round in each training
ENOUGH = 1500  # planted pairs, over all trainings
ROUNDS = (2, 5)  # trainings, at least and at most; every pair is left as it is in all but one of them
LOOKS = 20  # ends of epochs, spread over a training, are looked at: what varies from one to the next averages out
CHUNK = 4096

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Planted:
    """What was seen over all trainings.

    Attributes:
        own: evidence of the corpus's pairs, by caption: float32 (M,) each, mean over the trainings that had the pair.
        made: the planted pairs.
        made_evidence: of these, float32 (Q,) each.
        image, text: the embeddings of all images and captions after the last training.
        scale: its logit scale.
    """

    own: dict[str, np.ndarray]
    made: Pairs
    made_evidence: dict[str, np.ndarray]
    image: Tensor
    text: Tensor
    scale: float


def planted_parts(owner: np.ndarray, rounds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which captions are passed round in each training: int64 each, no caption twice; each takes the place of the one before it.

    Args:
        owner: int64 (M,), the image of each caption.
        rounds: number of trainings.
        rng: draws them.
    """
    size = max(2, round(SHARE * len(owner)))
    order = rng.permutation(len(owner))
    parts = []
    for number in range(rounds):
        ring = order[number * size : (number + 1) * size].copy()
        if len(ring) < 2 or 2 * np.unique(owner[ring], return_counts=True)[1].max() > len(ring):
            continue  # a corpus so small that they are of one image
        pass_round(ring, owner, rng)
        parts.append(ring)
    return parts


def planted_evidence(
    model: Model,
    start: dict[str, Tensor],
    store: FeatureStore,
    settings: TrainSettings,
    progress: Progress | None = None,
) -> Planted:
    """Train projections several times, each time with other planted mismatches, and collect what they say of all pairs.

    Args:
        model: both of whose trunks are locked; its projections are left in the state of the last training.
        start: projections to start from.
        store: the features of the corpus.
        settings: of each training.
        progress: called with (trainings done, in all).
    """
    owner = np.repeat(np.arange(len(store.image)), np.diff(store.first.numpy()))
    seed, count = settings.schedule.seed, len(owner)
    rounds = int(np.clip(-(-ENOUGH // max(1, round(SHARE * count))), *ROUNDS))
    competition = Competition(len(store.image), count, seed)
    own: dict[str, np.ndarray] = {}
    times = np.zeros(count, np.int64)
    made: list[Pairs] = []
    of_made: list[dict[str, np.ndarray]] = []
    epochs = max(1, int(settings.schedule.epochs))
    wanted = {int(epoch) for epoch in np.linspace(1, epochs, LOOKS).round()}
    parts = planted_parts(owner, rounds, generator(seed, STREAM))
    encoder: ProjectionEncoder | None = None
    for done, ring in enumerate(parts):
        source = np.arange(count)
        source[ring] = np.roll(ring, -1)
        kept = np.flatnonzero(source == np.arange(count))
        pairs, planted = Pairs(owner[kept], kept, kept), Pairs(owner[ring], source[ring], ring)
        means = _Means(competition, store, wanted, pairs, planted)
        text = store.text[torch.from_numpy(source)]
        encoder = fit_projections(model, start, replace(store, text=text), settings, means.look)
        of_kept, of_planted = means.found()
        for name, value in of_kept.items():
            own.setdefault(name, np.zeros(count, np.float32))[kept] += value
        times[kept] += 1
        made.append(planted)
        of_made.append(of_planted)
        if progress is not None:
            progress(done + 1, len(parts))
    assert encoder is not None
    image, text = embedded(encoder, store)
    return Planted(
        {name: value / times for name, value in own.items()},
        Pairs(*(np.concatenate([getattr(part, name) for part in made]) for name in ("image", "caption", "place"))),
        {name: np.concatenate([part[name] for part in of_made]) for name in own},
        image,
        text,
        float(encoder.logit_scale.detach()),
    )


class _Means:
    """The evidence of some sets of pairs, mean over the epochs that are looked at."""

    def __init__(self, competition: Competition, store: FeatureStore, wanted: set[int], *several: Pairs) -> None:
        self.competition, self.store, self.wanted, self.several = competition, store, wanted, several
        self.sums: list[dict[str, np.ndarray]] = [{} for _ in several]
        self.seen = 0

    def look(self, epoch: int, encoder: ProjectionEncoder) -> None:
        if epoch not in self.wanted:
            return
        self.seen += 1
        image, text = embedded(encoder, self.store)
        found = self.competition(image, text, float(encoder.logit_scale.detach()), *self.several)
        for total, values in zip(self.sums, found, strict=True):
            for name, value in values.items():
                total[name] = total[name] + value if name in total else value

    def found(self) -> list[dict[str, np.ndarray]]:
        return [{name: value / self.seen for name, value in sums.items()} for sums in self.sums]


def embedded(encoder: ProjectionEncoder, store: FeatureStore) -> tuple[Tensor, Tensor]:
    """All images and captions through the projections, on the CPU, L2-normalised."""
    device = encoder.logit_scale.device
    with torch.no_grad():
        image = torch.cat([encoder.image(part.to(device)).cpu() for part in store.image.split(CHUNK)])
        text = torch.cat([encoder.text(part.to(device)).cpu() for part in store.text.split(CHUNK)])
    return image, text
