"""Several real processes that train together over gloo, each running the `main(rank, world, folder)` of a test file."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def run_group(module: str, world: int, folder: Path, timeout: float = 240) -> None:
    """Run `module.main(rank, world, folder)` in `world` processes that share a gloo group; any failure is the caller's.

    Args:
        module: name of a module in tests/.
        world: how many processes.
        folder: where they leave what they found.
        timeout: seconds.
    """
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, __file__, module, str(world), str(folder)]
    logs = [folder / f"stderr.{rank}" for rank in range(world)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as stream:
                processes.append(subprocess.Popen([*command, str(rank)], env=environment, stderr=stream))
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(timeout) == 0, log.read_text()[-4000:]
    finally:
        for process in processes:
            process.kill()


def _worker(module: str, world: int, folder: Path, rank: int) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    importlib.import_module(module).main(rank, world, folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    _worker(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
