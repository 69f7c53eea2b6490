"""`softclip data inspect`: duplicates, signs of noise in captions against a plain count, and the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_samples import put
from scenes import changed, encoded, scene
from typer.testing import CliRunner, Result

from softclip_cli.commands.data import app
from softclip_cli.data.caption_signs import caption_signs, content_words
from softclip_cli.data.corpus import Corpus, CorpusWriter, Record, features_for
from softclip_cli.data.corpus_duplicates import corpus_duplicates
from softclip_cli.data.decisions import evaluation_splits
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.reports.corpus_page import odd_bound

PLACES = ("beach", "street", "kitchen", "meadow", "bridge", "stage", "garden")
SUBJECTS = ("dog", "child", "horse", "surfer", "bicycle", "boat", "tree", "tower", "cake", "guitar")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def lists(captions: list[list[str]]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(captions, pa.list_(pa.string()))])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["A dog.", "a DOG", "one  dog", "IMG_0032", "two big cats!", ""]), max_size=4),
        max_size=8,
    )
)
def test_counts_are_those_of_a_plain_loop(captions: list[list[str]]) -> None:
    found = caption_signs(lists(captions))
    plain = [[" ".join(re.sub(r"[^\w\s]|_", " ", text).lower().split()) for text in own] for own in captions]
    everything = [text for own in plain for text in own]
    shared = {text for text in everything if sum(text in own for own in plain) > 1}
    assert found["captions"] == len(everything)
    assert found["distinct"] == len(set(everything))
    assert found["shared"] == {"texts": len(shared), "captions": sum(text in shared for text in everything)}
    assert found["no_sentence"] == sum(text == "IMG_0032" for own in captions for text in own)


def test_content_words_are_those_that_tell_something() -> None:
    assert content_words("A dog is running near the fields.") == {"dog", "runn", "field"}


def test_the_bound_holds_for_captions_that_were_exchanged_on_purpose() -> None:
    rng = np.random.default_rng(0)
    openings = ("the", "one", "this", "that")  # no content
    images = [[f"{word} {SUBJECTS[n % 10]} {PLACES[n % 7]}" for word in openings] for n in range(600)]
    for share in (0.0, 0.1, 0.3):
        mixed = [list(own) for own in images]
        wrong = 0
        for number, own in enumerate(mixed):
            for place in range(4):
                if rng.random() < share:
                    other = int(rng.integers(600))
                    own[place] = images[other][place]
                    wrong += number % 10 != other % 10 and number % 7 != other % 7
        odd = caption_signs(lists(mixed))["odd"]
        bound = float(odd_bound(odd).rstrip("%")) / 100
        assert bound >= 0.75 * wrong / 2400  # what is wrong is seen ...
        assert bound <= share * 1.35 + 0.01  # ... and what is right is not


def test_duplicates_are_counted_with_and_without_signatures(tmp_path: Path) -> None:
    for split, name, image in (
        ("train", "a", scene(0)), ("train", "b", scene(0)), ("train", "c", changed(scene(1), "bright")),
        ("test", "d", scene(1)), ("test", "e", scene(2)),
    ):  # fmt: skip
        put(tmp_path / f"s/{split}/{name}.png", encoded(image, "PNG"))
        put(tmp_path / f"s/{split}/{name}.txt", name)
    signed = prepare(tmp_path / "s", tmp_path / "c", PrepareOptions(workers=1))
    with CorpusWriter(tmp_path / "bare") as writer:
        for split in signed.splits:
            with writer.split(split) as part:
                for row in signed.split(split).to_list():
                    part.write(Record(row["key"], row["image"]["bytes"], row["captions"]))
    for corpus in (signed, Corpus.open(tmp_path / "bare")):
        found = corpus_duplicates(corpus)
        assert {name: found[name] for name in ("images", "exact", "near", "leaks", "evaluation")} == {
            "images": 5, "exact": 1, "near": 0, "leaks": {"train": 1}, "evaluation": 0,
        }  # fmt: skip
        assert [(pair["kind"], pair["key"], pair["of_key"]) for pair in found["examples"]] == [
            ("leak", "train/c.png", "test/d.png"), ("duplicate", "train/b.png", "train/a.png"),
        ]  # fmt: skip


def test_large_corpora_without_signatures_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CorpusWriter(tmp_path / "c") as writer, writer.split("train") as part:
        for number in range(3):
            part.write(Record(str(number), encoded(scene(number)), ["x"]))
    monkeypatch.setattr("softclip_cli.data.corpus_duplicates.MOST_DECODED", 2)
    assert "prepare it again" in corpus_duplicates(Corpus.open(tmp_path / "c"))["why"]
    result = call("inspect", tmp_path / "c", "--html", tmp_path / "page.html")
    assert "duplicates: not counted" in result.stdout
    assert "Not counted: the corpus has no signatures" in (tmp_path / "page.html").read_text()


def labelled_corpus(out: Path) -> Corpus:
    """Two splits with classes, known noise, and one image of val in train."""
    import datasets

    features = features_for(class_names=["cat", "dog"], extra={"noise": datasets.Value("string")})
    with CorpusWriter(out) as writer:
        writer.info["noise"] = {"clean": 3, "mismatched": 1}
        for split, numbers in (("train", range(4)), ("val", range(3, 5))):
            with writer.split(split, features) as part:
                for number in numbers:
                    extra = {"noise": "clean" if number else "mismatched"}
                    texts = [f"picture {number}", "a thing of many sides"]
                    part.write(Record(f"k{number}", encoded(scene(number)), texts, number % 2, extra=extra))
    return Corpus.open(out)


def test_the_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    corpus = labelled_corpus(tmp_path / "c")
    result = call("inspect", corpus.path, "--html", tmp_path / "page.html", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["noise"] == {"clean": 3, "mismatched": 1}
    page = (tmp_path / "page.html").read_text()
    for text in (
        "Contact sheet",
        "noise: mismatched",
        "class dog",
        "signs of noise",
        "Known noise",
        corpus.fingerprint[:16],
    ):
        assert text in page
    assert page.count("<img ") == 6 + 2  # all samples, and the pair
    assert "src=" not in page.replace('src="data:', "")
    assert "http" not in page.replace("http://www.w3.org", "")
    assert call("inspect", corpus.path, "--html", tmp_path / "again.html").exit_code == 0
    stamp = r"softclip [\d.]+ · [\d :-]+"
    assert re.sub(stamp, "", page) == re.sub(stamp, "", (tmp_path / "again.html").read_text())


def test_captions_cannot_break_the_page(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "c") as writer, writer.split("train") as part:
        part.write(Record("<key>", encoded(scene(0)), ["<script>alert(1)</script>", "& so on"]))
    assert call("inspect", tmp_path / "c", "--html", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_splits_of_the_tasks_are_for_evaluation() -> None:
    tasks = {
        "zeroshot": {"kind": {"split": "night", "label": "label"}},
        "probe": {"kind": {"train": "probe", "test": "test"}, "fit": {"train": "train", "test": "test"}},
        "composition": {"split": "edits"},
    }
    splits = {name: {"rows": 1} for name in ("train", "more", "val", "test", "night", "probe", "edits")}
    corpus = Corpus(Path("c"), {"splits": splits, "tasks": tasks, "fingerprint": ""})
    assert evaluation_splits(corpus) == {"val", "test", "night", "probe", "edits"}
