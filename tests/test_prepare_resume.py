"""`softclip data prepare` is killed at any moment and goes on: to the same bytes, or anew where they could not be the same."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prepare_samples import jpeg, pairs_folder, put, rows

from softclip_cli.data import corpus as corpus_module
from softclip_cli.data import first_pass
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.data.workplace import Workplace
from softclip_cli.errors import DataError, HostError, Interrupted

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

COUNT = 240
Job = Callable[..., tuple[int, int, int]]
Whole = tuple[dict[str, bytes], int, int]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with missing and broken images, empty captions and doubled keys."""
    folder = tmp_path_factory.mktemp("source")
    lines = []
    for number in range(COUNT):
        if number % 11:
            put(folder / f"{number}.jpg", jpeg(number) if number % 13 else b"text")
        caption = "" if number % 17 == 0 else f"caption {number}"
        lines.append(json.dumps({"image": f"{number}.jpg", "a": caption, "b": "another", "key": f"k{number // 3 * 2}"}))
    return put(folder / "t.jsonl", "\n".join(lines))


@pytest.fixture(scope="module")
def job(source: Path) -> Iterator[Job]:
    """Prepares in a process that may die: (out, die_at, options) → its exit code, touches of the disk, and those before the end."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killed_prepare.py")), str(source)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def run(out: Path, die_at: int = 0, **options: object) -> tuple[int, int, int]:
        process.stdin.write(json.dumps({"out": str(out), "die_at": die_at, "options": options}) + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        code, touches, end = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        return code, touches, end

    yield run
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The corpus of a run that was left alone, how often that touched the disk, and how often before all was read."""
    out = tmp_path_factory.mktemp("whole") / "c"
    code, touches, end = job(out)
    assert code == 0
    assert [path.name for path in out.parent.iterdir()] == ["c"]
    return tree(out), touches, end


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_deaths_in_one_preparation(job: Job, whole: Whole, tmp_path: Path, seed: int) -> None:
    expected, touches, _ = whole
    assert len([name for name in expected if name.startswith("train/") and name.endswith(".arrow")]) > 2
    moment = random.Random(seed)
    read = []
    for _ in range(10):
        code, *_ = job(tmp_path / "c", moment.randint(1, touches // 6))
        assert code == -signal.SIGKILL
        assert not (tmp_path / "c").exists(), "half a corpus"
        read.append((Workplace(tmp_path / "c").read() or {"read": 0})["read"])
    assert read == sorted(read)
    assert read[-1] > 0, "nothing was gone on from"
    assert job(tmp_path / "c")[0] == 0
    assert tree(tmp_path / "c") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_ten_deaths_from_start_to_end(job: Job, whole: Whole, tmp_path: Path) -> None:
    expected, touches, _ = whole
    moment = random.Random(0)
    for number in range(10):
        out = tmp_path / str(number) / "c"
        assert job(out, moment.randint(1, touches))[0] == -signal.SIGKILL
        assert job(out)[0] == 0
        assert tree(out) == expected
        assert [path.name for path in out.parent.iterdir()] == ["c"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_death_in_each_moment_of_the_end(job: Job, whole: Whole, tmp_path: Path, overwrite: bool) -> None:
    """From the last durable point on: shards are ended and named, the corpus is renamed, the rest is removed."""
    expected, _, end = whole
    folder, before = tmp_path / "kept", None
    if overwrite:
        prepare(pairs_folder(tmp_path / "s", 3), folder / "c", PrepareOptions(workers=1))
        before = tree(folder / "c")
    assert job(folder / "c", end + 1, overwrite=overwrite)[0] == -signal.SIGKILL
    shutil.copytree(folder, tmp_path / "trial")
    _, steps, _ = job(tmp_path / "trial" / "c", overwrite=overwrite)
    assert steps > 20
    for die_at in range(steps - 12, steps + 1) if overwrite else range(1, steps + 1, 2):
        copy = tmp_path / str(die_at)
        shutil.copytree(folder, copy)
        assert job(copy / "c", die_at, overwrite=overwrite)[0] == -signal.SIGKILL
        # The old corpus, the new one, or for a moment none: never half a one.
        assert (tree(copy / "c") if (copy / "c").exists() else None) in (before, expected, None)
        code, *_ = job(copy / "c", overwrite=overwrite)
        # 4: the corpus was whole, and nothing but an empty folder told of the run that died.
        assert code in (0, 4)
        assert tree(copy / "c") == expected
        assert code == 4 or [path.name for path in copy.iterdir()] == ["c"]


def test_the_command_with_workers_is_killed_and_goes_on(tmp_path: Path) -> None:
    """A real command, its process killed from outside at two moments; the workers do not outlive it."""
    line = pairs_folder(tmp_path / "s", 1)
    for number in range(1, 600):
        for suffix in ("jpg", "txt"):
            (line / f"{number}.{suffix}").hardlink_to(line / f"0.{suffix}")
    code = (
        "from softclip_cli.data import corpus, first_pass; first_pass.POINT_RECORDS = 20; first_pass.CHUNK_BYTES = 1 << 16;"
        "from softclip_cli.commands.data import app; app()"
    )
    command = [sys.executable, "-c", code, "prepare", str(line)]
    subprocess.run([*command, str(tmp_path / "whole"), "-j", "1"], check=True, capture_output=True)
    moment, place = random.Random(0), Workplace(tmp_path / "c")
    for _ in range(2):
        process = subprocess.Popen([*command, str(tmp_path / "c"), "-j", "2"], stderr=subprocess.PIPE, text=True)
        begun = (place.read() or {"read": 0})["read"]
        wanted = begun + moment.randint(20, 150)
        while process.poll() is None and (place.read() or {"read": 0})["read"] < wanted:
            time.sleep(0.002)
        process.kill()
        _, said = process.communicate(timeout=30)
        assert ("going on from record" in said) == (begun > 0)
    subprocess.run([*command, str(tmp_path / "c"), "-j", "2"], check=True, capture_output=True)
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


# In this process: what is gone on with, and what is not


@pytest.fixture
def small_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_pass, "POINT_RECORDS", 10)
    monkeypatch.setattr(first_pass, "CHUNK_BYTES", 1 << 16)


def stop_after(monkeypatch: pytest.MonkeyPatch, points: int, error: BaseException) -> None:
    """Let the next preparation fail after some durable points."""
    save = Workplace.save
    count = 0

    def failing(self: Workplace, progress: dict) -> None:
        nonlocal count
        save(self, progress)
        count += 1
        if count == points:
            monkeypatch.setattr(Workplace, "save", save)
            raise error

    monkeypatch.setattr(Workplace, "save", failing)


def run(source: Path, out: Path, **options: object) -> tuple[Corpus, list[str]]:
    said: list[str] = []
    chosen = PrepareOptions(**{"workers": 1, **options})  # type: ignore[arg-type]
    return prepare(source, out, chosen, note=said.append), said


@pytest.mark.usefixtures("small_points")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs_folder(tmp_path / "s", 50)
    expected, _ = run(source, tmp_path / "whole")
    stop_after(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(Interrupted, match=r"(?s)the first 20 records are safe.*the same command goes on"):
        run(source, tmp_path / "c")
    found, said = run(source, tmp_path / "c", workers=2)
    assert said == ["going on from record 20, where an earlier run was cut off"]
    assert tree(found.path) == tree(expected.path)


@pytest.mark.usefixtures("small_points")
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: [(s / f"10.{x}").rename(s / f"00.{x}") for x in ("jpg", "txt")], {}, "the source has changed"),
        (lambda s: (s / "10.jpg").unlink(), {}, "the source has changed"),
        (lambda s: pairs_folder(s / "more", 1), {}, "are others now"),
        (lambda s: None, {"short_side": 8}, "are others now"),
        (lambda s: None, {"resume": "never"}, ""),
    ],
)
def test_what_would_not_be_the_same_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], options: dict, message: str
) -> None:
    source = pairs_folder(tmp_path / "s", 50)
    stop_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        run(source, tmp_path / "c")
    change(source)
    found, said = run(source, tmp_path / "c", **options, max_dropped=0.5)
    assert message in " ".join(said)
    assert bool(said) == bool(message)
    anew, _ = run(source, tmp_path / "anew", **{**options, "resume": "auto"}, max_dropped=0.5)
    assert tree(found.path) == tree(anew.path)


@pytest.mark.usefixtures("small_points")
def test_a_full_disk_keeps_what_is_done_and_bad_data_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs_folder(tmp_path / "s", 50)
    stop_after(monkeypatch, 2, OSError(28, "No space left on device"))
    with pytest.raises(HostError, match="then the same command goes on where it stopped"):
        run(source, tmp_path / "c")
    assert run(source, tmp_path / "c")[1]
    put(source / "9.jpg", "text")
    stop_after(monkeypatch, 9, KeyboardInterrupt())
    with pytest.raises(DataError, match="--max-dropped"):
        run(source, tmp_path / "d", max_dropped=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "s"]


@pytest.mark.usefixtures("small_points")
def test_split_lists_and_limits_hold_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs_folder(tmp_path / "s", 60)
    lists = {
        "train": put(tmp_path / "a", "".join(f"{n}.jpg\n" for n in range(40))),
        "test": put(tmp_path / "b", "".join(f"{n}.jpg\n" for n in range(45, 63))),
    }
    for name, options in (("lists", {"split_lists": lists, "max_dropped": 0.5}), ("limit", {"limit": 33})):
        expected, _ = run(source, tmp_path / f"{name}-whole", **options)
        stop_after(monkeypatch, 3, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            run(source, tmp_path / name, **options)
        found, said = run(source, tmp_path / name, **options, workers=2)
        assert said
        assert tree(found.path) == tree(expected.path)


@pytest.mark.usefixtures("small_points")
def test_repeated_captions_are_counted_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        put(tmp_path / "s" / f"{number:02d}.jpg", jpeg(number))
        put(tmp_path / "s" / f"{number:02d}.txt", f"caption {number % 7}\nanother\nanother\nof its own {number}\n")
    options = {"max_repeats": 5, "split_fractions": {"val": 0.3}}
    expected, _ = run(tmp_path / "s", tmp_path / "whole", **options)
    assert expected.info["dropped"]["captions"]["repeated-caption"] > 60
    stop_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        run(tmp_path / "s", tmp_path / "c", **options)
    found, said = run(tmp_path / "s", tmp_path / "c", **options)
    assert said
    assert tree(found.path) == tree(expected.path)


@pytest.mark.usefixtures("small_points")
def test_a_connection_that_is_lost_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs_folder(tmp_path / "s", 50)
    stop_after(monkeypatch, 2, DataError("s3://b/x.tar cannot be read to its end", "timed out", "run it again"))
    with pytest.raises(DataError, match="run it again"):
        run(source, tmp_path / "c")
    assert run(source, tmp_path / "c")[1] == ["going on from record 20, where an earlier run was cut off"]


@pytest.mark.usefixtures("small_points")
def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    source = pairs_folder(tmp_path / "s", 5)
    with Workplace(tmp_path / "c").locked(), pytest.raises(DataError, match="another process"):
        run(source, tmp_path / "c")
    assert len(rows(run(source, tmp_path / "c")[0])) == 5


@pytest.mark.usefixtures("small_points")
def test_a_refused_output_folder_does_not_cost_the_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pairs_folder(tmp_path / "s", 50)
    run(source, tmp_path / "c", limit=3)
    stop_after(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(Interrupted):
        run(source, tmp_path / "c", overwrite=True)
    with pytest.raises(DataError, match="--overwrite"):
        run(source, tmp_path / "c")
    assert len(rows(Corpus.open(tmp_path / "c"))) == 3
    found, said = run(source, tmp_path / "c", overwrite=True)
    assert said
    assert len(rows(found)) == 50


def test_batches_are_cut_by_content_not_by_the_split_they_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in memory is bounded over all splits."""
    monkeypatch.setattr(corpus_module, "BATCH_BYTES", 20_000)
    most = 0

    def watched(self: corpus_module.CorpusBuilder, size: int) -> None:
        nonlocal most
        make_room(self, size)
        most = max(most, self._waiting)

    make_room = corpus_module.CorpusBuilder._make_room
    monkeypatch.setattr(corpus_module.CorpusBuilder, "_make_room", watched)
    for split in range(12):
        pairs_folder(tmp_path / "s" / f"class{split}", 10)
    with corpus_module.CorpusWriter(tmp_path / "c") as writer:
        splits = [writer.open_split(f"s{number}") for number in range(12)]
        for number in range(240):
            splits[number % 12].write(corpus_module.Record(str(number), jpeg(number), ["x"]))
        for number in range(12):
            writer.close_split(f"s{number}")
    assert 18_000 < most < 22_000
    assert len(Corpus.open(tmp_path / "c").split("s3")) == 20
