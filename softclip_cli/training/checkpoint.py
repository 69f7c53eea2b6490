"""Checkpoints: a folder that stock open_clip loads, with the optimiser's and the loop's state beside; safetensors and JSON only.

checkpoints/step-00000500/
  model.safetensors  open_clip_config.json  (tokenizer files)     what stock open_clip reads
  ema.safetensors                                                 the averaged weights of an EMA teacher
  optimizer.safetensors  objective.safetensors                    to go on exactly
  state.json                                                      step, settings' digest, SHA-256 of every file
checkpoints/last.json  checkpoints/best.json                      {"step": 500, ...}
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from softclip_cli.data.corpus import hash_file
from softclip_cli.errors import HostError, ModelError
from softclip_cli.model import Model
from softclip_cli.training.run_folder import json_text, replace_text
from softclip_cli.training.sharding import sharded_like

NAME = re.compile(r"step-(\d{8})")


def folder_name(step: int) -> str:
    """Name of a step's checkpoint folder."""
    return f"step-{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    return sorted(int(match[1]) for path in folder.glob("step-*") if (match := NAME.fullmatch(path.name)))


def save(
    folder: Path, step: int, model: Model, files: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> Path:
    """Write one checkpoint beside its place and rename it: there is never half a checkpoint.

    Args:
        folder: the run's `checkpoints` folder.
        step: number of steps done.
        model: how `model.safetensors` is to be read: architecture, tokenizer, pixels.
        files: name without suffix → its tensors (`TrainingState.tensors`); an empty one is left out.
        facts: go into `state.json`.

    Raises:
        HostError: the disk is full or not writable; what was there before stays.
    """
    final = folder / folder_name(step)
    work = folder / f".{folder_name(step)}.{os.getpid()}.partial"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        model.save(work, final=final, state=dict(files["model"]))
        for name, content in files.items():
            if content and name != "model":
                owned = {key: value.detach().cpu().contiguous().clone() for key, value in content.items()}
                save_file(owned, work / f"{name}.safetensors")
        sums = {path.name: hash_file(path) for path in sorted(work.iterdir())}
        (work / "state.json").write_text(json_text({"step": step, **facts, "sha256": sums}), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        work.rename(final)
        replace_text(folder / "last.json", json_text({"step": step}))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise HostError(
            f"the checkpoint of step {step} could not be written to {folder}", str(error), "free some space and resume"
        ) from error
    return final


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Remember which step is the best so far."""
    replace_text(folder / "best.json", json_text({"step": step, "metric": metric, "value": value}))


def read_best(folder: Path) -> dict[str, Any]:
    """What `mark_best` wrote, or an empty dictionary."""
    try:
        return json.loads((folder / "best.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the best one."""
    best = read_best(folder).get("step")
    for step in saved_steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(folder / folder_name(step), ignore_errors=True)


def damage(folder: Path) -> str:
    """Why a checkpoint cannot be used, or an empty string: every file is compared with its recorded SHA-256."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        return f"state.json cannot be read ({type(error).__name__})"
    for name, expected in state.get("sha256", {}).items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != expected:
            return f"{name} is damaged: its checksum differs"
    return ""


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are whole, and what is wrong with newer ones."""
    problems: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = folder / folder_name(step)
        problem = damage(path)
        if not problem:
            return path, problems
        problems.append(f"{path.name}: {problem}")
    return None, problems


def read_state(folder: Path) -> dict[str, Any]:
    """The content of `state.json`."""
    return json.loads((folder / "state.json").read_text())


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint; empty where there is none."""
    path = folder / f"{name}.safetensors"
    return load_file(path) if path.is_file() else {}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors: `PLACE.NAME`, see `optimizer.build_optimizer`."""
    state, places = optimizer.state_dict()["state"], _places(optimizer)
    return {
        f"{places[index]}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
        if value is not None
    }


def _places(optimizer: torch.optim.Optimizer) -> list[int]:
    """The number in a checkpoint of each parameter, in the order of the groups."""
    return [place for group in optimizer.param_groups for place in group["places"]]


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took.

    Raises:
        ModelError: the state is of other parameters.
    """
    document = optimizer.state_dict()
    index_of = {place: index for index, place in enumerate(_places(optimizer))}
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        if int(number) not in index_of:
            raise ModelError(
                "the checkpoint's optimiser state is of another model",
                f"it has state of parameter {number}, of {len(index_of)} counted from 0",
            )
        entries.setdefault(index_of[int(number)], {})[name] = tensor
    # A fused step reads a parameter and its state in memory order, so the state must lie as the parameter does (channels_last).
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in entries.items():
        for name, tensor in values.items():
            if tensor.shape == parameters[index].shape and tensor.ndim:
                tensor = sharded_like(tensor, parameters[index])
                values[name] = torch.empty_like(parameters[index], dtype=tensor.dtype).copy_(tensor)
    document["state"] = entries
    optimizer.load_state_dict(document)
