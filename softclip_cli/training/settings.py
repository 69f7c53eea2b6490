"""The settings of a training run, section by section. The docstring under a field is its help text."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from softclip_cli.config import Conflict, Section
from softclip_cli.objectives.settings import ObjectiveSettings, batch_conflicts, merged, presets
from softclip_cli.training.limits import parse_duration

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
    image_projection_bias: bool = False
    """Whether the last layer of that projection has a bias."""
    text_projection: Literal["linear", "mlp", "none"] = "mlp"
    """Projection on the text tower of a pair."""
    context_length: int = Field(default=77, ge=4)
    """Longest text of a pair, in tokens."""
    image_size: int = Field(default=0, ge=0)
    """Side of a pair's images in pixels; 0 takes the image tower's own."""
    pixel_statistics: Literal["tower", "clip"] = "tower"
    """Mean and standard deviation that normalise a pair's pixels: the image tower's own, or CLIP's."""

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
    share: float = Field(default=1.0, gt=0, le=1)
    """Train on a random share of the samples, chosen by the seed; a smaller share's samples are among a larger one's."""
    mismatched: float = Field(default=0.0, ge=0, le=1)
    """Share of the captions that are exchanged, each for another image's, by the seed: to study noise whose truth is known."""
    drop_mismatched: bool = False
    """Leave the exchanged captions out again: what a perfect cleaning would reach."""
    batch_size: int = Field(default=256, ge=2)
    """Pairs a step, over all processes: the contrastive batch."""
    micro_batch: int = Field(default=0, ge=0)
    """Encode this many pairs at a time and contrast the whole batch all the same (exact); 0: all at once."""
    shuffle_window: int = Field(default=128, ge=1)
    """Megabytes of tars or Parquet that are shuffled together, of blocks from all over the data. Prepared corpora are shuffled freely."""
    captions: Literal["random", "first"] = "random"
    """Which of an image's captions a step sees."""
    augment: Literal["crop", "resize-crop", "none"] = "crop"
    """crop: RandomResizedCrop; resize-crop: the shorter side to `resize`, then RandomCrop; none: the evaluation view."""
    resize: int = Field(default=0, ge=0)
    """Shorter side before a resize-crop, in pixels; 0: 8/7 of the model's size (256 for 224)."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that a RandomResizedCrop keeps, smallest and largest."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a horizontal flip; 0 because captions may say left and right."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that decode; unset: chosen, with the reason printed."""
    max_replaced: float = Field(default=0.05, ge=0, le=1)
    """Largest share of the images seen that may be damaged (and are replaced); the run ends above it. The first ten never end it."""
    teacher_features: Literal["auto", "stored", "live"] = "auto"
    """A frozen teacher's embeddings. stored: of every image (in the evaluation view) and caption, once, before training;
    live: in each step, of the student's very views; auto: chosen, with the reason printed."""
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
    max_skipped: int = Field(default=10, ge=1)
    """Batches in a row whose loss or gradient is no number (each is skipped), after which the run goes back to a checkpoint."""


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
    max_time: str = ""
    """Save and end after so long, counted from the start of the command: 30m, 2h, 90s, 1:30:00; empty: no limit."""

    @field_validator("max_time")
    @classmethod
    def _is_duration(cls, value: str) -> str:
        if value:
            parse_duration(value)
        return value

    def total(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))


class CheckpointSettings(Section):
    """What is kept, and when."""

    every: int = Field(default=500, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest stay; the best one stays besides."""
    max_rollbacks: int = Field(default=2, ge=0)
    """Times that a run goes back to the same checkpoint before it ends as failed; see optimizer.max_skipped."""


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

    def interval(self, steps: int) -> int:
        """Steps between evaluations of a run of so many."""
        return self.every or max(1, math.ceil(steps / 4))


class LogSettings(Section):
    """What is written down."""

    every: int = Field(default=20, ge=1)
    """Steps between lines of metrics.jsonl."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Who else gets the metrics: tensorboard (event files in the run folder), wandb (offline unless WANDB_MODE says otherwise); extras."""

    alignments: bool = False
    """Keep what each step says of each of its pairs, for softclip audit: 18 bytes a pair and epoch, in alignments/ of the run folder."""

    _split = field_validator("loggers", mode="before")(split_names)


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
    shard: Literal["none", "fsdp"] = "none"
    """fsdp: weights, gradients and optimiser state of the towers' blocks lie in parts on all processes, for towers that do not fit one."""
    compile: Literal["auto", "never", "always"] = "auto"
    """torch.compile of the towers; auto: on CUDA, with the reason printed."""

    def conflicts(self) -> list[Conflict]:
        """What does not go together across sections."""
        data = self.data
        found = [
            Conflict(
                (*(f"objective.{name}" for name in conflict.names), "data.batch_size"), f"objective.{conflict.text}"
            )
            for conflict in batch_conflicts(self.objective, data.batch_size)
        ]
        if data.micro_batch > data.batch_size:
            found.append(
                Conflict(
                    ("data.micro_batch", "data.batch_size"),
                    f"data.micro_batch ({data.micro_batch}) is larger than data.batch_size ({data.batch_size})",
                )
            )
        if self.shard == "fsdp" and set(self.model.lock) == {"image", "text"}:
            found.append(
                Conflict(
                    ("shard", "model.lock"),
                    "shard = fsdp shards the blocks of towers that train, but with model.lock = image,text only the projections do, "
                    "on stored features: set shard = none",
                )
            )
        if self.shard == "fsdp" and self.device == "mps":
            found.append(
                Conflict(("shard", "device"), "shard = fsdp needs several devices, and a Mac has one: set shard = none")
            )
        if self.objective.name not in presets():
            return found
        teacher = merged(self.objective).teacher
        whose = ("objective.name", "objective.teacher")
        if self.eval.weights == "ema" and teacher != "ema":
            found.append(
                Conflict(
                    ("eval.weights", *whose),
                    f"eval.weights = ema asks for averaged weights, but the teacher of objective {self.objective.name} is "
                    f"{teacher}: set objective.teacher = ema, or eval.weights = student",
                )
            )
        if data.teacher_features != "auto" and teacher != "frozen":
            found.append(
                Conflict(
                    ("data.teacher_features", *whose),
                    f"data.teacher_features = {data.teacher_features} is of a frozen teacher, but the teacher of objective "
                    f"{self.objective.name} is {teacher}",
                )
            )
        elif data.teacher_features == "live" and set(self.model.lock) == {"image", "text"}:
            found.append(
                Conflict(
                    ("data.teacher_features", "model.lock", *whose),
                    "data.teacher_features = live needs pixels, but with model.lock = image,text the projections train on "
                    "stored features: set data.teacher_features = stored",
                )
            )
        return found
