"""What goes into an objective and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a batch of N pairs: row i of both belongs to pair i.

    Attributes:
        image: (N, d), float, rows L2-normalised.
        text: (N, d), float, rows L2-normalised. Of a teacher whose texts are not needed
            (`Objective.needs_teacher_text`) it may be empty, (0, d).
        logit_scale: a teacher's own logit scale, a scalar; only `objective.teacher_scale_of = "teacher"` asks for it.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | None = None


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss, a scalar with gradient, and detached scalars to log (no `.item()` was called on them).

    `alignments`, where they were asked for: (n, columns) of the pairs of this process, see `objectives.alignments`.
    """

    loss: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    alignments: Tensor | None = None
