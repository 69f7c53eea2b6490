"""`--shard fsdp` beside whole copies: what each process holds of weights, gradients and optimiser state, and what a step costs.

    python benchmarks/sharding.py [--quick] [--json FILE] [--model ViT-B-32] [--batch-size 8] [--processes 2]

Both ways train the same model on random pixels and texts with `clip`, AdamW and gradient clipping, in the same processes (gloo, one thread
each), their steps taking turns. What is held is counted tensor by tensor, on the first process. `--quick`: ViT-S-32-alt, two turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from softclip_cli.config import build
from softclip_cli.data.batches import Batch
from softclip_cli.objectives.distributed import own_part
from softclip_cli.objectives.objective import build_objective
from softclip_cli.training.distributed import World
from softclip_cli.training.encoder import TowerEncoder
from softclip_cli.training.run_folder import RunFolder
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.sharding import shard
from softclip_cli.training.student import build_model
from softclip_cli.training.trainer import Trainer

WAYS = ("none", "fsdp")


def build_trainer(way: str, arguments: argparse.Namespace, world: World, folder: Path) -> Trainer:
    """A trainer without data: its step is fed by hand."""
    settings = build(
        TrainSettings,
        {"model": {"reference": arguments.model}, "objective": {"name": "clip"}, "device": "cpu", "shard": way},
        {"data": {"batch_size": arguments.batch_size * world.size}, "precision": "fp32"},
    )
    model = build_model(settings, torch.device("cpu"))
    encoder = TowerEncoder(model, torch.float32)
    objective = build_objective(settings.objective, embed_dim=model.embed_dim, batch_size=settings.data.batch_size)
    if way == "fsdp":
        shard(model, None, device=torch.device("cpu"), dtype=torch.float32)
    nothing: Any = None
    return Trainer(
        settings, RunFolder(folder), model, encoder, objective, None, None, nothing, nothing, None, 10**6, world
    )


def held(trainer: Trainer) -> dict[str, int]:
    """Bytes of this process's part of everything that does not depend on the batch."""

    def count(tensors: Any) -> int:
        return sum(own_part(t.detach()).nbytes for t in tensors)

    states = [value for state in trainer.stepper.optimizer.state.values() for value in state.values()]
    parameters = list(trainer.model.net.parameters())
    return {
        "weights": count(parameters),
        "gradients": count(p.grad for p in parameters if p.grad is not None),
        "optimiser": count(value for value in states if value.ndim),
    }


def worker(arguments: argparse.Namespace, rank: int, folder: Path) -> None:
    """One of the processes; the first writes what was found."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=arguments.processes)
    world = World(rank, arguments.processes, rank, arguments.processes)
    trainers = {way: build_trainer(way, arguments, world, folder) for way in WAYS}
    spec, count = trainers["none"].model.preprocess, arguments.batch_size
    generator = torch.Generator().manual_seed(rank)
    pixels = torch.randint(0, 256, (count, spec.size, spec.size, 3), dtype=torch.uint8, generator=generator)
    texts = trainers["none"].model.tokenize([f"a picture of {i} things on a table" for i in range(count)])
    numbers = torch.arange(count)
    batch = Batch(0, pixels, texts, numbers, numbers, torch.zeros(count, dtype=torch.int64))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(1 + arguments.turns):
        for way, trainer in trainers.items():
            dist.barrier()
            began = time.perf_counter()
            trainer.step(batch, False)
            if turn:
                seconds[way].append(time.perf_counter() - began)
    if rank == 0:
        found = {way: {**held(trainer), "seconds": seconds[way]} for way, trainer in trainers.items()}
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ViT-S-32-alt, two turns")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs a process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.model = arguments.model or ("ViT-S-32-alt" if arguments.quick else "ViT-B-32")
    arguments.turns = arguments.turns or (2 if arguments.quick else 8)
    if arguments.rank is not None:
        worker(arguments, arguments.rank, arguments.folder)
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *sys.argv, "--folder", folder]
        processes = [
            subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(arguments.processes)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"a process failed: {codes}")
        found = json.loads((Path(folder) / "found.json").read_text())
    print(f"{arguments.model}, {arguments.processes} processes, {arguments.batch_size} pairs each")
    parts = ("weights", "gradients", "optimiser")
    print(f"{'--shard':<8}" + "".join(f"{part:>12}" for part in (*parts, "together")) + f"{'seconds':>10}")
    rows = []
    for way in WAYS:
        sizes = [found[way][part] / 2**20 for part in parts]
        median = statistics.median(found[way]["seconds"])
        print(f"{way:<8}" + "".join(f"{size:>8.0f} MiB" for size in (*sizes, sum(sizes))) + f"{median:>10.2f}")
        rows.append({"shard": way, "mib": dict(zip(parts, sizes, strict=True)), "seconds": median})
    share = sum(rows[1]["mib"].values()) / sum(rows[0]["mib"].values())
    ratio = statistics.median(b / a for a, b in zip(*(found[way]["seconds"] for way in WAYS), strict=True))
    print(f"fsdp holds {share:.3f} of the memory, a step takes {ratio:.2f} of the time")
    if arguments.json:
        document = {"model": arguments.model, "rows": rows, "memory_ratio": share, "time_ratio": ratio}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
