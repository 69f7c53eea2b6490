"""What a run must remember to go on exactly: weights, their averages, the optimiser's and the objective's state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softclip_cli.errors import ModelError
from softclip_cli.model import Model
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.training import checkpoint
from softclip_cli.training.sharding import all_sharded_like, whole


@dataclass
class TrainingState:
    """Everything that moves while training, apart from the position in the data, which is a number.

    Attributes:
        model: that is trained.
        module: the part of it whose moving average is kept: the network, or its projections.
        objective: with its own parameters, scales and queue.
        optimizer: of both.
        ema: the moving average of `module`, or None.
        averaged_model: the averaged weights are what is saved as the model; the student's own lie beside them.
        keep: whether `tensors` returns anything; another process of a sharded model only gives its parts.
    """

    model: Model
    module: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    ema: EmaTeacher | None = None
    averaged_model: bool = False
    keep: bool = True

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint: name without suffix → its tensors. `model` is what other programs load.

        They are the live ones, and files may share them: copy them before the next step. Where the model is sharded, every process must
        call it.
        """
        student = whole(self.model.net.state_dict(), self.keep)
        files: dict[str, dict[str, Any]] = {
            "model": student,
            "optimizer": whole(checkpoint.optimizer_tensors(self.optimizer), self.keep),
            "objective": self.objective.state_dict(),
        }
        if self.ema is not None:
            files["ema_state"] = whole(self.ema.state_dict(), self.keep)
            counterparts, own = self.ema.counterparts(self.module), self.model.net.state_dict(keep_vars=True)
            averaged = {name: counterparts.get(id(tensor), tensor).detach() for name, tensor in own.items()}
            files["ema"] = whole(averaged, self.keep)
            if self.averaged_model:
                files["model"], files["student"] = files["ema"], student
        return files

    def load(self, path: Path) -> None:
        """Take up what a checkpoint holds.

        Raises:
            ModelError: it is of another model, objective or optimiser.
        """
        weights = checkpoint.read_tensors(path, "student") or checkpoint.read_tensors(path, "model")
        try:
            self.model.net.load_state_dict(all_sharded_like(weights, self.model.net.state_dict()))
            if self.ema is not None:
                averaged = checkpoint.read_tensors(path, "ema_state")
                self.ema.load_state_dict(all_sharded_like(averaged, self.ema.state_dict()))
            self.objective.load_state_dict(checkpoint.read_tensors(path, "objective"))
        except RuntimeError as error:
            raise ModelError(
                f"{path} does not fit the model or objective of this run",
                str(error).splitlines()[-1].strip()[:200],
                "resume with the settings that the run was started with",
            ) from None
        checkpoint.load_optimizer(self.optimizer, checkpoint.read_tensors(path, "optimizer"))
