"""Signs of life: what is taken for death and what is not, without processes; tests/test_ranks.py has real ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from softclip_cli.errors import SoftclipError, TrainingError, UsageError
from softclip_cli.training import heartbeat
from softclip_cli.training.distributed import World, time_limit
from softclip_cli.training.heartbeat import Heartbeat

PERIOD = 0.02
LIMIT = 0.4  # 20 signs


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCLIP_RANK_TIMEOUT", str(LIMIT))
    for name, value in (("PERIOD", PERIOD), ("LOOK", 1.0), ("GRACE", 0.1)):
        monkeypatch.setattr(heartbeat, name, value)


Group = Callable[..., list[Heartbeat]]


@pytest.fixture
def group() -> Iterator[Group]:
    """Makes a group of heartbeats that share a store, and stops them afterwards."""
    made: list[Heartbeat] = []

    def make(size: int, end: Callable[[SoftclipError], None]) -> list[Heartbeat]:
        store = dist.HashStore()
        made.extend(Heartbeat(World(rank, size), lambda: store, end) for rank in range(size))
        starting = [threading.Thread(target=one.start) for one in made]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        assert all(sign.beat for one in made for sign in one.seen)
        return made

    yield make
    for one in made:
        one.stop("finished", failed=False)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(PERIOD)


def cut_off(one: Heartbeat) -> None:
    """The store does not answer it any more."""
    blocked = threading.Event()
    one._exchange = lambda store: blocked.wait(60)  # type: ignore[assignment, method-assign]


def silence(one: Heartbeat) -> None:
    """Its process is stopped: neither of its threads does anything from now on."""
    cut_off(one)
    one._leaving.set()


def test_who_falls_silent_is_named_and_the_rest_is_ended_from_outside(group: Group) -> None:
    """The process after it notices, in whatever its main thread waits; it marks itself, so that the third accuses the right one."""
    ended: list[SoftclipError] = []
    said: list[str] = []
    first, second, third = group(3, ended.append)
    first.before_end = said.append
    second.step = 7
    wait_until(lambda: first.seen[1].step == 7)
    silence(second)
    wait_until(lambda: bool(ended))
    assert "no sign of life from rank 1 (pid " in ended[0].what
    assert "at step 7" in ended[0].why
    assert said and said[0].startswith(ended[0].what)
    error = third.verdict("Connection reset by peer")
    assert "no sign of life from rank 1 (pid " in error.what
    assert "rank 0" not in error.what


def test_long_work_is_not_taken_for_death(group: Group) -> None:
    """No step is done for many times the limit: an evaluation, or a checkpoint on a slow disk."""
    ended: list[SoftclipError] = []
    group(2, ended.append)
    time.sleep(4 * LIMIT)
    assert ended == []


def test_a_silent_thread_is_not_taken_for_death_while_steps_are_done(group: Group) -> None:
    """A step needs everyone."""
    ended: list[SoftclipError] = []
    first, second = group(2, ended.append)
    silence(second)
    for step in range(60):
        first.step = step
        time.sleep(2 * PERIOD)
    assert ended == []


def test_who_was_only_slow_is_not_accused(group: Group) -> None:
    """It comes back while the other looks who is missing: it held Python's lock for a long time."""
    ended: list[SoftclipError] = []
    first, second = group(2, ended.append)
    second.end = None
    go_on, exchange = threading.Event(), second._exchange
    second._exchange = lambda store: (go_on.wait(60), exchange(store))[1]  # type: ignore[method-assign]
    wait_until(lambda: first._looking)
    go_on.set()
    wait_until(lambda: not first._looking)
    time.sleep(2 * LIMIT)
    assert ended == []


def test_a_store_that_does_not_answer_is_gone_with_who_keeps_it(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    ended: list[SoftclipError] = []
    _, second = group(2, ended.append)
    cut_off(second)
    wait_until(lambda: any("cannot be reached" in error.what for error in ended))
    error = next(error for error in ended if "cannot be reached" in error.what)
    assert error.what.startswith("rank 0 (pid ")
    assert "node0" in error.what


def test_why_another_one_left_is_passed_on(group: Group) -> None:
    first, second = group(2, lambda error: None)
    second.stop("failed: picture 5 is none", failed=False)
    error = first.verdict("Connection reset by peer")
    assert error.what.startswith("rank 1 (pid ")
    assert error.what.endswith("failed")
    assert "picture 5 is none" in error.why


def test_a_connection_that_breaks_between_living_processes_is_said(group: Group) -> None:
    first, second = group(2, lambda error: None)
    found: list[TrainingError] = []
    other = threading.Thread(target=lambda: found.append(second.verdict("Connection reset by peer")))
    other.start()
    error = first.verdict("Connection reset by peer")
    other.join()
    assert "all 2 processes are alive" in error.what
    assert error.why == "Connection reset by peer"
    assert (error.hint, found[0].hint)[1] == ""  # one of them says all


def test_errors_that_are_not_of_messages_stay_what_they_are() -> None:
    one = Heartbeat(World(0, 2))
    with pytest.raises(RuntimeError, match="a bug") as caught, one.explained():
        raise RuntimeError("a bug")
    assert not isinstance(caught.value, SoftclipError)


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_time_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOFTCLIP_RANK_TIMEOUT", text)
    with pytest.raises(UsageError, match="SOFTCLIP_RANK_TIMEOUT"):
        time_limit()
