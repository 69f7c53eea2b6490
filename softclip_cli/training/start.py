"""Putting a run together: every choice made and every mistake found before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from softclip_cli import runs
from softclip_cli.data.batches import Batch, StepDataset, batches, choose_workers
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.data.text import COMPILED_STEP, LENGTH_STEP
from softclip_cli.errors import UsageError
from softclip_cli.evaluation.spread import Spread
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.settings import advice, resolve
from softclip_cli.training import checkpoint
from softclip_cli.training.device import choose_compile, choose_device, choose_precision
from softclip_cli.training.distributed import World, first_ahead, from_all, from_first, joined
from softclip_cli.training.encoder import Encoder, ProjectionEncoder, Projections, TowerEncoder
from softclip_cli.training.features import default_options, feature_batches, trunk_features
from softclip_cli.training.frozen_teacher import FrozenTeacher, open_teacher, prepare_teacher
from softclip_cli.training.heartbeat import End, watching
from softclip_cli.training.limits import TimeLimit
from softclip_cli.training.loggers import check_installed, logged
from softclip_cli.training.prefetch import ahead
from softclip_cli.training.profile import StepProfiler, check_length
from softclip_cli.training.run_data import (
    alteration,
    altered,
    build_sampler,
    data_facts,
    open_corpus,
    show_progress,
    training_split,
    training_view,
)
from softclip_cli.training.run_folder import RunFolder, check_run_path, environment, new_run_path
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.sharding import shard
from softclip_cli.training.student import build_average, build_model, is_untrained
from softclip_cli.training.teachers import AverageTeacher, Teacher
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
        keep_features: keep what frozen trunks and teachers give in the cache, for the next run over the same data.
        end: ends the whole process with an error, where its main thread waits for another process that is gone.
        profile: steps to time part by part, early in the run; 0: none.
    """

    settings: TrainSettings
    out: Path | None = None
    resume: str = "auto"
    command: tuple[str, ...] = ()
    keep_features: bool = True
    end: End | None = None
    profile: int = 0


def train(plan: Plan, report: Report = unheard) -> Path:
    """Train, and return the run folder.

    Args:
        plan: settings and place.
        report: told of what happens: kinds "note", "warning", "progress", "start", "metrics", "evaluation", "checkpoint",
            "profile", "end".

    Raises:
        UsageError, DataError, ModelError, HostError: something does not fit; nothing was started.
        TrainingError: training failed, or another process is missing.
        Interrupted: asked to stop; everything is saved.
    """
    with joined(plan.settings.device) as world, watching(world, plan.end) as heartbeat, heartbeat.explained():
        trainer = prepare(plan, world, report if world.first else unheard, partial(_of_rank, report, world))
        trainer.heartbeat = heartbeat
        trainer.run()
        return trainer.folder.path


def prepare(plan: Plan, world: World, report: Report = unheard, of_rank: Report = unheard) -> Trainer:
    """Open corpus and model, choose device, precision and workers, and find the checkpoint to go on with.

    Args:
        report: told of what concerns the run; on the first process alone.
        of_rank: told of what concerns this process alone, whichever it is.
    """
    settings = plan.settings
    time_limit = TimeLimit(settings.schedule.max_time)
    # Named after the time, which differs between processes.
    path = from_first(plan.out or new_run_path(runs.runs_dir(), settings.objective.name), world)
    check_run_path(path)
    folder = RunFolder(path)
    check_installed(settings.log.loggers)
    if world.first:
        report = folder.logged(report)
        report = logged(report, settings.log.loggers, path, settings.model_dump(mode="json"))
    if checkpoint.saved_steps(path / "checkpoints") and plan.resume == "never":
        raise UsageError(
            f"{path} already holds a run", "--resume never was given", "name a new folder: --out runs/NAME"
        )
    found, problems = checkpoint.to_resume(path / "checkpoints")

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
    sharded = settings.shard == "fsdp" and world.size > 1
    if settings.shard != "none" and not sharded:
        report(
            "warning", {"text": "shard = fsdp does nothing in one process: torchrun --nproc-per-node N starts several"}
        )
    # Before the corpus, which may have to be drawn first: a wrong name is no wait. What is to be sharded need not fit the device.
    model = build_model(settings, torch.device("cpu") if sharded else device)
    with first_ahead(world):
        corpus = open_corpus(settings, report)
    whole = training_split(corpus, settings)
    change = alteration(whole, settings)
    data = altered(whole, change)
    sampler = build_sampler(data, settings)
    steps = settings.schedule.total(sampler.steps_per_epoch)
    if plan.profile:
        check_length(plan.profile, steps - (int(checkpoint.read_state(found)["step"]) if found else 0))

    for line in model.notes:
        report("note", {"text": line})
    frozen = model.locked == {"image", "text"}
    if frozen and precision == "bf16" and settings.precision == "auto":
        dtype, precision, why = torch.float32, "fp32", "only the projections train, on stored features"
    report("note", {"text": f"device {device}, precision {precision}: {why}"})
    if frozen and settings.data.augment != "none":
        report("note", {"text": "both trunks are frozen: their features are computed once, without augmentation"})

    choice, guide = resolve(settings.objective, batch_size=settings.data.batch_size), None
    if choice.teacher == "frozen":
        guide = open_teacher(str(choice.teacher_model), device=device, seed=settings.schedule.seed)
        for line in guide.notes:
            report("note", {"text": f"teacher: {line}"})
    objective = Objective(choice, embed_dim=model.embed_dim, teacher_dim=guide.embed_dim if guide else None).to(device)
    for line in advice(objective.choice):
        report("note", {"text": line})
    report("note", {"text": f"loss: {objective.tiling_reason(settings.data.batch_size // world.size, device=device)}"})
    with torch.no_grad():
        if is_untrained(settings.model.reference):
            model.net.logit_scale.fill_(torch.tensor(objective.initial_logit_scale).log())
    encoder: Encoder
    if frozen:
        encoder = ProjectionEncoder(Projections(model))
    else:
        compiled, why = choose_compile(settings.compile, device, sharded)
        report("note", {"text": f"towers {'compiled' if compiled else 'not compiled'}: {why}"})
        encoder = TowerEncoder(model, dtype, compiled)
        model.tokens.step = COMPILED_STEP if compiled else LENGTH_STEP
    facts = data_facts(corpus, settings, len(data))
    ema = build_average(objective, encoder)
    if sharded:
        parted = shard(model, ema, device=device, dtype=dtype)
        report("note", {"text": f"sharded over {world.size} processes: {parted}"})
    teacher: Teacher | None = AverageTeacher(encoder.like(ema.module)) if ema is not None else None
    teacher_tokens = None
    if guide is not None:
        prepared = prepare_teacher(
            FrozenTeacher(guide, objective.needs_teacher_text),
            settings,
            corpus,
            whole,
            change=change,
            student=model,
            steps=steps,
            dtype=dtype,
            world=world,
            before=(runs.Run(path).data.get("teacher") or {}) if found else {},
            keep_features=plan.keep_features,
            report=report,
        )
        teacher, teacher_tokens, facts["teacher"] = prepared.teacher, prepared.tokens, prepared.record

    split, options = settings.data.split, default_options(None, settings.data.workers, "fp32", cache=plan.keep_features)
    if frozen:
        progress = partial(show_progress, report)
        with first_ahead(world):
            store = trunk_features(model, corpus, split, whole, options=options, progress=progress).altered(change)
        source = partial(_features, store, sampler, settings.data.captions, world)
    else:
        augment = training_view(settings.data, model.preprocess)
        dataset = StepDataset(
            data,
            sampler,
            model.preprocess,
            augment,
            model.tokens,
            settings.data.captions,
            world.rank,
            world.size,
            teacher_tokens,
        )
        batch_bytes = sampler.batch_size // world.size * model.preprocess.size**2 * 3
        workers, reason = choose_workers(settings.data.workers, device.type, world.local_size, batch_bytes)
        report("note", {"text": f"{workers} decoding process{'' if workers == 1 else 'es'}: {reason}"})
        if device.type == "cpu" and workers and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() - workers))
        warn = partial(_warning, report if world.first else of_rank)
        source = partial(_batches, dataset, workers, device, warn)
    spread = Spread(world.rank, world.size, world.local_size, device if device.type == "cuda" else torch.device("cpu"))
    validator = Validator.open(
        model,
        corpus,
        settings.eval.split,
        settings.eval.limit,
        replace(options, spread=spread),
        frozen,
        precision,
        partial(show_progress, report),
    )
    if validator is None:
        report("note", {"text": f"no evaluation during training: the corpus has no split {settings.eval.split!r}"})

    trainer = Trainer(
        settings,
        folder,
        model,
        encoder,
        objective,
        ema,
        teacher,
        sampler,
        source,
        validator,
        steps,
        world,
        report,
        time_limit,
    )
    if world.first:
        folder.create(settings, environment(str(device), precision, world.size, list(plan.command)), facts)
        checkpoint.remove_unfinished(path / "checkpoints")
    for problem in problems:
        report("warning", {"text": f"checkpoint {problem}; taking an earlier one"})
    check_same_checkpoint(found, path, world)
    if found is not None:
        trainer.resume(found)
        report("note", {"text": f"resuming {path} at step {trainer.first_step} of {steps}"})
    elif world.first:
        folder.truncate_metrics(0)  # of a run that was killed before its first checkpoint
    if plan.profile and world.first:
        trainer.profiler = StepProfiler(plan.profile, path, device, report)
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
            "trainable": sum(p.numel() for p in trainer.stepper.trainable),
        },
    )
    return trainer


def check_same_checkpoint(found: Path | None, folder: Path, world: World) -> None:
    """See that all processes go on from the same step.

    Raises:
        UsageError: they do not; on every process.
    """
    names = from_all(found.name if found else "no checkpoint", world)
    other = next((rank for rank, name in enumerate(names) if name != names[0]), None)
    if other is not None:
        raise UsageError(
            f"the processes do not see the same checkpoints in {folder}",
            f"rank 0 sees {names[0]}, rank {other} sees {names[other]}",
            "put the run folder on a file system that all machines share: --out DIR",
        )


def _warning(report: Report, text: str) -> None:
    report("warning", {"text": text})


def _of_rank(report: Report, world: World, kind: str, facts: dict[str, Any]) -> None:
    report(kind, {**facts, "text": f"rank {world.rank}: {facts['text']}", "rank": world.rank})


def _batches(
    dataset: StepDataset,
    workers: int,
    device: torch.device,
    warn: Callable[[str], None],
    first: int,
    last: int,
) -> Iterator[Batch]:
    return ahead(batches(dataset, first, last, workers, device.type == "cuda", warn), device)


def _features(store: Any, sampler: EpochSampler, how: str, world: World, first: int, last: int) -> Iterator[Batch]:
    return feature_batches(store, sampler, first, last, how, world.rank, world.size)
