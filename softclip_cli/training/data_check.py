"""Will the data starve the trainer? Reading, decoding and the training step, each measured alone, then together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from softclip_cli.data.batches import Batch, StepDataset, batches, choose_workers
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import Augment, ImageError, open_header
from softclip_cli.data.rates import decode_rate, loading_rate, read_rate, sample_images, shrink_gain
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.model import Model
from softclip_cli.objectives.objective import build_objective
from softclip_cli.resources import memory, usable_cores
from softclip_cli.training.data_verdict import Facts, judge
from softclip_cli.training.device import choose_device, choose_precision
from softclip_cli.training.encoder import TowerEncoder
from softclip_cli.training.run_data import training_split
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.stepper import Stepper
from softclip_cli.training.student import build_average, build_model
from softclip_cli.training.teachers import AverageTeacher

SAMPLES = 256  # images that decoding is measured on
LOADING_BATCH = 64  # small enough for several in a short measurement


def check_data(
    corpus: Corpus,
    settings: TrainSettings,
    *,
    seconds: float = 3.0,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure, and judge.

    Args:
        corpus: to train on; of `settings.data.split`.
        settings: model, batch size, crops, workers, device and precision, as training would have them.
        seconds: for each of the measurements.
        progress: told what is being measured.

    Returns:
        a JSON document: `reading`, `decoding`, `loading`, `step`, `training`, and the `verdict`.

    Raises:
        DataError: the split is missing or cannot be trained on.
    """
    progress("reading")
    raw = corpus.split(settings.data.split)
    random, sequential = (read_rate(raw, order, seconds) for order in ("random", "sequential"))
    data = training_split(corpus, settings)
    images = sample_images(data, SAMPLES)

    device = choose_device(settings.device)
    dtype, _ = choose_precision(settings.precision, device)
    progress(f"opening {settings.model.reference}")
    model = build_model(settings, device)
    spec, augment = model.preprocess, Augment(settings.data.crop_scale, flip=settings.data.flip)

    progress("decoding")
    decode = decode_rate(images, spec, augment, seconds)
    short_side = math.ceil(spec.size * 8 / 7 / 8) * 8  # 256 for 224
    speed, size = shrink_gain(images[:64], spec, augment, short_side, seconds)

    batch = min(settings.data.batch_size, len(data))
    workers, reason = choose_workers(settings.data.workers, device.type, 1, batch * spec.size**2 * 3)
    cores = usable_cores()
    loader = _dataset(data, min(LOADING_BATCH, batch), spec, augment, model.tokens)
    loading = {}
    for count in sorted({0, 1, max(1, cores // 2), cores, workers}):
        progress(f"loading with {count} process{'' if count == 1 else 'es'}")
        loading[count] = loading_rate(loader, count, seconds)

    progress(f"training steps of {batch} pairs")
    step = _stepper(settings, model, dtype)
    dataset = _dataset(data, batch, spec, augment, model.tokens)
    alone = _step_rate(step, device, dataset[0], seconds)
    progress("training with this data")
    fed = _fed_rate(step, device, dataset, workers, seconds)

    _, free = memory()
    files = sum(Path(file["filename"]).stat().st_size for file in raw.cache_files)
    facts = Facts(
        corpus=str(corpus.path),
        device=device.type,
        cores=cores,
        workers=workers,
        step=alone,
        fed=fed,
        loading=loading,
        decode=decode,
        reading=random,
        in_memory=free is None or files < 0.7 * free,
        short_side=short_side,
        shrink_speed=speed,
        shrink_bytes=size,
    )
    return {
        "corpus": str(corpus.path),
        "split": settings.data.split,
        "images": len(data),
        "bytes": files,
        "image": _typical(images),
        "model": model.name,
        "image_size": spec.size,
        "batch_size": batch,
        "device": str(device),
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        "cores": cores,
        "workers": {"count": workers, "reason": reason},
        "reading": {"random": asdict(random), "sequential": asdict(sequential)},
        "decoding": {"samples_per_second_and_core": decode},
        "loading": [{"workers": count, "samples_per_second": rate} for count, rate in loading.items()],
        "step": {"samples_per_second": alone},
        "training": {"samples_per_second": fed, "workers": workers},
        "shrinking": {"short_side": short_side, "decoding": speed, "bytes": size},
        "verdict": asdict(judge(facts)),
    }


def _dataset(data: Any, batch: int, spec: Any, augment: Augment, tokens: Any) -> StepDataset:
    # Nothing is kept: what is measured is the first epoch, which for most corpora is like the others.
    return StepDataset(data, EpochSampler(len(data), batch), spec, augment, tokens, keep_bytes=0)


def _stepper(settings: TrainSettings, model: Model, dtype: torch.dtype) -> Callable[[Batch], object]:
    """The trainer's step in the middle of a run, without what the trainer writes."""
    choice, size = settings.objective, settings.data.batch_size
    objective = build_objective(choice, embed_dim=model.embed_dim, batch_size=size).to(model.device)
    encoder = TowerEncoder(model.train(), dtype)
    ema = build_average(objective, encoder)
    teacher = AverageTeacher(encoder.like(ema.module)) if ema is not None else None
    stepper = Stepper(settings, model, encoder, objective, ema, teacher, steps=3)
    return lambda batch: stepper(1, batch, diagnostics=False)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def _step_rate(step: Callable[[Batch], object], device: torch.device, batch: Batch, seconds: float) -> float:
    """Samples a second when the batch is always there."""
    for _ in range(2):  # the first steps choose kernels and allocate
        step(batch)
    _wait(device)
    began, made = time.perf_counter(), 0
    while made < 2 or time.perf_counter() - began < seconds:
        step(batch)
        _wait(device)
        made += 1
    return made * len(batch.image) / (time.perf_counter() - began)


def _fed_rate(
    step: Callable[[Batch], object], device: torch.device, dataset: StepDataset, workers: int, seconds: float
) -> float:
    """Samples a second of training with the data, as the trainer runs: the batches that were ready at first do not count."""
    cuda, threads = device.type == "cuda", torch.get_num_threads()
    source = batches(dataset, 0, 1 << 30, workers, cuda)
    try:
        if device.type == "cpu" and workers:
            torch.set_num_threads(max(1, threads - workers))
        for _ in range(workers + 1):
            step(next(source))
        _wait(device)
        began = time.perf_counter()
        made = 0
        while made < max(2, workers) or time.perf_counter() - began < seconds:
            step(next(source))
            made += 1
        _wait(device)
        return made * dataset.sampler.batch_size / (time.perf_counter() - began)
    finally:
        source.close()  # type: ignore[attr-defined]
        torch.set_num_threads(threads)


def _typical(images: list[bytes]) -> dict[str, int]:
    """Medians of a sample: sides in pixels and bytes."""
    sizes = []
    for data in images:
        try:
            sizes.append((*open_header(data).size, len(data)))
        except ImageError:
            continue
    middles = [sorted(values)[len(values) // 2] for values in zip(*sizes, strict=True)]
    return dict(zip(("width", "height", "bytes"), middles, strict=True))
