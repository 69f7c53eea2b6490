"""The model that a run trains, as its settings want it, and its moving average."""

from __future__ import annotations

import torch

from softclip_cli.model import Model
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.registry import PairSettings, open_model, parse_reference
from softclip_cli.training.encoder import Encoder
from softclip_cli.training.settings import TrainSettings


def is_untrained(reference: str) -> bool:
    """Whether a model starts from scratch (a new embedding), so that the objective sets the first temperature."""
    parsed = parse_reference(reference)
    return parsed.kind == "pair" or (parsed.kind == "architecture" and not parsed.weights)


def build_model(settings: TrainSettings, device: torch.device) -> Model:
    """Open the model that is trained, with its trunks locked as asked."""
    chosen = settings.model
    pair = PairSettings(
        embed_dim=chosen.embed_dim,
        image_projection=chosen.image_projection,
        text_projection=chosen.text_projection,
        context_length=chosen.context_length,
        image_size=chosen.image_size,
        image_projection_bias=chosen.image_projection_bias,
        pixel_statistics=chosen.pixel_statistics,
    )
    model = open_model(chosen.reference, device=device, pair=pair, seed=settings.schedule.seed)
    model.net.to(memory_format=torch.channels_last)
    return model.lock(frozenset(chosen.lock))


def build_average(objective: Objective, encoder: Encoder) -> EmaTeacher | None:
    """The student's moving average, where the objective asks for one."""
    if objective.needs_teacher != "ema":
        return None
    return EmaTeacher(encoder.module, decay=objective.ema_decay, warmup=objective.ema_warmup)
