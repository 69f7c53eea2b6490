"""One optimiser step's forward and backward pass, whole or in micro-batches with the whole batch's contrast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softclip_cli.data.batches import Batch
from softclip_cli.objectives.embeddings import Embeddings, ObjectiveOutput
from softclip_cli.objectives.objective import Objective
from softclip_cli.training.encoder import Encoder
from softclip_cli.training.phases import BACKWARD, LOSS, TEACHER, TO_DEVICE, phase
from softclip_cli.training.teachers import Teacher


@dataclass
class StepContext:
    """What an objective needs to know besides the embeddings.

    Attributes:
        step: counted from 0.
        progress: share of the run that is done, in [0, 1].
        seed: of the run.
        rank: of this process.
        diagnostics: whether to compute them.
        micro_batch: pairs encoded at a time; 0: all at once.
        alignments: whether to say something of each pair.
    """

    step: int
    progress: float
    seed: int
    rank: int = 0
    diagnostics: bool = False
    micro_batch: int = 0
    alignments: bool = False


def step_seed(context: StepContext, chunk: int) -> int:
    """Seed of one chunk's randomness (dropout, patch dropout): a function of the run's seed and the place, so it can be replayed."""
    return int(
        np.random.SeedSequence([context.seed, 2, context.step, context.rank, chunk]).generate_state(1, np.uint64)[0]
        >> 1
    )


def forward_backward(
    encoder: Encoder, objective: Objective, batch: Batch, context: StepContext, teacher: Teacher | None = None
) -> ObjectiveOutput:
    """Compute the loss of a batch and add its gradient to the parameters.

    With `micro_batch` the towers see a few pairs at a time: a first pass without gradient collects all embeddings, the loss gives its
    gradient with respect to them, and a second pass carries that back through the towers, with the same random numbers as the first
    (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"). The gradient is that of the whole batch.
    Batch normalisation sees micro-batches and so is the one thing that differs.
    """
    size = context.micro_batch
    with phase(TO_DEVICE):
        batch = batch.to(encoder.logit_scale.device)
    image, text = batch.image, batch.text
    chunks = [slice(i, i + size) for i in range(0, len(image), size)] if size and size < len(image) else [slice(None)]

    def encode(chunk: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(step_seed(context, chunk))
        return encoder(image[chunks[chunk]], text[chunks[chunk]])

    whole = len(chunks) == 1
    if whole:
        v, t = encode(0)
    else:
        with torch.no_grad():
            parts = [encode(i) for i in range(len(chunks))]
        v, t = (torch.cat(side).requires_grad_() for side in zip(*parts, strict=True))
    taught = None
    if teacher is not None:
        with phase(TEACHER), torch.no_grad():
            seen = [teacher(batch, chunk) for chunk in chunks]
        seen_image, seen_text = (torch.cat(side) for side in zip(*seen, strict=True))
        taught = Embeddings(seen_image, seen_text, teacher.logit_scale.detach())
    with phase(LOSS):
        output = objective(
            Embeddings(v, t),
            taught,
            encoder.logit_scale,
            context.progress,
            step=context.step,
            seed=context.seed,
            groups=batch.group,
            diagnostics=context.diagnostics,
            alignments=context.alignments,
        )
    with phase(BACKWARD):
        output.loss.backward()
    if not whole:
        assert v.grad is not None and t.grad is not None
        for i, chunk in enumerate(chunks):
            again = encode(i)
            with phase(BACKWARD):
                torch.autograd.backward(again, (v.grad[chunk], t.grad[chunk]))
    return output
