"""Processes for tests: groups of a script, one for each rank, and whole commands that start fast and may be killed.

A command is `softclip ...` as the shell runs it, in a process of its own with its own output: forked from one that has imported
everything, which takes a hundredth of a second instead of six. `python processes.py` is that one: a job a line on stdin, an answer
a line on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
QUIET = {"OMP_NUM_THREADS": "1"}


def together(script: str, world: int, *arguments: str, seconds: float = 240) -> None:
    """Run a test file as `script RANK WORLD ARGUMENTS...`, once for each rank, and see each end well."""
    environment = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=seconds)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


@contextmanager
def gloo(rank: int, world: int, folder: Path) -> Iterator[None]:
    """In a script that `together` runs: the gloo group of its processes, who meet in a folder."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    yield
    dist.destroy_process_group()


def wait_until(condition: Callable[[], Any], seconds: float, said: Callable[[], str]) -> None:
    """Wait for something that other processes do, who said the things that a failure shows."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{said()}"
        time.sleep(0.01)


def steps_done(run: Path) -> int:
    """The last step that metrics.jsonl holds."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, json.JSONDecodeError):
        return 0


class Command:
    """One running command.

    Attributes:
        pid: of its process.
        log: file with what it said.
    """

    def __init__(self, server: CommandServer, pid: int, log: Path) -> None:
        self.server, self.pid, self.log = server, pid, log
        self.status: int | None = None

    @property
    def said(self) -> str:
        return self.log.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        if self.status is None:
            self.status = self.server.ask({"poll": self.pid})
        return self.status is not None

    def wait(self, seconds: float = 90) -> int:
        """Its exit status, negative for a signal."""
        wait_until(self.ended, seconds, lambda: self.said)
        assert self.status is not None
        return self.status

    def wait_for_step(self, run: Path, step: int) -> None:
        """Wait until a run has written the metrics of a step."""
        wait_until(lambda: steps_done(run) >= step or self.ended(), 90, lambda: self.said)
        assert steps_done(run) >= step, self.said


class CommandServer:
    """Starts commands.

    Args:
        folder: where their output goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, []  # type: ignore[var-annotated]
        environment = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, job: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments: object, setup: str = "", **environment: object) -> Command:
        """Start `softclip ARGUMENTS...`.

        Args:
            setup: Python that the process executes first, to do harm at a certain place.
        """
        log = self.folder / f"{len(self.commands)}.log"
        log.touch()
        places = {name: value for name, value in os.environ.items() if name.startswith(("SOFTCLIP_", "XDG_"))}
        variables = places | {name: str(value) for name, value in environment.items()}
        job = {"start": [str(a) for a in arguments], "environment": variables, "log": str(log), "setup": setup}
        command = Command(self, self.ask(job), log)
        self.commands.append(command)
        return command

    def start_ranks(self, world: int, *arguments: object, setup: str = "", **environment: object) -> list[Command]:
        """Start a command on several ranks, as `torchrun` would; `setup` may read the environment's RANK."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(*arguments, setup=setup, RANK=rank, LOCAL_RANK=rank, **common, **environment)
            for rank in range(world)
        ]

    def close(self) -> None:
        """Leave nothing running."""
        for command in self.commands:
            if not command.ended():
                command.kill()
        self.process.kill()
        self.process.communicate()


@contextmanager
def serving(folder: Path) -> Iterator[CommandServer]:
    """A server of commands while inside."""
    server = CommandServer(folder)
    try:
        yield server
    finally:
        server.close()


def child(job: dict[str, Any]) -> None:
    """The command itself."""
    os.environ.update(job["environment"])
    with Path(job["log"]).open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["softclip", *job["start"]]
    status: Any = 0
    try:
        exec(job["setup"], {})
        from softclip_cli.app import main

        main()
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(status)


def serve() -> None:
    """Start a process for each job, and say when it ended."""
    # All that training imports, before the forks.
    import datasets  # noqa: F401

    import softclip_cli.app
    import softclip_cli.commands.train
    import softclip_cli.evaluation.retrieval
    import softclip_cli.reports.model_card
    import softclip_cli.training.start  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        if "poll" in job:
            pid, status = os.waitpid(job["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return child(job)
        print(json.dumps(answer), flush=True)
    return None


if __name__ == "__main__":
    serve()
