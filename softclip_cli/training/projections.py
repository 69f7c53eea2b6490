"""Projections trained on stored features by the trainer's own steps, in memory: for whoever needs many small models, not a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from softclip_cli.data.batches import Batch
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.model import Model
from softclip_cli.objectives.objective import build_objective
from softclip_cli.training.encoder import ProjectionEncoder, Projections
from softclip_cli.training.features import FeatureStore, feature_batches
from softclip_cli.training.run_folder import RunFolder
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.student import build_average
from softclip_cli.training.teachers import AverageTeacher
from softclip_cli.training.trainer import Trainer

EpochEnd = Callable[[int, ProjectionEncoder], None]
Seen = Callable[[Batch, Tensor], None]


def projection_state(model: Model) -> dict[str, Tensor]:
    """A copy of a model's projections and logit scale, to start from several times."""
    return {name: tensor.clone() for name, tensor in Projections(model).state_dict().items()}


def fit_projections(
    model: Model,
    start: dict[str, Tensor],
    store: FeatureStore,
    settings: TrainSettings,
    epoch_end: EpochEnd | None = None,
    seen: Seen | None = None,
) -> ProjectionEncoder:
    """Train a model's projections in place, as `softclip train` does where both trunks are frozen, and write nothing.

    Args:
        model: both of whose trunks are locked.
        start: projections to start from, as `projection_state` gives them.
        store: what to train on.
        settings: objective, batch size, length and seed; a frozen teacher is not possible here.
        epoch_end: called with the number of epochs done, and the encoder (a moving average's, where the objective keeps one).
        seen: called with each batch and the alignments of its pairs (`objectives.alignments`), where `log.alignments` is set.
    """
    projections = Projections(model)
    projections.load_state_dict(start)
    encoder = ProjectionEncoder(projections)
    size, seed = settings.data.batch_size, settings.schedule.seed
    objective = build_objective(settings.objective, embed_dim=model.embed_dim, batch_size=size).to(model.device)
    with torch.no_grad():
        projections.logit_scale.fill_(torch.tensor(objective.initial_logit_scale).log())
    ema = build_average(objective, encoder)
    averaged = encoder.like(ema.module) if ema is not None else None
    teacher = AverageTeacher(averaged) if averaged is not None else None
    sampler = EpochSampler(len(store.image), size, seed)
    steps = settings.schedule.total(sampler.steps_per_epoch)
    source = partial(feature_batches, store, sampler, how=settings.data.captions)
    folder = RunFolder(Path())  # steps alone write nothing
    trainer = Trainer(settings, folder, model, encoder, objective, ema, teacher, sampler, source, None, steps)
    projections.train()
    for batch in source(0, steps):
        output = trainer.step(batch, diagnostics=False)
        if seen is not None and output.alignments is not None:
            seen(batch, output.alignments)
        trainer.done += 1
        if epoch_end is not None and trainer.done % sampler.steps_per_epoch == 0:
            projections.eval()
            epoch_end(trainer.done // sampler.steps_per_epoch, averaged or encoder)
            projections.train()
    projections.eval()
    return averaged or encoder
