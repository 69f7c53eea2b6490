"""`--engine ray`: the same bytes from Ray Data on a two-worker cluster, a crash costs one record, and it can be stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from prepare_samples import double_and_lose_a_worker, double_or_die, image_bytes, jpeg, pairs_folder, process_ids, put

from softclip_cli.data import first_pass
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.data.ray_map import AHEAD, ray_ordered_map
from softclip_cli.data.workplace import Workplace
from softclip_cli.errors import Interrupted

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'softclip[ray]'")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # The workers find the helpers of the tests as this process does.
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        object_store_memory=200 << 20, runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )  # fmt: skip
    yield
    ray.shutdown()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source(root: Path) -> Path:
    pairs_folder(root, 60)
    put(root / "bad.jpg", "text")
    put(root / "bad.txt", "x")
    put(root / "big.png", image_bytes(1, (90, 60), "PNG"))
    put(root / "big.txt", "to be made smaller")
    put(root / "lonely.jpg", jpeg(3))
    return root


def test_the_corpus_is_the_same_to_the_byte(tmp_path: Path) -> None:
    folder = source(tmp_path / "s")
    options = {"short_side": 20, "split_fractions": {"val": 0.3}}
    local = prepare(folder, tmp_path / "local", PrepareOptions(workers=1, **options))  # type: ignore[arg-type]
    there = prepare(folder, tmp_path / "ray", PrepareOptions(engine="ray", **options))  # type: ignore[arg-type]
    assert there.info["counts"]["resized"] > 0
    assert there.info["dropped"]["records"] == 2
    assert tree(there.path) == tree(local.path)


def test_results_come_in_order_from_both_workers_and_only_a_little_is_read_ahead() -> None:
    taken: list[int] = []

    def chunks() -> Iterator[list[int]]:
        for number in range(40):
            taken.append(number)
            yield [number, number]

    results = ray_ordered_map(process_ids, chunks(), 2, lambda item: 0)
    found = [next(results) for _ in range(40)]
    assert [item for item, _ in found] == [number for number in range(20) for _ in range(2)]
    assert len(taken) <= 20 + 2 * AHEAD
    places = {place for _, place in found}
    assert os.getpid() not in places
    results.close()  # type: ignore[attr-defined]


def test_a_crash_costs_one_item() -> None:
    chunks = [[n, n + 1] for n in range(8, 18, 2)]
    found = list(ray_ordered_map(double_or_die, iter(chunks), 2, lambda item: -item))
    assert found == [(n, -13 if n == 13 else 2 * n) for n in range(8, 18)]


def test_what_a_lost_worker_had_in_hand_is_done_again(tmp_path: Path) -> None:
    chunks = [[n, n + 1] for n in range(8, 18, 2)]
    work = partial(double_and_lose_a_worker, str(tmp_path / "mark"))
    found = list(ray_ordered_map(work, iter(chunks), 2, lambda item: -item))
    assert (tmp_path / "mark").exists()
    assert found == [(n, 2 * n) for n in range(8, 18)]


def test_a_stop_can_be_gone_on_from_with_the_other_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_pass, "POINT_RECORDS", 10)
    folder = source(tmp_path / "s")
    local = prepare(folder, tmp_path / "local", PrepareOptions(workers=1))
    save = Workplace.save

    def stopping(self: Workplace, progress: dict) -> None:
        save(self, progress)
        if progress["read"] >= 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Workplace, "save", stopping)
    with pytest.raises(Interrupted):
        prepare(folder, tmp_path / "c", PrepareOptions(engine="ray"))
    monkeypatch.setattr(Workplace, "save", save)
    said: list[str] = []
    found = prepare(folder, tmp_path / "c", PrepareOptions(workers=1), note=said.append)
    assert said == ["going on from record 20, where an earlier run was cut off"]
    assert tree(found.path) == tree(local.path)
