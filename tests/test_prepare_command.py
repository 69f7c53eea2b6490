"""`softclip data prepare` and `softclip data inspect` as a user meets them: options, streams, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepare_samples import image_bytes, jpeg, pairs_folder, put, rows
from typer.testing import CliRunner, Result

from softclip_cli.commands.data import app
from softclip_cli.data.corpus import Corpus
from softclip_cli.evaluation.locate import classification_set

COMMAND = [sys.executable, "-c", "from softclip_cli.commands.data import app; app()"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_prepare_says_what_it_found_and_made(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "s", 30)
    put(tmp_path / "s" / "broken.jpg", "text")
    put(tmp_path / "s" / "broken.txt", "x")
    result = call("prepare", tmp_path / "s", tmp_path / "c", "-j", 1)
    assert result.exit_code == 0, result.output
    assert "format pairs: a folder of pairs: 0.jpg has 0.txt beside it" in result.stderr
    assert "1 broken records (3.23%): 1 not-an-image" in result.stdout
    assert "dropped.parquet" in result.stdout


def test_a_labelled_set_is_prepared_with_captions_and_evaluated_by_its_labels(tmp_path: Path) -> None:
    """A prepared corpus holds signatures, which are bytes as images are, and labels that make it a classification set."""
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(count):
                put(tmp_path / "s" / split / name / f"{i}.jpg", jpeg(10 * number + i, size=(40, 40)))
    result = call("prepare", tmp_path / "s", tmp_path / "c", "-j", 1, "--caption-template", "a photo of a {}")
    assert result.exit_code == 0, result.output
    found = classification_set(str(tmp_path / "c"))
    assert (found.split, found.class_names, found.labels.tolist()) == ("test", ("cat", "dog"), [0, 0, 1, 1])
    assert found.images[0][:2] == b"\xff\xd8"


def test_prepare_prints_exactly_one_json_document(tmp_path: Path) -> None:
    result = call("prepare", pairs_folder(tmp_path / "s"), tmp_path / "c", "-j", 1, "--json")
    document = json.loads(result.stdout)
    assert document["corpus"] == str(tmp_path / "c")
    assert document["splits"]["train"] == {"rows": 6, "captions": 6}
    assert document["sources"][0]["format"] == "pairs"
    assert len(document["fingerprint"]) == 64


def test_every_option_reaches_its_place(tmp_path: Path) -> None:
    lines = ["p,c1,c2,l,g,s,k"]
    for number in range(4):
        put(tmp_path / "pictures" / f"{number}.png", image_bytes(number, (40, 30), "PNG"))
        lines.append(f"{number}.png,é{number},two,{number % 2},g{number},{'dev' if number else 'train'},k{number}")
    put(tmp_path / "t.txt", "\n".join(lines).encode("latin-1"))
    result = call(
        "prepare", tmp_path / "t.txt", tmp_path / "c", "--format", "table", "--image-column", "p",
        "--caption-column", "c1", "--caption-column", "c2", "--label-column", "l", "--class-names", "cat,dog",
        "--group-column", "g", "--split-column", "s", "--key-column", "k", "--image-root", tmp_path / "pictures",
        "--encoding", "latin-1", "--short-side", 15, "--quality", 70, "--limit", 2, "--max-dropped", 0, "--workers", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.splits == ["train", "val"]
    found = rows(corpus, "val")
    assert [(row["key"], row["captions"], row["label"], row["group"]) for row in found] == [
        ("k1", ["é1", "two"], 1, "g1"), ("k2", ["é2", "two"], 0, "g2"),
    ]  # fmt: skip
    assert corpus.info["counts"]["resized"] == 3


def test_split_options(tmp_path: Path) -> None:
    source = pairs_folder(tmp_path / "s", 40)
    listed = put(tmp_path / "list", "3\n4\n")
    assert call("prepare", source, tmp_path / "a", "-j", 1, "--split-list", f"test={listed}").exit_code == 0
    assert Corpus.open(tmp_path / "a").info["splits"]["test"]["rows"] == 2
    fractions = ("--split-fraction", "val=0.3,test=0.2", "--split", "rest")
    assert call("prepare", source, tmp_path / "b", "-j", 1, *fractions).exit_code == 0
    assert sorted(Corpus.open(tmp_path / "b").splits) == ["rest", "test", "val"]


def test_class_names_from_a_file_and_templates(tmp_path: Path) -> None:
    for name in ("1/a.jpg", "0/b.jpg"):
        put(tmp_path / "s" / name, jpeg())
    put(tmp_path / "names.txt", "1\n0\n")
    arguments = ("--class-names", tmp_path / "names.txt", "--caption-template", "digit {}")
    assert call("prepare", tmp_path / "s", tmp_path / "c", "-j", 1, *arguments).exit_code == 0
    assert {row["key"]: (row["label"], row["captions"]) for row in rows(Corpus.open(tmp_path / "c"))} == {
        "1/a.jpg": (0, ["digit 1"]), "0/b.jpg": (1, ["digit 0"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{s}/none", "{c}"], 3, "no data at"),
        (["{s}", "{c}", "--format", "pears"], 2, "Did you mean 'pairs'"),
        (["{s}", "{c}", "--caption-column", "x"], 2, "means nothing for the format"),
        (["{t}", "{c}", "--caption-column", "captoin"], 2, "Did you mean 'caption'"),
        (["{t}", "{c}"], 3, "no usable record"),
        (["{e}", "{c}"], 3, "empty folder"),
        (["org/nothing-of-the-kind", "{c}"], 3, "nor to be had from the Hub"),
        (["{s}", "{c}", "--quality", "0"], 2, "--quality 0"),
        (["{s}", "{c}", "--split-fraction", "val"], 2, "expected NAME=VALUE"),
        (["{s}", "{c}", "--split-fraction", "val=much"], 2, "much"),
        (["{s}", "{c}", "--split-list", "a=b", "--split-list", "a=c"], 2, "names a split twice"),
        (["{s}", "{s}"], 2, "lies in the output folder"),
        (["{s}", "{e}/.."], 2, "lies in the output folder"),
        (["{s}", "{p}"], 3, "is not a corpus"),
        (["{s}"], 2, "OUT"),
    ],
)
def test_bad_input_gives_its_exit_code_and_says_what_to_do(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    pairs_folder(tmp_path / "s")
    pairs_folder(tmp_path / "p")
    (tmp_path / "e").mkdir()
    put(tmp_path / "t.csv", "image,caption\nnone.jpg,x\n")
    places = {
        "s": tmp_path / "s",
        "c": tmp_path / "c",
        "t": tmp_path / "t.csv",
        "e": tmp_path / "e",
        "p": tmp_path / "p",
    }
    result = call("prepare", *(argument.format(**places) for argument in arguments))
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "c").exists()


def test_inspect_counts_what_is_there(tmp_path: Path) -> None:
    source = tmp_path / "s"
    for number, captions in enumerate(["a dog", "a dog\na very large dog runs", "a dog\ncat"]):
        put(source / f"{number}.jpg", jpeg(number, (20 + number, 10)))
        put(source / f"{number}.txt", captions)
    put(source / "9.gif", image_bytes(9, (8, 40), "GIF"))
    put(source / "9.txt", "cat")
    call("prepare", source, tmp_path / "c", "-j", 1)
    found = json.loads(call("inspect", tmp_path / "c", "--json").stdout)["splits"]["train"]
    assert (found["rows"], found["captions"]) == (4, 6)
    assert found["captions_per_image"] == {"min": 1, "median": 1.5, "max": 2}
    counts = [[1, 2], [2, 3], [5, 1]]
    assert found["words_per_caption"] == {"min": 1, "median": 2.0, "max": 5, "counts": counts}
    assert found["repeated_captions"]["texts"] == 2
    assert found["repeated_captions"]["captions"] == 5
    assert found["repeated_captions"]["most_frequent"][:2] == [
        {"caption": "a dog", "count": 3},
        {"caption": "cat", "count": 2},
    ]
    assert found["images"]["formats"] == {"JPEG": 3, "GIF": 1}
    assert found["images"]["width"] == {"min": 8, "median": 20.5, "max": 22}
    text = call("inspect", tmp_path / "c").stdout
    assert "a dog" in text
    assert "3 JPEG, 1 GIF" in text


def test_inspect_shows_classes_and_corpora_without_captions(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
        put(tmp_path / "s" / name, jpeg())
    call("prepare", tmp_path / "s", tmp_path / "c", "-j", 1)
    found = json.loads(call("inspect", tmp_path / "c", "--json").stdout)["splits"]["train"]
    assert found["classes"] == {"count": 2, "images": {"cat": 2, "dog": 1}, "unlabelled": 0}
    assert found["words_per_caption"] is None
    assert call("inspect", tmp_path / "c").exit_code == 0


def test_inspect_of_what_is_no_corpus_is_a_data_error(tmp_path: Path) -> None:
    assert call("inspect", tmp_path).exit_code == 3
    assert call("inspect", tmp_path / "none").exit_code == 3


@pytest.mark.parametrize(
    ("stop", "background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_interruption_keeps_what_is_done_and_exits_130(tmp_path: Path, stop: signal.Signals, background: bool) -> None:
    """Also a script's background job, which ignores Ctrl-C, stops at SIGTERM."""
    for number in range(4000):
        if number == 0:
            put(tmp_path / "s" / "0.png", image_bytes(0, (400, 300), "PNG"))
            put(tmp_path / "s" / "0.txt", "x")
        else:
            (tmp_path / "s" / f"{number}.png").hardlink_to(tmp_path / "s" / "0.png")
            (tmp_path / "s" / f"{number}.txt").hardlink_to(tmp_path / "s" / "0.txt")
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "prepare", str(tmp_path / "s"), str(out / "c"), "-j", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (out / ".c.partial" / "progress.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert [path.name for path in out.iterdir()] == [".c.partial"]
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors


def test_help_does_not_import_anything_heavy() -> None:
    code = (
        "import sys; from softclip_cli.commands import data; "
        "sys.exit(', '.join({'torch', 'datasets', 'pyarrow', 'numpy', 'PIL', 'pandas'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
