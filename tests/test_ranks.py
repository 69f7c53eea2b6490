"""Several processes: the samples do not depend on how many there are, and none can leave the others waiting for ever."""

from __future__ import annotations

import random
import re
import signal
import socket
from pathlib import Path

import pytest
from model_folders import folder_with, minute
from processes import Command, CommandServer, steps_done, wait_until

from softclip_cli import runs
from softclip_cli.training import checkpoint

LIMIT = 10  # seconds, instead of ten minutes
BOUND = 60  # seconds within which all is over, on a machine that does many other things
LONG = 100_000  # steps: more than there is time for

# Notes the rows of each step, and makes a process hang in one if told to.
HOOKED = """
import os, time
from softclip_cli.data.batches import StepDataset
make, rank = StepDataset.__getitem__, os.environ.get("RANK", "0")

def hooked(dataset, step):
    batch = make(dataset, step)
    if "ROWS" in os.environ:
        with open(os.environ["ROWS"], "a") as stream:
            stream.write(f"{step} {rank} {','.join(map(str, batch.index.tolist()))}\\n")
    while os.environ.get("HANG") == f"{rank} {step}":
        time.sleep(0.1)
    return batch

StepDataset.__getitem__ = hooked
"""

# What torchrun does, without the seconds that its processes take to import everything.
AGENT = """
import signal
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def deadly(dataset, step):
    if (os.environ["RANK"], step, os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", 10, "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    return make(dataset, step)

def work():
    from softclip_cli.app import main
    try:
        main()
    except SystemExit as ended:
        assert not ended.code

StepDataset.__getitem__ = deadly
agent = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 1, "monitor_interval": 0.1}
elastic_launch(LaunchConfig(1, 1, 2, run_id="run", start_method="fork", **agent), work)()
raise SystemExit(0)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without batch normalisation, whose statistics are of a process's own share, and without dropout."""
    return folder_with(minute(), tmp_path_factory.mktemp("models") / "model")


def command(corpus: Path, model: Path, out: Path, steps: int, *more: object) -> list[object]:
    assignments = ("log.every=1", f"eval.every={LONG}", "checkpoint.every=4")
    options = ["train", "--data", corpus, "--model", model, "--out", out, "--steps", steps, "--batch-size", 16]
    options += ["--workers", 0, "--device", "cpu", "--precision", "fp32", *more]
    return [*options, *(part for text in assignments for part in ("--set", text))]


def rows_of(path: Path) -> dict[int, list[int]]:
    """Step → the rows of the global batch, in the order of the ranks."""
    seen: dict[int, dict[int, list[int]]] = {}
    for line in path.read_text().splitlines():
        step, rank, rows = line.split(" ")
        seen.setdefault(int(step), {})[int(rank)] = [int(row) for row in rows.split(",")]
    return {step: [row for rank in sorted(shares) for row in shares[rank]] for step, shares in seen.items()}


@pytest.mark.parametrize(
    ("before", "after", "objective"),
    [(1, 2, ("albef", "objective.queue_size=48")), (2, 1, ("psd", "objective.partition=blocks"))],
    ids=["albef on 1, then 2", "psd on 2, then 1"],
)
def test_the_number_of_processes_may_change_at_resume(
    commands: CommandServer,
    colour_corpus: Path,
    model: Path,
    tmp_path: Path,
    before: int,
    after: int,
    objective: tuple[str, str],
) -> None:
    """The same rows in the same order, and losses that differ by the order of sums only: queue and random subsets included."""
    cut, whole, steps = tmp_path / "cut", tmp_path / "whole", 10
    rows = {name: tmp_path / f"{name}.rows" for name in ("whole", "first", "second")}
    chosen = ("--objective", objective[0], "--set", objective[1])
    alone = commands.start(*command(colour_corpus, model, whole, steps, *chosen), setup=HOOKED, ROWS=rows["whole"])
    going = command(colour_corpus, model, cut, steps, *chosen)
    first = commands.start_ranks(before, *going, setup=HOOKED, ROWS=rows["first"], HANG="0 6")
    first[0].wait_for_step(cut, 6)
    wait_until(lambda: checkpoint.saved_steps(cut / "checkpoints"), 60, lambda: first[0].said)
    for rank in first:
        rank.kill()
        rank.wait()
    second = commands.start_ranks(after, *going, setup=HOOKED, ROWS=rows["second"])
    for rank in [alone, *second]:
        assert rank.wait() == 0, rank.said
    assert "at step 4 of 10" in second[0].said
    wanted = rows_of(rows["whole"])
    assert {step: rows_of(rows["first"])[step] for step in range(6)} == {step: wanted[step] for step in range(6)}
    assert rows_of(rows["second"]) == {step: wanted[step] for step in range(4, steps)}
    losses = [[line["loss"] for line in runs.Run(run).training] for run in (cut, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def survivor_says(ranks: list[Command], gone: int) -> str:
    """What the process that is left says when it ends, which it must within bounded time, as failed training."""
    left = ranks[1 - gone]
    assert left.wait(BOUND) == 6, left.said
    assert f"rank {gone} (pid {ranks[gone].pid} on {socket.gethostname()})" in left.said
    assert "--resume" in left.said
    return left.said


def goes_on(commands: CommandServer, corpus: Path, model: Path, run: Path) -> None:
    """The last checkpoint is whole and one process goes on from it."""
    assert runs.Run(run).state in ("failed", "running")  # running: who writes it was killed
    last, problems = checkpoint.newest_intact(run / "checkpoints")
    assert problems == []
    step = int(str(last)[-8:]) if last else 0
    again = commands.start(*command(corpus, model, run, step + 2))
    assert again.wait() == 0, again.said
    assert steps_done(run) == step + 2


@pytest.mark.parametrize("gone", [0, 1])
def test_a_killed_process_is_named_and_the_run_resumes(
    commands: CommandServer, colour_corpus: Path, model: Path, tmp_path: Path, gone: int
) -> None:
    """At a random step, without torchrun, which would stop the others by itself. Rank 0 takes the store with it."""
    step = random.randrange(1, 12)
    print(f"killed at step {step}")
    ranks = commands.start_ranks(2, *command(colour_corpus, model, tmp_path / "run", LONG))
    ranks[0].wait_for_step(tmp_path / "run", step)
    ranks[gone].kill()
    said = survivor_says(ranks, gone)
    assert re.search(r"killed .* at step \d+", said) or "cannot be reached" in said
    goes_on(commands, colour_corpus, model, tmp_path / "run")


@pytest.mark.parametrize("gone", [0, 1])
def test_a_stopped_process_is_named_and_the_run_resumes(
    commands: CommandServer, colour_corpus: Path, model: Path, tmp_path: Path, gone: int
) -> None:
    """Its connections stay open, so only its silence tells."""
    ranks = commands.start_ranks(2, *command(colour_corpus, model, tmp_path / "run", LONG), SOFTCLIP_RANK_TIMEOUT=LIMIT)
    ranks[0].wait_for_step(tmp_path / "run", 5)
    ranks[gone].kill(signal.SIGSTOP)
    said = survivor_says(ranks, gone)
    assert "stopped" in said
    ranks[gone].kill()
    goes_on(commands, colour_corpus, model, tmp_path / "run")


def test_a_process_in_an_endless_loop_is_named_with_its_place(
    commands: CommandServer, colour_corpus: Path, model: Path, tmp_path: Path
) -> None:
    """It gives signs of life all the while."""
    harm = {"SOFTCLIP_RANK_TIMEOUT": LIMIT, "HANG": "1 5"}
    ranks = commands.start_ranks(2, *command(colour_corpus, model, tmp_path / "run", LONG), setup=HOOKED, **harm)
    said = survivor_says(ranks, 1)
    assert re.search(rf"alive, but not .* {LIMIT} s; last seen at step 5, in data/loader\.py:\d+", said), said
    assert runs.Run(tmp_path / "run").status["message"].count("rank 1")
    ranks[1].kill()


def test_a_run_that_lost_a_process_is_started_again(
    commands: CommandServer, colour_corpus: Path, model: Path, tmp_path: Path
) -> None:
    """By torchrun's own agent, as --max-restarts 1 sets it: a run with a folder of its own goes on by itself to its end."""
    run, steps = tmp_path / "run", 30
    agent = commands.start(*command(colour_corpus, model, run, steps), setup=HOOKED + AGENT)
    assert agent.wait(BOUND) == 0, agent.said
    assert "rank 1" in agent.said
    assert "resuming" in agent.said
    assert [line["step"] for line in runs.Run(run).training] == list(range(1, steps + 1))
    assert runs.Run(run).state == "finished"
