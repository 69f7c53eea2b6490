"""Projections trained on stored features in memory, by the trainer's own steps: for whoever needs many small models, not a run.

The steps are `training/stepper.py`'s. In contrast to `softclip train`, a training whose loss stays no number ends: there is no checkpoint
to go back to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from softclip_cli.data.batches import Batch
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.errors import TrainingError
from softclip_cli.model import Model
from softclip_cli.objectives.embeddings import ObjectiveOutput
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.settings import resolve
from softclip_cli.training.encoder import ProjectionEncoder, Projections
from softclip_cli.training.features import FeatureStore, feature_batches
from softclip_cli.training.run_data import build_sampler
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.stepper import Stepper
from softclip_cli.training.student import build_average, is_untrained
from softclip_cli.training.teachers import AverageTeacher, Teacher

Weights = dict[str, Tensor]
EpochEnd = Callable[[int, ProjectionEncoder], None]
Seen = Callable[[Batch, Tensor], None]


def projection_state(model: Model) -> Weights:
    """A copy of a model's projections and logit scale, to start from several times."""
    return copied(ProjectionEncoder(Projections(model)))


def copied(encoder: ProjectionEncoder) -> Weights:
    """A copy of its projections and logit scale."""
    return {name: tensor.detach().clone() for name, tensor in encoder.module.state_dict().items()}


def encoder_with(model: Model, weights: Weights) -> ProjectionEncoder:
    """A model's trunks with these projections, which are put into the model."""
    projections = Projections(model)
    projections.load_state_dict(weights)
    return ProjectionEncoder(projections)


class ProjectionTraining:
    """One training of a model's projections, in place.

    Args:
        model: both of whose trunks are locked.
        start: projections to start from.
        store: what to train on.
        settings: objective, optimiser, batch size, length and seed.
        teacher: a frozen one, where the objective wants it.
        teacher_dim: width of its embeddings.

    Attributes:
        encoder: the projections that move.
        stepper: makes the steps.
        sampler, steps: which samples each sees, and how many there are.
    """

    def __init__(
        self,
        model: Model,
        start: Weights,
        store: FeatureStore,
        settings: TrainSettings,
        teacher: Teacher | None = None,
        teacher_dim: int | None = None,
    ) -> None:
        self.model, self.store, self.settings = model, store, settings
        self.sampler: EpochSampler = build_sampler(store.image, settings)
        self.steps = settings.schedule.total(self.sampler.steps_per_epoch)
        self.encoder = encoder_with(model, start)
        choice = resolve(settings.objective, batch_size=settings.data.batch_size)
        objective = Objective(choice, embed_dim=model.embed_dim, teacher_dim=teacher_dim).to(model.device)
        if is_untrained(settings.model.reference):
            with torch.no_grad():
                model.net.logit_scale.fill_(torch.tensor(objective.initial_logit_scale).log())
        average = build_average(objective, self.encoder)
        if average is not None:
            teacher = AverageTeacher(self.encoder.like(average.module))
        self.stepper = Stepper(settings, model, self.encoder, objective, average, teacher, self.steps)

    def __iter__(self) -> Iterator[tuple[Batch, ObjectiveOutput]]:
        """Make the steps, one at a time.

        Raises:
            TrainingError: the loss stays no number.
        """
        self.model.train()
        for batch in feature_batches(self.store, self.sampler, 0, self.steps, self.settings.data.captions):
            output = self.stepper(batch.step, batch, False)
            if self.stepper.guard.streak >= self.settings.optimizer.max_skipped:
                raise TrainingError(
                    f"loss or gradient were no number for {self.stepper.guard.streak} batches in a row, up to step {batch.step + 1}",
                    "training diverged",
                    "a lower learning rate, or a longer warm-up",
                )
            yield batch, output


def fit_projections(
    model: Model,
    start: Weights,
    store: FeatureStore,
    settings: TrainSettings,
    epoch_end: EpochEnd | None = None,
    seen: Seen | None = None,
) -> ProjectionEncoder:
    """Train a model's projections in place, as `softclip train` does where both trunks are frozen, and write nothing.

    Args:
        model, start, store: as for `ProjectionTraining`.
        settings: a frozen teacher is not possible here.
        epoch_end: called with the number of epochs done, and the encoder (a moving average's, where the objective keeps one).
        seen: called with each batch and the alignments of its pairs (`objectives.alignments`), where `log.alignments` is set.

    Raises:
        TrainingError: the loss stays no number.
    """
    training = ProjectionTraining(model, start, store, settings)
    average = training.stepper.ema
    judged = training.encoder.like(average.module) if average is not None else training.encoder
    for batch, output in training:
        if seen is not None and output.alignments is not None:
            seen(batch, output.alignments)
        epochs, rest = divmod(batch.step + 1, training.sampler.steps_per_epoch)
        if epoch_end is not None and not rest:
            epoch_end(epochs, judged)
    model.eval()
    return judged
