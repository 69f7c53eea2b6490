"""The settings of a training run, section by section. The docstring under a field is its help text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from softclip_cli.config import Section
from softclip_cli.objectives.settings import ObjectiveSettings

Towers = tuple[Literal["image", "text"], ...]


def split_names(value: object) -> object:
    """Let a comma-separated string stand for a list, as on the command line."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class ModelSettings(Section):
    """Which model is trained."""

    reference: str = "tiny"
    """Model reference: tiny, an open_clip architecture, ARCH@WEIGHTS, timm:NAME+hf:NAME, a folder or run:NAME."""
    lock: Towers = ()
    """Trunks to freeze: image, text or both. Projections and the logit scale stay trainable."""
    embed_dim: int = Field(default=256, ge=2)
    """Width of the common embedding of a timm:+hf: pair."""
    image_projection: Literal["linear", "mlp"] = "mlp"
    """Projection on the image tower of a pair."""
    text_projection: Literal["linear", "mlp", "none"] = "mlp"
    """Projection on the text tower of a pair."""
    context_length: int = Field(default=77, ge=4)
    """Longest text of a pair, in tokens."""
    image_size: int = Field(default=0, ge=0)
    """Side of a pair's images in pixels; 0 takes the image tower's own."""

    _split = field_validator("lock", mode="before")(split_names)


class DataSettings(Section):
    """What it is trained on."""

    corpus: str = ""
    """Prepared corpus (softclip data prepare), or tars or Parquet files: a folder, a pattern such as shards/{000..099}.tar, an
    fsspec address; empty: the generated corpus, made if it is not there."""
    split: str = "train"
    """Split to train on."""
    limit: int = Field(default=0, ge=0)
    """Train on the first N samples only; 0: all."""
    batch_size: int = Field(default=256, ge=2)
    """Pairs a step, over all processes: the contrastive batch."""
    micro_batch: int = Field(default=0, ge=0)
    """Encode this many pairs at a time and contrast the whole batch all the same (exact); 0: all at once."""
    shuffle_window: int = Field(default=128, ge=1)
    """Megabytes of tars or Parquet that are shuffled together, of blocks from all over the data. Prepared corpora are shuffled freely."""
    captions: Literal["random", "first"] = "random"
    """Which of an image's captions a step sees."""
    augment: Literal["crop", "none"] = "crop"
    """RandomResizedCrop, or the plain evaluation view."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that a crop keeps, smallest and largest."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a horizontal flip; 0 because captions may say left and right."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that decode; unset: chosen, with the reason printed."""
    generated_pairs: int = Field(default=10_000, ge=100)
    """Pairs of the generated corpus."""
    generated_noise: float = Field(default=0.3, ge=0, le=1)
    """Share of noisy pairs in the generated corpus."""


class OptimizerSettings(Section):
    """How weights move."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW (fused) or SGD with momentum."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.2, ge=0)
    """Decoupled weight decay; never on norms, biases, tables of one dimension and the logit scale."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's β₁ and β₂."""
    eps: float = Field(default=1e-6, gt=0)
    """AdamW's ε."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0: no clipping."""


class ScheduleSettings(Section):
    """How long, and how the learning rate runs."""

    steps: int = Field(default=0, ge=0)
    """Optimiser steps; 0: as many as `epochs` says."""
    epochs: float = Field(default=8.0, gt=0)
    """Passes over the data, where `steps` is 0."""
    warmup: float = Field(default=0.1, ge=0)
    """Linear warm-up: a share of all steps below 1, else a number of steps."""
    decay: Literal["cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    final_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the cosine."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights, the order of the data, the augmentation and the random subsets."""


class CheckpointSettings(Section):
    """What is kept, and when."""

    every: int = Field(default=500, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest stay; the best one stays besides."""


class EvalSettings(Section):
    """Evaluation during training."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0: four times a run. There is always one at the end."""
    split: str = "val"
    """Split for retrieval; skipped where the corpus has none of this name."""
    limit: int = Field(default=1000, ge=2)
    """Images at most."""
    weights: Literal["student", "ema"] = "student"
    """Which weights are evaluated and saved as the model; ema needs the ema teacher."""


class LogSettings(Section):
    """What is written down."""

    every: int = Field(default=20, ge=1)
    """Steps between lines of metrics.jsonl."""


class TrainSettings(Section):
    """All settings of a run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    eval: EvalSettings = EvalSettings()
    log: LogSettings = LogSettings()
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the towers; losses and similarities are always fp32."""

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> TrainSettings:
        if self.data.micro_batch > self.data.batch_size:
            raise ValueError(
                f"data.micro_batch ({self.data.micro_batch}) is larger than data.batch_size ({self.data.batch_size})"
            )
        return self
