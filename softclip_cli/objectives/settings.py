"""The choices that make an objective: what a user may set, what each preset says, and what does not go together."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from pydantic import Field

from softclip_cli.config import Conflict, Section
from softclip_cli.errors import UsageError, nearest

Teacher = Literal["none", "self", "ema", "frozen"]
MARKS = {
    "paper": "stated in the paper",
    "code": "read in the authors' published code",
    "recon": "reconstructed: the source does not settle it",
    "ours": "our own choice",
}


class ObjectiveSettings(Section):
    """What to minimise: a preset and, where wanted, other choices than the preset's (None = as the preset says)."""

    name: str = "softclip"
    """the preset: `softclip objectives list` shows them, `softclip objectives show NAME` explains one"""
    loss: Literal["softmax", "sigmoid"] | None = None
    """softmax: cross entropy over the batch; sigmoid: every pair on its own (SigLIP)"""
    teacher: Teacher | None = None
    """who makes the soft targets: none, self (the same forward pass, detached), ema (moving average of the student),
    frozen (a checkpoint)"""
    teacher_model: str | None = None
    """the frozen teacher, as a model reference (data.teacher_features says when it is asked)"""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """decay of the moving-average teacher"""
    ema_warmup: bool | None = None
    """let the decay grow as (1+n)/(10+n) over the first n steps"""
    rule: Literal["identity", "uniform", "softmax", "sinkhorn", "cosine", "sigmoid"] | None = None
    """how a soft target row is made: identity (none), uniform (label smoothing), softmax or sinkhorn of the teacher's
    similarities, cosine ((1+similarity)/2, normalised), sigmoid (a probability for each pair; with loss = sigmoid)"""
    targets: Literal["direct", "swapped"] | None = None
    """direct: image rows take the teacher's image-to-text similarities; swapped: its text-to-image ones"""
    similarity: Literal["cross", "cross+intra", "image"] | None = None
    """what the rule is fed: the teacher's image-text similarities, these plus image-image and text-text, or image-image
    alone"""
    target_diagonal: Literal["keep", "drop"] | None = None
    """keep or drop the own pair in the soft targets"""
    intra_weight_image: float | None = Field(default=None, ge=0)
    """weight of the image-image similarities in cross+intra"""
    intra_weight_text: float | None = Field(default=None, ge=0)
    """weight of the text-text similarities in cross+intra"""
    soft_directions: Literal["both", "image-to-text"] | None = None
    """which directions get soft targets"""
    mix: Literal["blend", "subset", "two-head", "sum"] | None = None
    """blend: (1-alpha) I + alpha A; subset: a random alpha N rows take A, the rest keep I; two-head: (1-alpha) H(I) +
    alpha KL(A), the latter with a logit scale of its own; sum: H(I) + alpha H(A)"""
    partition: Literal["rows", "blocks"] | None = None
    """for mix = subset: soft rows in the one softmax over the batch, or the batch split in two sub-batches"""
    pair_weights: Literal["equal", "posterior"] | None = None
    """equal: every pair counts the same; posterior: by the probability that image and caption belong together, found from how far
    the pair stands out in the teacher's similarities"""
    alpha_start: float | None = Field(default=None, ge=0, le=1)
    """share of the soft targets when training starts"""
    alpha_end: float | None = Field(default=None, ge=0, le=1)
    """share of the soft targets in the end (for rule = uniform: the epsilon of label smoothing)"""
    alpha_schedule: Literal["constant", "linear", "cosine"] | None = None
    """how alpha moves from start to end; constant: alpha_end all the time"""
    alpha_warmup: float | None = Field(default=None, ge=0, le=1)
    """share of the training over which alpha moves"""
    teacher_scale: float | None = Field(default=None, gt=0)
    """the teacher's logit scale, as a multiple of the one in teacher_scale_of"""
    teacher_scale_of: Literal["student", "teacher"] | None = None
    """whose logit scale teacher_scale multiplies"""
    teacher_scale_fixed: float | None = Field(default=None, ge=0)
    """a fixed logit scale of the teacher, instead of a multiple; 0 = none"""
    sinkhorn_lambda: float | None = Field(default=None, gt=0)
    """entropy of the transport plan: smaller is sharper"""
    sinkhorn_iterations: int | None = Field(default=None, ge=0)
    """rounds of row and column normalisation"""
    keys: Literal["student", "teacher"] | None = None
    """whose embeddings the student's are compared with: its own or the teacher's"""
    queue_size: int | None = Field(default=None, ge=0)
    """past pairs kept as further negatives; 0 = none"""
    cyclic_intra: float | None = Field(default=None, ge=0)
    """weight of the cyclic consistency of image-image and text-text similarities"""
    cyclic_cross: float | None = Field(default=None, ge=0)
    """weight of the symmetry of the image-text similarities"""
    multi_positive: bool | None = None
    """pairs of one group (same image or same caption) in a batch share the identity target"""
    initial_logit_scale: float | None = Field(default=None, gt=0)
    """the logit scale (1/temperature) a new model starts from"""
    min_logit_scale: float | None = Field(default=None, gt=0)
    """the logit scale is kept at or above this"""
    max_logit_scale: float | None = Field(default=None, gt=0)
    """the logit scale is kept at or below this"""
    initial_soft_logit_scale: float | None = Field(default=None, gt=0)
    """where the second scale of mix = two-head starts from"""
    initial_logit_bias: float | None = None
    """where the bias of loss = sigmoid starts from"""
    tiled: Literal["auto", "always", "never"] | None = None
    """compute the loss in tiles with memory linear in the batch; auto: above a size, see `softclip train`'s log"""
    tile_rows: int | None = Field(default=None, ge=1)
    """rows of a tile; default: by the size of the batch and the device"""

    def conflicts(self) -> list[Conflict]:
        """Choices that do not go together."""
        return objective_conflicts(self)


class ResolvedObjective(Section):
    """Every choice of an objective, decided: the preset's row with the user's overrides."""

    name: str
    loss: Literal["softmax", "sigmoid"] = "softmax"
    teacher: Teacher = "none"
    teacher_model: str | None = None
    ema_decay: float = 0.999
    ema_warmup: bool = True
    rule: Literal["identity", "uniform", "softmax", "sinkhorn", "cosine", "sigmoid"] = "identity"
    targets: Literal["direct", "swapped"] = "direct"
    similarity: Literal["cross", "cross+intra", "image"] = "cross"
    target_diagonal: Literal["keep", "drop"] = "keep"
    intra_weight_image: float = 1.0
    intra_weight_text: float = 1.0
    soft_directions: Literal["both", "image-to-text"] = "both"
    mix: Literal["blend", "subset", "two-head", "sum"] = "blend"
    partition: Literal["rows", "blocks"] = "rows"
    pair_weights: Literal["equal", "posterior"] = "equal"
    alpha_start: float = 0.0
    alpha_end: float = 0.5
    alpha_schedule: Literal["constant", "linear", "cosine"] = "constant"
    alpha_warmup: float = 1.0
    teacher_scale: float = 1.0
    teacher_scale_of: Literal["student", "teacher"] = "student"
    teacher_scale_fixed: float = 0.0
    sinkhorn_lambda: float = 0.15
    sinkhorn_iterations: int = 5
    keys: Literal["student", "teacher"] = "student"
    queue_size: int = 0
    cyclic_intra: float = 0.0
    cyclic_cross: float = 0.0
    multi_positive: bool = False
    initial_logit_scale: float = 1 / 0.07
    min_logit_scale: float = 1.0
    max_logit_scale: float = 100.0
    initial_soft_logit_scale: float = 1 / 0.07
    initial_logit_bias: float = -10.0
    tiled: Literal["auto", "always", "never"] = "auto"
    tile_rows: int | None = None

    @property
    def has_soft_targets(self) -> bool:
        """Whether any row can get a target other than its own pair."""
        return self.rule != "identity"

    @property
    def directional(self) -> bool:
        """Whether the two directions have key sets of their own (a queue, or the teacher's embeddings)."""
        return self.queue_size > 0 or self.keys == "teacher"


@dataclass(frozen=True)
class Preset:
    """One row of presets.toml. `choices` maps a setting to (value, mark)."""

    name: str
    title: str
    formula: str
    when: str
    reference: str
    choices: dict[str, tuple[Any, str]]


@functools.cache
def presets() -> dict[str, Preset]:
    """The rows of presets.toml, in their order there."""
    text = resources.files("softclip_cli.objectives").joinpath("presets.toml").read_text(encoding="utf-8")
    return {
        name: Preset(
            name=name,
            title=row["title"],
            formula=row["formula"],
            when=row["when"],
            reference=row["reference"],
            choices={key: (value, mark) for key, (value, mark) in row["choices"].items()},
        )
        for name, row in tomllib.loads(text).items()
    }


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    rows = presets()
    if name not in rows:
        raise UsageError(
            f"no objective named {name!r}",
            nearest(name, rows) or "known: " + ", ".join(rows),
            "softclip objectives list",
        )
    return rows[name]


def merged(settings: ObjectiveSettings) -> ResolvedObjective:
    """The preset's row with the overrides of `settings`, unchecked; the preset must be there."""
    values = {key: value for key, (value, _) in presets()[settings.name].choices.items()}
    given = {key: value for key, value in settings.model_dump().items() if value is not None}
    if "teacher_scale" in given and "teacher_scale_fixed" not in given:
        values.pop("teacher_scale_fixed", None)
    values |= given
    return ResolvedObjective.model_validate(values)


def objective_conflicts(settings: ObjectiveSettings) -> list[Conflict]:
    """Everything in the settings that does not go together, one sentence each; empty when all is well."""
    rows = presets()
    if settings.name not in rows:
        known = nearest(settings.name, rows) or "known: " + ", ".join(rows)
        return [Conflict(("name",), f"no objective named {settings.name!r}. {known}")]
    choice = merged(settings)
    checks = [
        (
            ("rule", "teacher"),
            choice.rule in ("softmax", "sinkhorn", "cosine", "sigmoid") and choice.teacher == "none",
            f"rule = {choice.rule} needs a teacher: set teacher to self, ema or frozen",
        ),
        (
            ("teacher", "rule", "keys"),
            choice.teacher != "none"
            and choice.rule in ("identity", "uniform")
            and choice.keys == "student"
            and choice.pair_weights == "equal",
            f"teacher = {choice.teacher} has no use with rule = {choice.rule}: set rule to softmax, sinkhorn or cosine",
        ),
        (
            ("teacher", "teacher_model"),
            choice.teacher == "frozen" and not choice.teacher_model,
            "teacher = frozen needs teacher_model, a model reference such as ViT-B-32@laion2b_s34b_b79k or run:NAME",
        ),
        (
            ("teacher", "teacher_model"),
            settings.teacher_model is not None and choice.teacher != "frozen",
            f"teacher_model is given but teacher = {choice.teacher}: set teacher = frozen",
        ),
        (
            ("teacher_scale_of", "teacher", "teacher_scale_fixed"),
            choice.teacher_scale_of == "teacher"
            and choice.teacher in ("none", "self")
            and not choice.teacher_scale_fixed,
            "teacher_scale_of = teacher needs a teacher with a scale of its own (ema or frozen)",
        ),
        (
            ("pair_weights", "teacher", "similarity"),
            choice.pair_weights == "posterior" and (choice.teacher == "none" or choice.similarity == "image"),
            "pair_weights = posterior needs a teacher of images and texts (teacher = self, ema or frozen) and another"
            " similarity than image",
        ),
        (
            ("partition", "mix"),
            choice.partition == "blocks" and choice.mix != "subset",
            f"partition = blocks needs mix = subset (here {choice.mix})",
        ),
        (
            ("mix", "rule"),
            choice.mix == "two-head" and choice.rule not in ("softmax", "sinkhorn"),
            f"mix = two-head needs rule = softmax or sinkhorn (here {choice.rule})",
        ),
        (
            ("targets", "similarity"),
            choice.similarity == "image" and choice.targets == "swapped",
            "targets = swapped has no meaning with similarity = image",
        ),
        (
            ("rule", "similarity"),
            choice.rule == "cosine" and choice.similarity == "cross+intra",
            "rule = cosine needs similarity = image or cross",
        ),
        (
            ("rule", "target_diagonal"),
            choice.rule == "cosine" and choice.target_diagonal == "drop",
            "rule = cosine keeps the own pair: set target_diagonal = keep",
        ),
        (
            ("keys", "teacher"),
            choice.keys == "teacher" and choice.teacher not in ("ema", "frozen"),
            f"keys = teacher needs teacher = ema or frozen (here {choice.teacher})",
        ),
        (
            ("queue_size", "keys", "rule", "similarity", "partition", "target_diagonal"),
            choice.directional
            and (
                choice.rule not in ("softmax", "identity")
                or choice.similarity != "cross"
                or choice.partition != "rows"
                or choice.target_diagonal != "keep"
            ),
            "a queue or the teacher's keys need rule = softmax, similarity = cross, partition = rows and"
            " target_diagonal = keep",
        ),
        (
            ("loss", "rule", "queue_size", "keys"),
            choice.loss == "sigmoid" and (choice.rule not in ("identity", "sigmoid") or choice.directional),
            "loss = sigmoid has no targets whose rows sum to one, no queue and no teacher's keys: set rule to identity or sigmoid",
        ),
        (
            ("rule", "loss", "teacher", "teacher_scale_of", "targets", "similarity", "target_diagonal", "mix"),
            choice.rule == "sigmoid"
            and (
                choice.loss != "sigmoid"
                or choice.teacher not in ("self", "ema")
                or choice.teacher_scale_of != "student"
                or (choice.targets, choice.similarity, choice.target_diagonal) != ("direct", "cross", "keep")
                or choice.mix != "blend"
            ),
            "rule = sigmoid needs loss = sigmoid, teacher = self or ema (whose bias is the student's), teacher_scale_of = student,"
            " targets = direct, similarity = cross, target_diagonal = keep and mix = blend",
        ),
        (
            ("initial_logit_scale", "min_logit_scale", "max_logit_scale"),
            not choice.min_logit_scale <= choice.initial_logit_scale <= choice.max_logit_scale,
            f"initial_logit_scale = {choice.initial_logit_scale:g} lies outside"
            f" [{choice.min_logit_scale:g}, {choice.max_logit_scale:g}] (min_logit_scale, max_logit_scale)",
        ),
        (
            ("mix", "initial_soft_logit_scale", "min_logit_scale", "max_logit_scale"),
            choice.mix == "two-head"
            and not choice.min_logit_scale <= choice.initial_soft_logit_scale <= choice.max_logit_scale,
            f"initial_soft_logit_scale = {choice.initial_soft_logit_scale:g} lies outside"
            f" [{choice.min_logit_scale:g}, {choice.max_logit_scale:g}] (min_logit_scale, max_logit_scale)",
        ),
    ]
    return [Conflict(("name", *names), sentence) for names, wrong, sentence in checks if wrong]


def batch_conflicts(settings: ObjectiveSettings, batch_size: int) -> list[Conflict]:
    """What does not go together with a global batch of `batch_size` pairs."""
    if settings.name not in presets():
        return []
    queue = merged(settings).queue_size
    if not 0 < queue < batch_size:
        return []
    return [Conflict(("name", "queue_size"), f"queue_size = {queue} is smaller than a batch of {batch_size} pairs")]


def resolve(settings: ObjectiveSettings, *, batch_size: int | None = None) -> ResolvedObjective:
    """The preset's row with the overrides of `settings`.

    Args:
        settings: checked already when it was built.
        batch_size: pairs in a global batch, where known: a queue must hold at least one batch.

    Raises:
        UsageError: lists every problem at once.
    """
    found = objective_conflicts(settings)
    if batch_size is not None:
        found += batch_conflicts(settings, batch_size)
    if found:
        raise UsageError(
            f"objective {settings.name!r} cannot be used as set",
            "\n       ".join(conflict.text for conflict in found),
            f"softclip objectives show {settings.name}" if settings.name in presets() else "softclip objectives list",
        )
    return merged(settings)


def advice(choice: ResolvedObjective) -> list[str]:
    """Settings that are allowed but probably not meant, one sentence each, for a warning before training."""
    said = []
    if (
        choice.teacher == "self"
        and choice.rule in ("softmax", "sigmoid")
        and (choice.targets, choice.similarity) == ("direct", "cross")
        and choice.mix != "two-head"
        and choice.target_diagonal == "keep"
        and not choice.teacher_scale_fixed
        and choice.teacher_scale == 1
    ):
        said.append(
            "a self-teacher with direct targets at the student's own scale has exactly no gradient on its soft rows: "
            "set objective.targets = swapped or objective.teacher_scale = 2"
        )
    only_itself = (
        choice.teacher == "self" and choice.rule in ("softmax", "sigmoid") and choice.mix in ("blend", "subset")
    )
    if only_itself and choice.alpha_end == 1 and (choice.alpha_schedule == "constant" or choice.alpha_warmup < 1):
        said.append(
            "for a part of the training a self-teacher's targets are all that is learnt from, which collapses the space: "
            "set objective.alpha_end below 1, objective.alpha_warmup = 1 or objective.teacher = ema"
        )
    if choice.similarity == "cross+intra" and choice.target_diagonal == "keep" and choice.rule == "softmax":
        said.append("cross+intra similarities are highest for the own pair: the soft targets are close to hard ones")
    return said
