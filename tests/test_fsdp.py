"""`--shard fsdp`: two real processes compute what they compute unsharded, and their checkpoints are everyone's."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from model_folders import folder_with, small
from processes import gloo, together
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from softclip_cli import blocks, runs, towers
from softclip_cli.config import build
from softclip_cli.errors import UsageError
from softclip_cli.training import checkpoint
from softclip_cli.training.distributed import World
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.smoke import write_text_tower
from softclip_cli.training.start import Plan, prepare, train
from softclip_cli.training.trainer import Trainer

STEPS = 4
# Each runs in two processes, sharded and not; "model" names a folder made by `everything`.
CASES: dict[str, dict[str, Any]] = {
    "vit": {"model": "vit", "objective": {"name": "clip"}},
    "resnet with siglip's bias": {"model": "resnet", "objective": {"name": "siglip"}},
    "timm and Hugging Face, locked image": {"model": "pair", "lock": ["image"], "objective": {"name": "clip"}},
    "averaged teacher, averaged model": {
        "model": "vit",
        "objective": {"name": "psd", "teacher": "ema", "ema_decay": 0.5},
        "eval": {"weights": "ema"},
    },
    "frozen teacher, live, in micro-batches, unclipped": {
        "model": "vit",
        "objective": {"name": "psd", "teacher": "frozen", "teacher_model": "teacher"},
        "data": {"teacher_features": "live", "augment": "crop", "micro_batch": 3},
        "optimizer": {"clip_norm": 0},
    },
    "bf16": {"model": "vit", "precision": "bf16", "objective": {"name": "clip"}},
}
RESUMED = ["vit", "averaged teacher, averaged model"]


def settings(folder: Path, case: str, shard: str, steps: int = STEPS) -> TrainSettings:
    """The settings of a case; models and corpus lie in `folder`."""
    chosen = {**CASES[case]}
    name = chosen.pop("model")
    reference = f"timm:resnet10t@random+hf:{folder / 'text'}@random" if name == "pair" else str(folder / name)
    model = {"reference": reference, "lock": chosen.pop("lock", []), "image_size": 32 if name == "pair" else 0}
    objective = {**chosen.pop("objective", {"name": "psd"})}
    if "teacher_model" in objective:
        objective["teacher_model"] = str(folder / objective["teacher_model"])
    base: dict[str, Any] = {
        "data": {"corpus": (folder / "corpus").read_text(), "batch_size": 16, "workers": 0, "augment": "none"},
        "schedule": {"steps": steps, "warmup": 2},
        "log": {"every": 1},
        # Adam divides by the gradient's size: with its usual ε, what is zero but for rounding would move as much as the rest.
        "optimizer": {"eps": 1e-3},
        "eval": {"every": STEPS},
        "checkpoint": {"every": 2 if case in RESUMED else 0, "keep": 9},
        "device": "cpu",
        "precision": "fp32",
        "shard": shard,
    }
    return build(TrainSettings, base, {"model": model, "objective": objective}, chosen)


def run(folder: Path, case: str, shard: str, world: World, out: Path) -> dict[str, dict[str, Tensor]]:
    """Train, and return the whole gradient of the first and of the last step."""
    trainer = prepare(Plan(settings(folder, case, shard), out), world)
    update, first = trainer.stepper.optimizer.step, {}

    def look(*args: Any, **kwargs: Any) -> Any:
        if not first:
            first.update(gradients(trainer))
        return update(*args, **kwargs)

    trainer.stepper.optimizer.step = look  # type: ignore[method-assign]
    trainer.run()
    return {"first": first, "last": gradients(trainer)}


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The whole gradient, a copy."""
    named = [*trainer.encoder.module.named_parameters(), *trainer.objective.named_parameters(prefix="objective")]
    grads = {name: p.grad for name, p in named if p.grad is not None}
    return {name: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for name, g in grads.items()}


def main(rank: int, world: int, folder: Path) -> None:
    """One of the processes: every case sharded and not, then runs that one process has begun."""
    place = World(rank, world, rank, world)
    # Sharded blocks are called as they are; what is compared with them must be computed in the same way, or it is rounded in another.
    blocks.poolable = towers.poolable = lambda block: False  # type: ignore[assignment]
    for case in CASES:
        for shard in ("none", "fsdp"):
            found = run(folder, case, shard, place, folder / f"{case}, {shard}")
            torch.save(found, folder / f"{case}, {shard}.{rank}")
    for case in RESUMED:
        run(folder, case, "fsdp", place, folder / f"{case}, begun by one")
    if rank == 1:  # as on a machine that does not share the run folder
        checkpoint.newest_intact = lambda folder: (None, [])  # type: ignore[assignment]
    with pytest.raises(UsageError, match=f"rank 0 sees {checkpoint.folder_name(STEPS)}, rank 1 sees no checkpoint"):
        prepare(Plan(settings(folder, "vit", "none"), folder / "vit, none"), place)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, colour_corpus: Path) -> Path:
    """The folder in which two processes have trained all cases."""
    folder = tmp_path_factory.mktemp("fsdp")
    (folder / "corpus").write_text(str(colour_corpus))
    write_text_tower(folder / "text", "bert", 48, 77, ["a red picture", "something green, blue or grey"])
    for name in ("resnet", "vit"):
        config = small(name)
        config["text_cfg"]["width"] = 32  # the table of tokens is large enough
        folder_with(config, folder / name)
    folder_with(config | {"embed_dim": 24}, folder / "teacher", custom_text=True)
    for case in RESUMED:
        whole = train(Plan(settings(folder, case, "none"), folder / f"{case}, by one"))
        begun = folder / f"{case}, begun by one"
        shutil.copytree(whole, begun)
        for step in checkpoint.saved_steps(begun / "checkpoints"):
            if step > 2:
                shutil.rmtree(begun / "checkpoints" / checkpoint.folder_name(step))
    together(__file__, 2, str(folder))
    return folder


def saved(folder: Path, name: str, step: int = STEPS) -> dict[str, dict[str, Tensor]]:
    """All tensors of a run's checkpoint, file by file."""
    files = (folder / name / "checkpoints" / checkpoint.folder_name(step)).glob("*.safetensors")
    return {path.name: load_file(path) for path in files}


def lines(folder: Path, name: str, *keys: str) -> list[dict[str, float]]:
    """Some of what each line of metrics.jsonl says."""
    text = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [{key: entry[key] for key in keys if key in entry} for entry in map(json.loads, text)]


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert one[name].dtype == value.dtype
        assert one[name].shape == value.shape
        error = (one[name].double() - value.double()).norm()
        assert error <= tolerance * value.double().norm() + 1e-6, f"{name}: {error:.2g} of {value.double().norm():.2g}"


@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_sharded_is_unsharded(everything: Path, case: str) -> None:
    """Gradients on both processes, the loss and its gradient's norm on the way, evaluations, and all that is saved."""
    for rank in range(2):
        one, other = (torch.load(everything / f"{case}, {shard}.{rank}") for shard in ("fsdp", "none"))
        assert_close(one["first"], other["first"], 1e-5)
        # Batch statistics in every layer make more of a rounding difference with each step.
        assert_close(one["last"], other["last"], 1e-4 if case.startswith("resnet") else 1e-5)
    keys = ("step", "loss", "grad_norm", "logit_scale", "rsum", "replaced")
    for one, other in zip(*(lines(everything, f"{case}, {shard}", *keys) for shard in ("fsdp", "none")), strict=True):
        assert one == pytest.approx(other, rel=2e-5)
    one, other = (saved(everything, f"{case}, {shard}") for shard in ("fsdp", "none"))
    assert one.keys() == other.keys()
    for name, tensors in other.items():
        assert_close(one[name], tensors, 1e-4 if name == "optimizer.safetensors" else 1e-5)


def test_sharded_in_bfloat16(everything: Path) -> None:
    """The first step's loss and gradient norm are autocast's own; later ones differ by the rounding of sums."""
    one, other = (lines(everything, f"bf16, {shard}", "loss", "grad_norm") for shard in ("fsdp", "none"))
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    losses = [[entry["loss"] for entry in entries if "loss" in entry] for entries in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("case", RESUMED)
def test_one_process_goes_on_with_what_two_sharded_ones_saved(everything: Path, tmp_path: Path, case: str) -> None:
    """And the other way round: weights, averages and the optimiser's moments end as in a run that nobody interrupted."""
    begun = tmp_path / "begun by two"
    shutil.copytree(everything / f"{case}, fsdp", begun)
    shutil.rmtree(begun / "checkpoints" / checkpoint.folder_name(STEPS))
    train(Plan(settings(everything, case, "none"), begun))
    reference = saved(everything, f"{case}, by one")
    for found in (saved(tmp_path, "begun by two"), saved(everything, f"{case}, begun by one")):
        assert found.keys() == reference.keys()
        for name, tensors in reference.items():
            assert_close(found[name], tensors, 1e-4 if name == "optimizer.safetensors" else 1e-5)


def test_nearly_all_of_a_tower_is_in_parts(everything: Path) -> None:
    """The log says how much; stock open_clip loads what was saved."""
    log = (everything / "vit, fsdp" / "log.txt").read_text()
    note = next(line for line in log.splitlines() if "sharded over 2 processes" in line)
    parted, total = (
        int(word.replace(",", "")) for word in note.split() if word.replace(",", "").isdigit() and "," in word
    )
    assert parted > 0.95 * total
    run = runs.Run(everything / "vit, fsdp")
    net = open_clip.create_model(f"local-dir:{run.checkpoint('last')}")
    assert sum(p.numel() for p in net.parameters()) == total


def test_what_cannot_be_sharded_is_refused(colour_corpus: Path) -> None:
    for wrong in ({"model": {"lock": "image,text"}}, {"device": "mps"}, {"shard": "ddp"}):
        with pytest.raises(UsageError, match="shard"):
            build(TrainSettings, {"shard": "fsdp"}, wrong)


def test_alone_there_is_nothing_to_shard(colour_corpus: Path, tmp_path: Path) -> None:
    """A run of several processes can be gone on with by one, and the user who forgot torchrun is told."""
    said: list[str] = []
    made = build(
        TrainSettings,
        {"data": {"corpus": str(colour_corpus), "batch_size": 16, "workers": 0}, "schedule": {"steps": 1}},
        {"shard": "fsdp", "device": "cpu"},
    )
    train(Plan(made, tmp_path / "run"), lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None)
    assert any("torchrun" in line for line in said)


if __name__ == "__main__":
    place = Path(sys.argv[3])
    with gloo(int(sys.argv[1]), int(sys.argv[2]), place):
        main(int(sys.argv[1]), int(sys.argv[2]), place)
