"""Many runs on the same frozen towers, in one process: trunk features are loaded once, and each run trains projections on them.

How they are trained: `training/projections.py`; the data are those of `training/start.py`. A run gives what `softclip train` gives with the
same settings, without its folder, checkpoints and logs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from softclip_cli.data.altered import Alteration
from softclip_cli.errors import UsageError
from softclip_cli.evaluation.retrieval import retrieval_metrics
from softclip_cli.model import Model
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.settings import resolve
from softclip_cli.training.device import choose_device, choose_precision
from softclip_cli.training.distributed import World
from softclip_cli.training.encoder import ProjectionEncoder, Projections
from softclip_cli.training.features import FeatureStore, default_options, trunk_features
from softclip_cli.training.frozen_teacher import FrozenTeacher, open_teacher, prepare_teacher
from softclip_cli.training.projections import ProjectionTraining, Weights, copied, encoder_with, projection_state
from softclip_cli.training.run_data import alteration, build_sampler, open_corpus, training_split
from softclip_cli.training.run_folder import Report
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.student import build_model
from softclip_cli.training.teachers import AverageTeacher, StoredTeacher, Teacher
from softclip_cli.training.trainer import unheard

BOTH = {"image", "text"}


def trains_heads_only(settings: TrainSettings) -> bool:
    """Whether a run's trunks are both frozen."""
    return set(settings.model.lock) == BOTH


@dataclass
class Trained:
    """What came of a run.

    Attributes:
        steps, samples, pairs: steps made; samples that the split has for it; image-caption pairs among them.
        seconds, cpu_seconds: of the steps alone, without preparation and evaluation.
        curve: one entry an epoch where asked: `epoch`, `step`, `seconds`, `cpu_seconds`, and what was measured.
        last: the projections after the last step.
        best: those of the best epoch, by what was measured; the last where nothing was.
        best_epoch: its number, from 1.
    """

    steps: int
    samples: int
    pairs: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    last: Weights = field(default_factory=dict)
    best: Weights = field(default_factory=dict)
    best_epoch: float = 0.0


class Heads:
    """Frozen towers over a corpus, and runs on their features.

    Args:
        settings: of any of the runs: model, corpus, split and limit are the same in all.
        report: told of progress and of what is doubtful.
    """

    def __init__(self, settings: TrainSettings, report: Report = unheard) -> None:
        if not trains_heads_only(settings):
            raise UsageError(
                "these runs need frozen towers", "model.lock names not both", "--set model.lock=image,text"
            )
        self.report, self.first = report, settings
        self.device = choose_device(settings.device)
        dtype, _ = choose_precision(settings.precision, self.device)
        self.dtype = torch.float32 if settings.precision == "auto" else dtype
        self.options = default_options(None, settings.data.workers, "fp32")
        self.model: Model = build_model(settings, self.device)
        self.corpus = open_corpus(settings, report)
        self.data = training_split(self.corpus, settings)
        self.store = self._features(settings.data.split, self.data)
        self._held_out: dict[str, tuple[FeatureStore, np.ndarray, np.ndarray]] = {}
        self._fresh: dict[int, Weights] = {}
        self._teachers: dict[tuple[str | None, int], StoredTeacher] = {}

    def _features(self, split: str, data: Any) -> FeatureStore:
        def progress(what: str, done: int, total: int) -> None:
            self.report("progress", {"what": f"{split}: {what}", "done": done, "total": total})

        return trunk_features(self.model, self.corpus, split, data, options=self.options, progress=progress)

    def fresh(self, settings: TrainSettings) -> Weights:
        """The projections that a run of this seed starts from."""
        seed = settings.schedule.seed
        if seed not in self._fresh:
            self._fresh[seed] = projection_state(build_model(settings, self.device))
        return self._fresh[seed]

    def encoder(self, weights: Weights) -> ProjectionEncoder:
        """The model with these projections in it."""
        return encoder_with(self.model, weights)

    def train(
        self,
        settings: TrainSettings,
        *,
        measure: Callable[[ProjectionEncoder], dict[str, float]] | None = None,
        best: str = "",
        taught_by: Weights | None = None,
    ) -> Trained:
        """Train projections.

        Args:
            settings: of the run.
            measure: called after each epoch.
            best: the measured quantity that the best epoch has most of.
            taught_by: projections of an earlier run that are the frozen teacher, in the place of `objective.teacher_model`.

        Raises:
            TrainingError: the loss stays no number.
        """
        change = alteration(self.data, settings)
        store = self.store.altered(change)
        choice = resolve(settings.objective, batch_size=settings.data.batch_size)
        teacher: Teacher | None = None
        width = None
        if taught_by is not None:
            module = copy.deepcopy(Projections(self.model))
            module.load_state_dict(taught_by)
            teacher = AverageTeacher(ProjectionEncoder(module.requires_grad_(False)))
        elif choice.teacher == "frozen":
            steps = settings.schedule.total(build_sampler(store.image, settings).steps_per_epoch)
            guide = self._stored_teacher(settings, choice.teacher_model, steps)
            teacher, width = StoredTeacher(guide.store.altered(change), guide.logit_scale), guide.store.image.shape[1]
        training = ProjectionTraining(self.model, self.fresh(settings), store, settings, teacher, width)
        encoder, steps, per_epoch = training.encoder, training.steps, training.sampler.steps_per_epoch
        averaged = training.stepper.ema if settings.eval.weights == "ema" else None
        trained = Trained(steps, len(store.image), int(store.first[-1]))
        wall, cpu = time.perf_counter(), time.process_time()
        for batch, _ in training:
            done = batch.step + 1
            if done < steps and (measure is None or done % per_epoch):
                continue
            trained.seconds += time.perf_counter() - wall
            trained.cpu_seconds += time.process_time() - cpu
            with averaged.swapped_into(encoder.module) if averaged is not None else nullcontext():
                if measure is not None:
                    entry = {
                        "epoch": done / per_epoch,
                        "step": float(done),
                        "seconds": trained.seconds,
                        "cpu_seconds": trained.cpu_seconds,
                        **measure(encoder),
                    }
                    if not trained.curve or entry[best] > max(before[best] for before in trained.curve):
                        trained.best, trained.best_epoch = copied(encoder), entry["epoch"]
                    trained.curve.append(entry)
                if done == steps:
                    trained.last = copied(encoder)
            wall, cpu = time.perf_counter(), time.process_time()
        if measure is None:
            trained.best, trained.best_epoch = trained.last, steps / per_epoch
        return trained

    def _stored_teacher(self, settings: TrainSettings, reference: str | None, steps: int) -> StoredTeacher:
        """A frozen teacher's embeddings of the whole split, asked for once."""
        asked = (reference, settings.schedule.seed)
        if asked in self._teachers:
            return self._teachers[asked]
        guide = open_teacher(str(reference), device=self.device, seed=settings.schedule.seed)
        needs_text = Objective(
            resolve(settings.objective), embed_dim=self.model.embed_dim, teacher_dim=guide.embed_dim
        ).needs_teacher_text
        places = int(self.store.first[-1])
        prepared = prepare_teacher(
            FrozenTeacher(guide, needs_text),
            settings,
            self.corpus,
            self.data,
            # All captions of the split: which of them a run sees is then chosen from the whole store.
            change=Alteration(
                np.arange(len(self.data)), self.store.first.numpy(), np.arange(places), np.zeros(places, dtype=bool)
            ),
            student=self.model,
            steps=steps,
            dtype=self.dtype,
            world=World(),
            before={},
            report=self.report,
        )
        assert isinstance(prepared.teacher, StoredTeacher)
        self._teachers[asked] = prepared.teacher
        return prepared.teacher

    def retrieval(self, split: str, encoder: ProjectionEncoder) -> dict[str, float]:
        """All metrics of retrieval on a split of the corpus, as `softclip retrieve` computes them, without intervals.

        Raises:
            DataError: the corpus has no such split.
        """
        store, rows, owner = self.held_out(split)
        with torch.no_grad():
            image = encoder.image(store.image.to(self.device)).cpu()
            text = encoder.text(store.text.to(self.device)).cpu()
        repeated = rows if len(text) < len(rows) else None
        metrics, _ = retrieval_metrics(image, text, owner, rows=repeated, intervals=False)
        return {name: float(entry["value"]) for name, entry in metrics.items()}

    def held_out(self, split: str) -> tuple[FeatureStore, np.ndarray, np.ndarray]:
        """A split's features, each distinct caption once; the row of each caption in them; and the image of each."""
        if split not in self._held_out:
            data = self.corpus.split(split)
            store = self._features(split, data)
            texts = [text for several in data["captions"][:] for text in several]
            first: dict[str, int] = {}
            rows = np.array([first.setdefault(text, len(first)) for text in texts])
            _, places = np.unique(rows, return_index=True)
            store.text = store.text[torch.from_numpy(places)]
            owner = np.repeat(np.arange(len(store.image)), np.diff(store.first.numpy()))
            self._held_out[split] = (store, rows, owner)
        return self._held_out[split]
