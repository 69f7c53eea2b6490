"""`softclip data prepare --dedup` and `--against`: which rows stay, which captions, groups and leaks; the same for any workers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prepare_samples import put, rows
from scenes import changed, encoded, scene
from typer.testing import CliRunner, Result

from softclip_cli.commands.data import app
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.leaks import read_leaks
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.data.signature import COLUMN, sign
from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation.protected import protected_set


def run(source: Path, out: Path, **options: object) -> Corpus:
    against = options.pop("against", ())
    return prepare(source, out, PrepareOptions(**{"workers": 1, **options}), against=against)  # type: ignore[arg-type]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def source(root: Path) -> Path:
    """Four different pictures in train; a copy, a near-duplicate, a copy of a near-duplicate; one of test's in train."""
    for number in range(4):
        put(root / f"train/a{number}.png", encoded(scene(number), "PNG"))
        put(root / f"train/a{number}.txt", f"picture {number}\n")
    put(root / "train/b0.bmp", encoded(scene(0), "BMP"))
    put(root / "train/b0.txt", "picture 0\nsaid in another way\n")
    put(root / "train/b1.jpg", encoded(changed(scene(1), "cropped"), quality=90))
    put(root / "train/b1.txt", "nearly picture 1")
    put(root / "train/b2.jpg", encoded(changed(scene(9), "small"), quality=90))
    put(root / "train/b2.txt", "seen in the test")
    for number in (8, 9):
        put(root / f"test/t{number}.png", encoded(scene(number), "PNG"))
        put(root / f"test/t{number}.txt", f"test {number}")
    put(root / "test/t9b.png", encoded(scene(9), "PNG"))
    put(root / "test/t9b.txt", "test 9 again")
    return root


def reasons(corpus: Corpus) -> dict[str, tuple[str, str, str]]:
    table = pq.read_table(corpus.path / "dropped.parquet").to_pylist()
    return {Path(row["key"]).stem: (row["split"], row["reason"], row["detail"]) for row in table}


def keys(corpus: Corpus, split: str = "train") -> list[str]:
    return [Path(row["key"]).stem for row in rows(corpus, split)]


def test_keep_changes_nothing_and_stores_signatures(tmp_path: Path) -> None:
    corpus = run(source(tmp_path / "s"), tmp_path / "c")
    assert keys(corpus) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2"]
    assert "duplicates" not in corpus.info
    for row in rows(corpus):
        assert row[COLUMN] == sign(row["image"]["bytes"])


def test_drop_leaves_later_ones_out_says_why_and_keeps_the_captions_of_copies(tmp_path: Path) -> None:
    corpus = run(source(tmp_path / "s"), tmp_path / "c", dedup="drop")
    assert keys(corpus) == ["a0", "a1", "a2", "a3"]
    assert keys(corpus, "test") == ["t8", "t9", "t9b"]
    found = reasons(corpus)
    assert found["b0"] == ("train", "duplicate-image", "the same pixels as train/train/a0.png")
    assert found["b1"][1] == "near-duplicate-image"
    assert found["b1"][2].endswith("as train/train/a1.png")
    assert found["b2"][1] == "leaked-image"
    assert "test/test/t9.png" in found["b2"][2]
    captions = {Path(row["key"]).stem: row["captions"] for row in rows(corpus)}
    assert captions["a0"] == ["picture 0", "said in another way"]
    assert captions["a1"] == ["picture 1"]
    info = corpus.info
    assert info["splits"]["train"] == {"rows": 4, "captions": 5}
    assert (info["counts"]["records"], info["counts"]["captions"], info["counts"]["merged_captions"]) == (7, 8, 1)
    assert info["dropped"]["left_out"] == {"duplicate-image": 1, "near-duplicate-image": 1, "leaked-image": 1}
    assert info["dropped"]["records"] == 0  # a choice, not a broken record
    expected = {"exact": 1, "near": 1, "own_leaks": 1, "within_evaluation_splits": 1}
    assert {name: info["duplicates"][name] for name in expected} == expected
    assert [(leak.key, leak.of_set, leak.removed) for leak in read_leaks(corpus.path)] == [
        ("train/b2.jpg", "the test split", True)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "s"]  # nothing of the first pass is left


def test_group_makes_positives_of_each_other(tmp_path: Path) -> None:
    corpus = run(source(tmp_path / "s"), tmp_path / "c", dedup="group")
    assert len(keys(corpus)) == 7
    groups = {Path(row["key"]).stem: row["group"] for row in rows(corpus)}
    assert groups["a0"] == groups["b0"] is not None
    assert groups["a1"] == groups["b1"] not in (None, groups["a0"])
    assert groups["a2"] is groups["a3"] is groups["b2"] is None
    assert {row["group"] for row in rows(corpus, "test")} == {None}
    assert not read_leaks(corpus.path)[0].removed
    from softclip_cli.data.batches import group_ids

    ids = group_ids(corpus.split("train")).tolist()
    assert ids[0] == ids[4]
    assert len(set(ids)) == 5


def test_groups_of_the_source_are_united_by_duplicates(tmp_path: Path) -> None:
    lines = ["image,caption,product"]
    for name, picture, product in (
        ("0", 0, "p"),
        ("1", 1, "p"),
        ("2", 0, "q"),
        ("3", 3, "q"),
        ("4", 4, "r"),
        ("5", 5, ""),
    ):
        put(tmp_path / f"s/{name}.png", encoded(scene(picture), "PNG"))
        lines.append(f"{name}.png,c{name},{product}")
    put(tmp_path / "s/t.csv", "\n".join(lines))
    corpus = run(tmp_path / "s/t.csv", tmp_path / "c", dedup="group", group_column="product")
    groups = [row["group"] for row in rows(corpus)]
    assert len(set(groups[:4])) == 1  # p and q are one: pictures 0 and 2 are copies
    assert groups[4] == "r" not in groups[:4]


@pytest.mark.parametrize("dedup", ["drop", "group"])
def test_the_corpus_does_not_depend_on_the_workers(tmp_path: Path, dedup: str) -> None:
    source(tmp_path / "s")
    one = run(tmp_path / "s", tmp_path / "one", dedup=dedup, workers=1)
    two = run(tmp_path / "s", tmp_path / "two", dedup=dedup, workers=2)
    assert one.fingerprint == two.fingerprint
    assert (one.path / "dropped.parquet").read_bytes() == (two.path / "dropped.parquet").read_bytes()


def test_resized_images_are_signed_as_they_are_stored_in_memory(tmp_path: Path) -> None:
    corpus = run(source(tmp_path / "s"), tmp_path / "c", dedup="drop", short_side=60)
    assert keys(corpus) == ["a0", "a1", "a2", "a3"]
    assert reasons(corpus)["b0"][1] == "duplicate-image"


def test_against_a_folder_a_corpus_and_one_of_its_splits(tmp_path: Path) -> None:
    source(tmp_path / "s")
    put(tmp_path / "plain/deep/x.jpg", encoded(changed(scene(2), "bright"), quality=90))
    put(tmp_path / "plain/broken.jpg", "no image")
    other = run(source(tmp_path / "s"), tmp_path / "other")
    corpus = run(tmp_path / "s", tmp_path / "c", against=[protected_set(str(tmp_path / "plain"))])
    assert keys(corpus) == ["a0", "a1", "a3", "b0", "b1", "b2"]
    assert reasons(corpus)["a2"][2].endswith(f"deep/x.jpg of {tmp_path / 'plain'}")
    assert corpus.info["duplicates"]["against"] == {str(tmp_path / "plain"): 1}
    # A corpus stands for its splits but train, and its signatures are at hand.
    whole = protected_set(str(other.path))
    assert len(whole.images) == len(whole.signatures or ()) == 3
    assert keys(run(tmp_path / "s", tmp_path / "d", against=[whole])) == ["a0", "a1", "a2", "a3", "b0", "b1"]
    train = protected_set(f"{other.path}:train")
    assert train.images.key(4) == "train/b0.bmp"
    with pytest.raises(DataError, match="no split 'dev'"):
        protected_set(f"{other.path}:dev")
    both = run(tmp_path / "s", tmp_path / "e", dedup="drop", against=[protected_set(str(tmp_path / "plain")), whole])
    assert keys(both) == ["a0", "a1", "a3"]
    assert {leak.of_set for leak in read_leaks(both.path)} == {str(tmp_path / "plain"), str(other.path)}


def test_against_class_folders_leaves_their_train_alone(tmp_path: Path) -> None:
    for split, number in (("train", 0), ("test", 1)):
        for name in ("cat", "dog"):
            put(tmp_path / f"set/{split}/{name}/x.png", encoded(scene(number), "PNG"))
    assert len(protected_set(str(tmp_path / "set")).images) == 2
    corpus = run(source(tmp_path / "s"), tmp_path / "c", against=[protected_set(str(tmp_path / "set"))])
    assert keys(corpus) == ["a0", "a2", "a3", "b0", "b2"]  # a1 and its near-duplicate b1 are in the test split


def test_where_everything_leaks_nothing_is_written(tmp_path: Path) -> None:
    put(tmp_path / "s/x.png", encoded(scene(0), "PNG"))
    put(tmp_path / "s/x.txt", "x")
    with pytest.raises(DataError, match="no image is left"):
        run(tmp_path / "s", tmp_path / "c", against=[protected_set(str(tmp_path / "s"))])
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_corpus_in_the_way_is_noticed_before_the_work(tmp_path: Path) -> None:
    put(tmp_path / "c/corpus.json", "{}")
    with pytest.raises(DataError, match="already holds a corpus"):
        run(source(tmp_path / "s"), tmp_path / "c", dedup="drop")
    with pytest.raises(UsageError, match="--dedup maybe"):
        PrepareOptions(dedup="maybe")


def test_the_command_tells_and_draws_the_leaks(tmp_path: Path) -> None:
    put(tmp_path / "data/mine/x.jpg", encoded(changed(scene(3), "small"), quality=90))
    result = call(
        "prepare",
        source(tmp_path / "s"),
        tmp_path / "c",
        "-j",
        1,
        "--dedup",
        "drop",
        "--against",
        tmp_path / "data/mine",
    )
    assert result.exit_code == 0, result.output
    assert "duplicates left out: 1 of the same pixels, 1 near-duplicates" in result.stdout
    assert f"training images of {tmp_path / 'data/mine'}: 1, left out" in result.stdout
    page = (tmp_path / "c/leaks.html").read_text()
    assert "2 training images show the same picture" in page
    assert page.count("<img ") == 4
    assert "http" not in page.replace("http://www.w3.org", "")
    unknown = call("prepare", tmp_path / "s", tmp_path / "d", "--against", "imagnet")
    assert unknown.exit_code == 3
    assert "imagenet" in unknown.stderr
    kept = call("prepare", tmp_path / "s", tmp_path / "d", "-j", 1, "--dedup", "group", "--json")
    assert json.loads(kept.stdout)["duplicates"]["groups"] == 2
    assert "still in the corpus: <code>--dedup drop</code>" in (tmp_path / "d/leaks.html").read_text()


def test_a_second_pass_that_was_cut_off_goes_on_from_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are not read again, the result is that of an uninterrupted run, and nothing is left beside it."""
    from softclip_cli.data import settle

    where, options = source(tmp_path / "src"), PrepareOptions(workers=1, dedup="drop")
    whole = prepare(where, tmp_path / "whole", options)

    class Killed(BaseException):
        pass

    def killed(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(settle._Settle, "write", killed)
        prepare(where, tmp_path / "cut", options)
    said: list[str] = []
    again = prepare(where, tmp_path / "cut", options, note=said.append)
    assert "the records were read by an earlier run" in said
    assert again.fingerprint == whole.fingerprint
    assert (again.path / "dropped.parquet").read_bytes() == (whole.path / "dropped.parquet").read_bytes()
    assert {path.name for path in tmp_path.iterdir() if path.name not in ("data", "runs", "cache")} == {
        "src",
        "whole",
        "cut",
    }
