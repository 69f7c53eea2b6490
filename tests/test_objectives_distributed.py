"""Several processes give the single-process gradient: real gloo groups, DistributedDataParallel's own averaging."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import gloo, together
from test_objectives_reference import make_settings
from torch import Tensor, nn
from torch.nn import functional

from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.objective import build_objective
from softclip_cli.objectives.settings import presets

PAIRS, INPUT, WIDTH, STEPS = 24, 10, 8, 2
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in presets()} | {
    "psd in blocks": ("psd", {"partition": "blocks"}),
    "psd in blocks, tiled": ("psd", {"partition": "blocks", "tiled": "always", "tile_rows": 5}),
    "psd swapped": ("psd", {"targets": "swapped"}),
    "psd swapped, ema": ("psd", {"targets": "swapped", "teacher": "ema"}),
    "psd sinkhorn in blocks": ("psd", {"partition": "blocks", "rule": "sinkhorn", "mix": "subset"}),
    "otter, tiled": ("otter", {"tiled": "always", "tile_rows": 5}),
    "ema-kd with groups": ("ema-kd", {"multi_positive": True}),
    "siglip with groups": ("siglip", {"multi_positive": True}),
    "queue of the student's": ("psd", {"queue_size": 30, "multi_positive": True}),
    "large scale": ("psd", {"teacher_scale": 7.0}),
    "weighed pairs": ("softclip", {"teacher": "self", "mix": "subset"}),
}


class TwoTowers(nn.Module):
    """As little as makes embeddings: a linear map for each side, and a logit scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text = nn.Linear(INPUT, WIDTH), nn.Linear(INPUT, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised embeddings and k."""
        return (
            functional.normalize(self.image(image), dim=1),
            functional.normalize(self.text(text), dim=1),
            self.log_scale.exp(),
        )


def measure(case: str, rank: int, world: int) -> dict[str, Tensor]:
    """Loss, diagnostics and gradients after two steps (so that a queue is in use), as rank `rank` sees them."""
    name, choices = CASES[case]
    objective = build_objective(make_settings(name, **choices), embed_dim=WIDTH)
    if objective.pair_weights is not None:  # as if many batches had been seen
        objective.pair_weights.moments.copy_(torch.tensor([0.16, 1.3, 3.0, 0.48, 0.05, 0.95, 50.0]))
    model: nn.Module = TwoTowers()
    if world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    generator = torch.Generator().manual_seed(9)
    own = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        inputs = torch.randn(4, PAIRS, INPUT, generator=generator)
        groups = torch.randint(0, 15, (PAIRS,), generator=generator)
        taught = [functional.normalize(side[:, :WIDTH], dim=1)[own] for side in inputs[2:]]
        model.zero_grad()
        objective.zero_grad()
        image, text, scale = model(inputs[0][own], inputs[1][own])
        output = objective(
            Embeddings(image, text),
            Embeddings(*taught, torch.tensor(20.0)) if objective.needs_teacher in ("ema", "frozen") else None,
            scale,
            0.45,
            step=step,
            seed=1,
            groups=groups[own],
        )
        output.loss.backward()
        found[f"loss {step}"] = output.loss.detach()
    found |= {f"diagnostic {key}": value for key, value in output.diagnostics.items()}
    for kind, module in (("model", model.module if world > 1 else model), ("objective", objective)):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None
            found[f"{kind} {key}"] = parameter.grad.clone()
    for key, value in objective.named_buffers():
        found[f"buffer {key}"] = value.float().clone()
    return found


def worker(rank: int, world: int, folder: Path) -> None:
    """One process of a group: measure every case, save what was found."""
    with gloo(rank, world, folder):
        torch.save({case: measure(case, rank, world) for case in CASES}, folder / f"found.{rank}")


@pytest.fixture(scope="module", params=[2, 4])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, Tensor]]]:
    """What each process of a group measured, for all cases in one start."""
    world, folder = request.param, tmp_path_factory.mktemp("group")
    together(__file__, world, str(folder))
    return [torch.load(folder / f"found.{rank}") for rank in range(world)]


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_the_single_process_gradient(found: list[dict[str, dict[str, Tensor]]], case: str) -> None:
    """Gradient, loss, queue and diagnostics are those of one process with the whole batch, on every process."""
    alone = measure(case, 0, 1)
    for one in found:
        assert one[case].keys() == alone.keys()
        for key, value in alone.items():
            error = (one[case][key] - value).norm()
            assert error <= 1e-5 * value.norm() + 1e-7, f"{key}: {error:.2g} of {value.norm():.2g}"


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
