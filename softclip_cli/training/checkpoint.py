"""Checkpoints: a folder that stock open_clip loads, with the optimiser's and the loop's state beside; safetensors and JSON only.

checkpoints/step-00000500/
  model.safetensors  open_clip_config.json  (tokenizer files)     what stock open_clip reads
  ema.safetensors                                                 the averaged weights of an EMA teacher
  optimizer.safetensors  objective.safetensors                    to go on exactly
  state.json                                                      step and position, SHA-256 of every file and of itself
checkpoints/last.json  checkpoints/best.json                      {"step": 500, ...}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
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
FORMAT = 1  # of the folder as a whole; raised when an older softclip could not go on from it
# What open_clip's configuration says about where weights came from, not what the network is.
NOT_ARCHITECTURE = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "timm_model_pretrained", "pretrained")


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
    with writing(folder, step):
        try:
            return _save(folder, step, model, files, facts)
        except FileNotFoundError:
            return _save(folder, step, model, files, facts)  # the folder was removed meanwhile: it is made again


@contextlib.contextmanager
def writing(folder: Path, step: int) -> Iterator[None]:
    """What the system refuses while a checkpoint is written, as an error for the user.

    Raises:
        HostError: in the place of the system's own error.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # The earlier ones are counted after the failure: they are what a run can go on from.
        whole = saved_steps(folder)
        raise HostError(
            f"the checkpoint of step {step} could not be written to {folder}",
            str(error) + (f"; the checkpoint of step {whole[-1]} is whole" if whole else ""),
            f"make room, then go on: softclip train --resume {folder.parent}"
            if whole
            else "make room and start again, or train elsewhere: --out DIR",
        ) from error


def _save(
    folder: Path, step: int, model: Model, files: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> Path:
    final = folder / folder_name(step)
    work = folder / f".{folder_name(step)}.{os.getpid()}.partial"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        model.save(work, final=final, state=dict(files["model"]))
        for name, content in files.items():
            if content and name != "model":
                owned = {key: value.detach().cpu().contiguous() for key, value in content.items()}
                save_file(owned, work / f"{name}.safetensors")
        sums = {path.name: hash_file(path) for path in sorted(work.iterdir())}
        document = {"format": FORMAT, "step": step, **facts, "sha256": sums}
        document = json.loads(json_text(document))  # as it will be read
        (work / "state.json").write_text(json_text({**document, "digest": _digest(document)}), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        work.rename(final)
        replace_text(folder / "last.json", json_text({"step": step}))
    except (OSError, SafetensorError):
        shutil.rmtree(work, ignore_errors=True)
        raise
    return final


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of what `state.json` says, whatever its spacing."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def mark_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Remember which step is the best so far."""
    replace_text(folder / "best.json", json_text({"step": step, "metric": metric, "value": value}))


def read_best(folder: Path) -> dict[str, Any]:
    """What `mark_best` wrote; an empty dictionary where it is damaged or names a checkpoint that is not there."""
    try:
        best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
        known = isinstance(best["value"], float | int) and (folder / folder_name(int(best["step"]))).is_dir()
        return best if known else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def prune(folder: Path, keep: int, last: int) -> None:
    """Remove all checkpoints up to step `last` but the newest `keep` and the best one.

    Later ones were damaged when the run was resumed from before them. They do not count, and stay until they are written anew.
    """
    best = read_best(folder).get("step")
    for step in [step for step in saved_steps(folder) if step <= last][:-keep]:
        if step != best:
            shutil.rmtree(folder / folder_name(step), ignore_errors=True)


def remove_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps than this."""
    for later in saved_steps(folder):
        if later > step:
            shutil.rmtree(folder / folder_name(later), ignore_errors=True)
    replace_text(folder / "last.json", json_text({"step": step}))


def damage(folder: Path) -> str:
    """Why a checkpoint cannot be used, or an empty string: every file is compared with its recorded SHA-256."""
    try:
        state = dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
        sums, step = dict(state["sha256"]), int(state["step"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"state.json cannot be read ({type(error).__name__})"
    digest = state.pop("digest", None)
    if digest not in (None, _digest(state)) or folder.name != folder_name(step):
        return "state.json is damaged: its checksum differs"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            found = hash_file(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != expected:
            return f"{name} is damaged: its checksum differs"
    return ""


def newest_intact(folder: Path, before: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are whole, and what is wrong with newer ones.

    Args:
        folder: the run's `checkpoints` folder.
        before: only those of earlier steps than this.
    """
    problems: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = folder / folder_name(step)
        if before is not None and step >= before:
            continue
        problem = damage(path)
        if not problem:
            return path, problems
        problems.append(f"{path.name}: {problem}")
    return None, problems


def to_resume(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that a run goes on from, and what is wrong with newer ones; None where there is none at all.

    Raises:
        ModelError: there are checkpoints, and not one is whole: starting anew must be the user's decision.
    """
    found, problems = newest_intact(folder)
    if found is None and problems:
        raise ModelError(
            f"no checkpoint in {folder} is whole",
            "; ".join(problems),
            f"restore one from a copy, or start anew: remove {folder}, or name another folder with --out",
        )
    return found, problems


def check_fits(folder: Path, model: Model) -> None:
    """Compare a checkpoint's format and architecture with what is to go on with it.

    Raises:
        ModelError: it was written by a later softclip, or is of another architecture; says both.
    """
    state = read_state(folder)
    if state.get("format", FORMAT) != FORMAT:
        raise ModelError(
            f"{folder} is a checkpoint of format {state['format']}",
            f"this softclip reads format {FORMAT}",
            "go on with the softclip that wrote it (env.json in the run folder says which)",
        )
    theirs, ours = _flat(state.get("architecture") or {}), _flat(json.loads(json.dumps(model.config, default=str)))
    different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if theirs and different:
        shown = ", ".join(f"{key} {theirs.get(key)}, not {ours.get(key)}" for key in different[:3])
        raise ModelError(
            f"{folder} is a checkpoint of {state.get('model', 'another model')}, and the run trains {model.name}",
            f"the architectures differ: {shown}" + (", …" if len(different) > 3 else ""),
            "name the same --model, or a new folder: --out runs/NAME",
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        elif key not in NOT_ARCHITECTURE and value is not None:
            found[prefix + key] = value
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """The content of `state.json`."""
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


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
