"""The generated corpus as a whole: its splits, its noise, its determinism, and the command that makes it."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import typer
from test_generated_scenes import truly_fits
from typer.testing import CliRunner

from softclip_cli.commands.generate import generate
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.generated.draw import SHIFTS, draw, encode
from softclip_cli.data.generated.facts import fit_matrix
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.data.generated.scene import Scene
from softclip_cli.data.generated.vocabulary import COLOUR_NAMES, KIND_NAMES
from softclip_cli.errors import DataError, HostError, UsageError

PAIRS, PER_CLASS = 240, 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    out = tmp_path_factory.mktemp("generated") / "corpus"
    return generate_corpus(out, pairs=PAIRS, noise=0.5, seed=3, workers=1, per_class=PER_CLASS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(corpus, tmp_path):
    other = generate_corpus(tmp_path / "two", pairs=PAIRS, noise=0.5, seed=3, workers=2, per_class=PER_CLASS)
    assert other.fingerprint == corpus.fingerprint
    assert files_of(other.path) == files_of(corpus.path)


def test_another_seed_gives_other_pictures_and_captions(corpus, tmp_path):
    other = generate_corpus(tmp_path / "other", pairs=20, noise=0.5, seed=4, workers=1, per_class=1)
    assert other.fingerprint != corpus.fingerprint
    for split in ("train", "val", "test", "composition"):
        ours, theirs = corpus.split(split)[:20], other.split(split)[:20]
        assert not {image["bytes"] for image in ours["image"]} & {image["bytes"] for image in theirs["image"]}
        assert ours["captions"] != theirs["captions"]


def test_any_tool_that_reads_datasets_reads_it(corpus):
    loaded = datasets.load_from_disk(str(corpus.path))
    assert list(loaded) == ["train", "val", "test", "probe", "composition", *(f"shift-{style}" for style in SHIFTS)]
    row = loaded["test"][5]
    assert row["image"].size == (64, 64)
    names = loaded["test"].features["label"].names
    assert names[row["label"]] == f"{COLOUR_NAMES[row['label_colour']]} {KIND_NAMES[row['label_kind']]}"
    assert {name: len(split) for name, split in loaded.items()} == {
        name: split["rows"] for name, split in corpus.info["splits"].items()
    }
    assert corpus.info["splits"]["val"]["rows"] == 200 and corpus.info["splits"]["test"]["rows"] == 160
    for split in loaded.values():
        assert len(set(split["key"])) == len(split)


def test_a_picture_can_be_drawn_again_from_its_scene(corpus):
    for split, style in (("train", "everyday"), ("test", "everyday"), *((f"shift-{style}", style) for style in SHIFTS)):
        for row in corpus.split(split).select(range(0, 80, 9)):
            assert encode(draw(Scene.from_json(row["scene"]), 64, style)) == row["image"]["bytes"]


def test_noise_is_what_its_column_says(corpus):
    train = corpus.split("train")
    counts = Counter(train["noise"])
    assert counts == {"clean": 120, "mismatched": 72, "vague": 24, "partial": 24} == corpus.info["noise"]
    scenes = {row["key"]: json.loads(row["scene"]) for row in train}
    said = {row["key"]: row["captions"] for row in train}
    for row in train:
        claims = [json.loads(text) for text in row["caption_facts"]]
        assert len(claims) == len(row["captions"]) == 5
        own = [truly_fits(claim, scenes[row["key"]]) for claim in claims]
        if row["noise"] == "mismatched":
            assert not any(own) and row["source_key"] != row["key"]
            assert all(truly_fits(claim, scenes[row["source_key"]]) for claim in claims)
            assert said[row["source_key"]] != row["captions"]
            continue
        assert all(own) and row["source_key"] == row["key"]
        silent = sum(claim == {} for claim in claims)
        if row["noise"] == "vague":
            assert silent >= 3
        else:
            assert silent == 0
        if row["noise"] == "partial":
            for claim in claims:
                told = {*claim, *(name for entry in claim.get("objects", []) for name in entry)} - {"objects", "count"}
                assert len(told) == 1 and "kind" not in told
    assert set(corpus.split("val")["noise"]) == {"clean"}


def test_pairs_correspond_many_to_many(corpus):
    clean = corpus.split("train").filter(lambda row: row["noise"] == "clean")
    fitted = fit_matrix([texts[-1] for texts in clean["caption_facts"]], clean["scene"])
    assert fitted.diagonal().all()
    assert fitted.sum() > 1.05 * len(clean)  # some captions fit other pictures, too


def test_half_of_the_training_scenes_and_all_labelled_ones_show_one_object(corpus):
    shown = [json.loads(text)["objects"] for text in corpus.split("train")["scene"]]
    assert np.mean([len(objects) == 1 and objects[0]["count"] == 1 for objects in shown]) > 0.5
    for split in ("test", "probe"):
        for text in corpus.split(split)["scene"]:
            objects = json.loads(text)["objects"]
            assert len(objects) == 1 and objects[0]["count"] == 1 and objects[0]["side"] > 1 / 3


@pytest.mark.parametrize("split", ["test", "probe", *(f"shift-{style}" for style in SHIFTS)])
def test_labels_are_balanced_and_true(corpus, split):
    rows = corpus.split(split)
    assert set(Counter(rows["label"]).values()) == {PER_CLASS if split in ("test", "probe") else 1}
    for row in rows.select(range(0, len(rows), 7)):
        entry = json.loads(row["scene"])["objects"][0]
        assert rows.features["label"].int2str(row["label"]) == f"{entry['colour']} {entry['kind']}"
        assert rows.features["label_kind"].int2str(row["label_kind"]) == entry["kind"]
        assert rows.features["label_colour"].int2str(row["label_colour"]) == entry["colour"]
        assert all(truly_fits(json.loads(claim), json.loads(row["scene"])) for claim in row["caption_facts"])


def test_no_two_test_pictures_are_alike(corpus):
    seen = set()
    for text in corpus.split("test")["scene"]:
        shown = json.loads(text)
        entry = shown["objects"][0]
        seen.add((*(entry[name] for name in ("kind", "colour", "size", "texture", "h", "v")), shown["background"]))
    assert len(seen) == len(corpus.split("test"))
    pictures = {image["bytes"] for split in ("test", "probe", "train", "val") for image in corpus.split(split)["image"]}
    assert len(pictures) == 2 * 160 + PAIRS + 200


@pytest.mark.parametrize("style", SHIFTS)
def test_a_shift_split_is_the_test_split_redrawn(corpus, style):
    test = {row["key"]: row for row in corpus.split("test")}
    for row in corpus.split(f"shift-{style}"):
        same = test[row["source_key"]]
        for column in ("scene", "captions", "caption_facts", "label", "label_kind", "label_colour"):
            assert row[column] == same[column]
        assert row["image"]["bytes"] != same["image"]["bytes"]


def test_hard_negatives_are_wrong_and_their_true_captions_are_not(corpus):
    rows = corpus.split("composition")
    assert set(Counter(rows["edit"]).values()) == {len(rows) // 4}
    for row in rows:
        shown = json.loads(row["scene"])
        assert len(row["captions"]) == len(row["hard_negatives"]) == 1
        assert truly_fits(json.loads(row["caption_facts"][0]), shown)
        assert not truly_fits(json.loads(row["negative_facts"][0]), shown)


def test_the_tasks_name_what_is_there(corpus):
    tasks, classes = corpus.info["tasks"], corpus.info["classes"]
    assert len(classes["kind-colour"]) >= 64 and len(classes["kind"]) >= 8 and len(classes["colour"]) >= 8
    labelled = [*tasks["zeroshot"].values(), *tasks["shift"].values()]
    labelled += [{**task, "split": task[part]} for task in tasks["probe"].values() for part in ("train", "test")]
    for task in labelled:
        assert corpus.split(task["split"]).features[task["label"]].names == classes[task["classes"]]
    assert tasks["retrieval"] == {"test": {"split": "test"}} and tasks["composition"] == {"split": "composition"}
    for prompt in corpus.info["prompts"] + tasks["zeroshot"]["colour"]["prompts"]:
        assert prompt.count("{}") == 1 and "a {}" not in prompt.replace("of a single {}", "")


def test_wrong_values_are_named_all_at_once(tmp_path):
    with pytest.raises(UsageError) as caught:
        generate_corpus(tmp_path / "c", pairs=0, noise=1.5, seed=-1, image_size=8, workers=0, per_class=0)
    for name in ("--pairs 0", "--noise 1.5", "--seed -1", "--image-size 8", "--workers 0", "per_class 0"):
        assert name in caught.value.why
    with pytest.raises(UsageError, match="out of range"):
        generate_corpus(tmp_path / "c", pairs=10, noise=float("nan"), seed=0)
    assert not list(tmp_path.iterdir())


def test_only_a_corpus_is_replaced_and_only_when_asked(corpus, tmp_path):
    before = files_of(corpus.path)
    with pytest.raises(DataError, match="already holds a corpus"):
        generate_corpus(corpus.path, pairs=10, noise=0, seed=0, per_class=1)
    assert files_of(corpus.path) == before
    keep = tmp_path / "thesis"
    keep.mkdir()
    (keep / "chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a corpus"):
        generate_corpus(keep, pairs=10, noise=0, seed=0, per_class=1, overwrite=True)
    assert (keep / "chapter.txt").read_text() == "years of work"
    first = generate_corpus(tmp_path / "c", pairs=10, noise=0, seed=0, per_class=1)
    second = generate_corpus(tmp_path / "c", pairs=11, noise=0.1, seed=0, per_class=1, image_size=32, overwrite=True)
    assert second.fingerprint != first.fingerprint and second.info["splits"]["train"]["rows"] == 11
    assert second.info["noise"] == {"clean": 10, "mismatched": 1, "vague": 0, "partial": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "thesis"]


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write"):
        generate_corpus(tmp_path / "file" / "corpus", pairs=10, noise=0, seed=0, per_class=1)


def test_progress_ends_at_the_number_of_images(tmp_path):
    steps: list[tuple[int, int]] = []
    made = generate_corpus(
        tmp_path / "c",
        pairs=10,
        noise=0,
        seed=0,
        per_class=1,
        image_size=32,
        progress=lambda done, total: steps.append((done, total)),
    )
    images = sum(split["rows"] for split in made.info["splits"].values())
    assert steps[-1] == (images, images) and [done for done, _ in steps] == sorted({done for done, _ in steps})


@pytest.fixture
def small(monkeypatch):
    """The command with small evaluation splits: what it does, not how long it draws, is tested."""
    fewer = functools.partial(generate_corpus, per_class=1)
    monkeypatch.setattr("softclip_cli.data.generated.generate.generate_corpus", fewer)
    application = typer.Typer(pretty_exceptions_enable=False)
    application.command()(generate)
    return application


def test_the_command_prints_one_json_document(small, tmp_path):
    out = tmp_path / "c"
    result = CliRunner().invoke(
        small, [str(out), "--pairs", "20", "--noise", "0.5", "--image-size", "32", "-j", "1", "--json"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["corpus"] == str(out) and document["splits"]["train"] == 20
    assert document["noise"] == {"clean": 10, "mismatched": 6, "vague": 2, "partial": 2}
    assert document["fingerprint"] == Corpus.open(out).fingerprint


def test_the_command_refuses_bad_values_with_exit_code_2(small, tmp_path):
    result = CliRunner().invoke(small, [str(tmp_path / "c"), "--pairs", "3", "--noise", "2"])
    assert result.exit_code == 2 and "--pairs 3" in result.stderr and "--noise 2.0" in result.stderr


PROGRAM = """
import typer
from softclip_cli.commands.generate import generate
application = typer.Typer(pretty_exceptions_enable=False)
application.command()(generate)
application()
"""


def children_of(pid: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found |= {child} | children_of(child)
    return found


def ignores_interrupts(pid: int) -> bool:
    try:
        ignored = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
    except OSError:
        return False
    return bool(int(ignored, 16) & 1 << (signal.SIGINT - 1))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for left-over processes in /proc")
def test_ctrl_c_leaves_neither_half_a_corpus_nor_a_process(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "c"), "--pairs", "200000", "-j", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline, settled = time.monotonic() + 60, 0
    while settled < 4:  # until all helpers (two of them multiprocessing's own) have long been started
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
        started = children_of(process.pid)
        settled = settled + 1 if len(started) >= 4 and all(ignores_interrupts(child) for child in started) else 0
    children = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130 and messages.strip() == "interrupted"
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_drawing_needs_no_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from softclip_cli.data.generated.generate import generate_corpus\n"
        f"generate_corpus(Path({str(tmp_path / 'c')!r}), pairs=10, noise=0.3, seed=0, per_class=1, image_size=32)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
