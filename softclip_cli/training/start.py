"""Putting a run together: every choice made and every mistake found before the first step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softclip_cli import runs
from softclip_cli.data.batches import Batch, StepDataset, batches, choose_workers
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import Augment
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.data.sharded.corpus import ShardedCorpus, ShardedSplit, names_shards
from softclip_cli.errors import DataError, ModelError, UsageError
from softclip_cli.evaluation.cache import default_folder
from softclip_cli.evaluation.locate import data_root
from softclip_cli.model import Model
from softclip_cli.objectives.objective import build_objective
from softclip_cli.objectives.settings import advice
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.registry import PairSettings, open_model
from softclip_cli.training import checkpoint
from softclip_cli.training.device import choose_device, choose_precision
from softclip_cli.training.distributed import World, from_first, joined
from softclip_cli.training.encoder import Encoder, ProjectionEncoder, Projections, TowerEncoder
from softclip_cli.training.features import default_options, feature_batches, trunk_features
from softclip_cli.training.run_folder import RunFolder, check_run_path, environment, new_run_path
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.trainer import Report, Trainer, unheard
from softclip_cli.training.validation import Validator


@dataclass(frozen=True)
class Plan:
    """What to run, where, and whether to go on with something.

    Attributes:
        settings: all settings.
        out: the run folder; None makes a new one under `runs/`.
        resume: "auto" goes on where `out` already holds a run, "never" refuses that.
        command: the command line, for the record.
    """

    settings: TrainSettings
    out: Path | None = None
    resume: str = "auto"
    command: tuple[str, ...] = ()


def train(plan: Plan, report: Report = unheard) -> Path:
    """Train, and return the run folder.

    Args:
        plan: settings and place.
        report: told of what happens: kinds "note", "warning", "progress", "start", "metrics", "evaluation", "checkpoint".

    Raises:
        UsageError, DataError, ModelError, HostError: something does not fit; nothing was started.
        TrainingError: training failed.
        Interrupted: asked to stop; everything is saved.
    """
    with joined(plan.settings.device) as world:
        trainer = prepare(plan, world, report if world.first else unheard)
        trainer.run()
        return trainer.folder.path


def prepare(plan: Plan, world: World, report: Report = unheard) -> Trainer:
    """Open corpus and model, choose device, precision and workers, and find the checkpoint to go on with."""
    settings = plan.settings
    # Named after the time, which differs between processes.
    path = from_first(plan.out or new_run_path(runs.runs_dir(), settings.objective.name), world)
    check_run_path(path)
    folder = RunFolder(path)
    if world.first:
        report = folder.logged(report)
    if checkpoint.saved_steps(path / "checkpoints") and plan.resume == "never":
        raise UsageError(
            f"{path} already holds a run", "--resume never was given", "name a new folder: --out runs/NAME"
        )

    device = choose_device(settings.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", world.local_rank)
    if settings.data.batch_size % world.size:
        raise UsageError(
            f"a batch of {settings.data.batch_size} does not divide by {world.size} processes",
            "every process takes an equal share",
            f"--batch-size {settings.data.batch_size // world.size * world.size}",
        )
    dtype, why = choose_precision(settings.precision, device)
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    corpus = open_corpus(settings, report)
    data = training_split(corpus, settings)
    sampler = build_sampler(data, settings)
    steps = settings.schedule.steps or max(1, round(settings.schedule.epochs * sampler.steps_per_epoch))

    model = build_model(settings, device)
    for line in model.notes:
        report("note", {"text": line})
    frozen = model.locked == {"image", "text"}
    if frozen and precision == "bf16" and settings.precision == "auto":
        dtype, precision, why = torch.float32, "fp32", "only the projections train, on stored features"
    report("note", {"text": f"device {device}, precision {precision}: {why}"})
    if frozen and settings.data.augment == "crop":
        report("note", {"text": "both trunks are frozen: their features are computed once, without augmentation"})

    objective = build_objective(settings.objective, embed_dim=model.embed_dim, batch_size=settings.data.batch_size)
    objective.to(device)
    for line in advice(objective.choice):
        report("note", {"text": line})
    report("note", {"text": f"loss: {objective.tiling_reason(settings.data.batch_size // world.size, device=device)}"})
    with torch.no_grad():
        if is_untrained(settings):
            model.net.logit_scale.fill_(torch.tensor(objective.initial_logit_scale).log())
    encoder: Encoder = ProjectionEncoder(Projections(model)) if frozen else TowerEncoder(model, dtype)
    ema, teacher = build_teacher(objective, encoder)

    split, options = settings.data.split, default_options(None, settings.data.workers, "fp32")
    if frozen:
        progress = partial(_progress, report)
        store = trunk_features(model, corpus, split, data, options=options, progress=progress)
        source = partial(_features, store, sampler, settings.data.captions, world)
    else:
        augment = (
            Augment(settings.data.crop_scale, flip=settings.data.flip) if settings.data.augment == "crop" else None
        )
        dataset = StepDataset(
            data, sampler, model.preprocess, augment, model.tokens, settings.data.captions, world.rank, world.size
        )
        workers, reason = choose_workers(settings.data.workers, world.size)
        report("note", {"text": f"{workers} decoding process{'' if workers == 1 else 'es'}: {reason}"})
        if device.type == "cpu" and workers and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() - workers))
        source = partial(_batches, dataset, workers, device.type == "cuda")
    validator = Validator.open(
        model, corpus, settings.eval.split, settings.eval.limit, options, frozen, precision, partial(_progress, report)
    )
    if validator is None:
        report("note", {"text": f"no evaluation during training: the corpus has no split {settings.eval.split!r}"})

    trainer = Trainer(
        settings, folder, model, encoder, objective, ema, teacher, sampler, source, validator, steps, world, report
    )
    if world.first:
        folder.create(
            settings,
            environment(str(device), precision, world.size, list(plan.command)),
            data_facts(corpus, settings, len(data)),
        )
    found, problems = checkpoint.newest_intact(path / "checkpoints")
    for problem in problems:
        report("warning", {"text": f"checkpoint {problem}; taking an earlier one"})
    if found is not None:
        trainer.resume(found)
        report("note", {"text": f"resuming {path} at step {trainer.first_step} of {steps}"})
    report(
        "start",
        {
            "path": str(path),
            "steps": steps,
            "first_step": trainer.first_step,
            "batch_size": sampler.batch_size,
            "pairs": len(data),
            "epochs": round(steps / sampler.steps_per_epoch, 2),
            "objective": settings.objective.name,
            "model": model.name,
            "trainable": sum(p.numel() for p in trainer.trainable),
        },
    )
    return trainer


def _progress(report: Report, what: str, done: int, total: int) -> None:
    report("progress", {"what": what, "done": done, "total": total})


def _batches(dataset: StepDataset, workers: int, pin: bool, first: int, last: int) -> Iterator[Batch]:
    return batches(dataset, first, last, workers, pin)


def _features(store: Any, sampler: EpochSampler, how: str, world: World, first: int, last: int) -> Iterator[Batch]:
    return feature_batches(store, sampler, first, last, how, world.rank, world.size)


def is_untrained(settings: TrainSettings) -> bool:
    """Whether the model starts from scratch (a new embedding), so that the objective sets the first temperature."""
    reference = settings.model.reference
    return reference.startswith("timm:") or not (
        "@" in reference or reference.startswith(("run:", "hf-hub:")) or Path(reference).is_dir()
    )


def build_model(settings: TrainSettings, device: torch.device) -> Model:
    """Open the model that is trained, with its trunks locked as asked."""
    chosen = settings.model
    pair = PairSettings(
        chosen.embed_dim, chosen.image_projection, chosen.text_projection, chosen.context_length, chosen.image_size
    )
    model = open_model(chosen.reference, device=device, pair=pair, seed=settings.schedule.seed)
    model.net.to(memory_format=torch.channels_last)
    return model.lock(frozenset(chosen.lock))


def build_teacher(objective: Any, encoder: Encoder) -> tuple[EmaTeacher | None, Encoder | None]:
    """The teacher that an objective asks for: its average, and the encoder that gives its embeddings."""
    if objective.needs_teacher == "ema":
        ema = EmaTeacher(encoder.module, decay=objective.ema_decay, warmup=objective.ema_warmup)
        return ema, encoder.like(ema.module)
    if objective.needs_teacher == "frozen":
        raise ModelError(
            "training cannot use a frozen teacher in this version",
            "its embeddings need pixels and tokens of its own, which the batches do not carry",
            "--set objective.teacher=ema, or another objective: softclip objectives list",
        )
    return None, None


def build_sampler(data: Any, settings: TrainSettings) -> EpochSampler:
    """Which samples a step sees: shuffled freely, or in windows where they are read best in stretches."""
    batch_size, seed = settings.data.batch_size, settings.schedule.seed
    if isinstance(data, ShardedSplit):
        return data.sampler(batch_size, seed, settings.data.shuffle_window << 20)
    return EpochSampler(len(data), batch_size, seed)


def open_corpus(settings: TrainSettings, report: Report) -> Corpus | ShardedCorpus:
    """The corpus or the shards that the settings name, or the generated corpus, made where it is not there yet."""
    if settings.data.corpus and names_shards(settings.data.corpus):
        shards = ShardedCorpus.open(
            settings.data.corpus, default_folder() / "shards", partial(_progress, report, "shards indexed")
        )
        for line in shards.notes:
            report("note", {"text": line})
        return shards
    if settings.data.corpus:
        return Corpus.open(settings.data.corpus)
    from softclip_cli.data.generated.generate import generate_corpus

    pairs, noise = settings.data.generated_pairs, settings.data.generated_noise
    out = data_root(None) / f"generated-{pairs}-{noise:g}"
    if (out / "corpus.json").is_file():
        report("note", {"text": f"corpus: {out} (generated earlier)"})
        return Corpus.open(out)
    report("note", {"text": f"corpus: generating {pairs} pairs with {noise:.0%} noise into {out}"})
    return generate_corpus(
        out, pairs=pairs, noise=noise, seed=0, progress=lambda done, total: _progress(report, "scenes", done, total)
    )


def training_split(corpus: Corpus | ShardedCorpus, settings: TrainSettings) -> Any:
    """The rows to train on.

    Raises:
        DataError: the split is missing, empty, or has images without captions.
    """
    data = corpus.split(settings.data.split)
    if len(data) == 0:
        raise DataError(f"split {settings.data.split!r} of {corpus.path} is empty", hint="prepare the corpus again")
    if settings.data.limit:
        data = data.select(range(min(settings.data.limit, len(data))))
    if isinstance(data, ShardedSplit):
        return data  # what has no caption was left out by the index
    lengths = data.with_format("arrow")["captions"][:]
    empty = sum(1 for captions in lengths if not len(captions))
    if empty:
        raise DataError(
            f"{empty:,} of {len(data):,} images in {corpus.path} have no caption",
            "training needs at least one a picture",
            'make captions from class names: softclip data prepare ... --caption-template "a photo of a {}"',
        )
    return data


def data_facts(corpus: Corpus | ShardedCorpus, settings: TrainSettings, rows: int) -> dict[str, Any]:
    """What data.json says."""
    return {
        "corpus": str(corpus.path),
        "fingerprint": corpus.fingerprint,
        "split": settings.data.split,
        "pairs": rows,
        "splits": corpus.info["splits"],
        **{key: corpus.info[key] for key in ("generator", "noise", "sources") if key in corpus.info},
    }
