"""The prepared corpus: what is written is read back, whole or not at all, by softclip and by plain `datasets`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prepare_samples import jpeg

from softclip_cli.data import corpus as corpus_module
from softclip_cli.data import split_writer
from softclip_cli.data.corpus import Corpus, CorpusWriter, Record, features_for
from softclip_cli.errors import DataError


def write(out: Path, count: int = 5, **options: bool) -> Corpus:
    with CorpusWriter(out, **options) as writer, writer.split("train") as split:
        for number in range(count):
            split.write(Record(str(number), jpeg(number), [f"caption {number}", "another"]))
    return Corpus.open(out)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    features = features_for(class_names=["cat", "dog"], groups=True)
    with CorpusWriter(tmp_path / "c") as writer, writer.split("test", features) as split:
        split.write(Record("a", jpeg(1), ["x", "y"], label=1, group="g"))
        split.write(Record("b", jpeg(2), [], label=None))
    row, bare = Corpus.open(tmp_path / "c").split("test").to_list()
    assert row == {
        "key": "a", "image": {"bytes": jpeg(1), "path": None}, "captions": ["x", "y"], "label": 1, "group": "g",
    }  # fmt: skip
    assert (bare["captions"], bare["label"], bare["group"]) == ([], None, None)


def test_plain_datasets_reads_the_folder(tmp_path: Path) -> None:
    import datasets

    write(tmp_path / "c")
    loaded = datasets.load_from_disk(str(tmp_path / "c"))
    assert isinstance(loaded, datasets.DatasetDict)
    assert loaded["train"][3]["captions"] == ["caption 3", "another"]
    assert loaded["train"][3]["image"].size == (24, 16)


def test_shards_and_batches_keep_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "BATCH_BYTES", 2000)
    monkeypatch.setattr(split_writer, "SHARD_BYTES", 6000)
    corpus = write(tmp_path / "c", 40)
    assert len(list((tmp_path / "c" / "train").glob("*.arrow"))) > 3
    assert [row["key"] for row in corpus.split("train")] == [str(number) for number in range(40)]


def test_several_splits_may_be_open_and_are_listed_in_closing_order(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "c") as writer:
        first, second = writer.open_split("test"), writer.open_split("train")
        first.write(Record("a", jpeg(), ["x"]))
        second.write(Record("b", jpeg(), ["y"]))
        first.write(Record("c", jpeg(), ["z"]))
        writer.close_split("train")
        writer.close_split("test")
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.splits == ["train", "test"]
    assert corpus.split("test")["key"][:] == ["a", "c"]


def test_an_empty_split_can_be_read(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "c") as writer, writer.split("train"):
        pass
    assert len(Corpus.open(tmp_path / "c").split("train")) == 0


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    same = [write(tmp_path / name).fingerprint for name in ("a", "b")]
    assert same[0] == same[1] != write(tmp_path / "c", 4).fingerprint


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), CorpusWriter(tmp_path / "c") as writer, writer.split("train") as split:
        split.write(Record("a", jpeg(), ["x"]))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_corpus(tmp_path: Path) -> None:
    before = write(tmp_path / "c").fingerprint
    with (
        pytest.raises(KeyboardInterrupt),
        CorpusWriter(tmp_path / "c", overwrite=True) as writer,
        writer.split("train"),
    ):
        raise KeyboardInterrupt
    assert Corpus.open(tmp_path / "c").fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_overwrite_replaces_only_a_corpus_and_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "c")
    with pytest.raises(DataError, match="already holds a corpus"):
        write(tmp_path / "c")
    assert len(write(tmp_path / "c", 3, overwrite=True).split("train")) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not a corpus"):
        write(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"splits": 3}', '{"other": "tool"}', "\xff"])
def test_a_foreign_or_damaged_corpus_json_is_a_data_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "corpus.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError):
        Corpus.open(tmp_path)


def test_missing_folders_splits_and_newer_formats_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus at"):
        Corpus.open(tmp_path / "nowhere")
    corpus = write(tmp_path / "c")
    with pytest.raises(DataError, match=r"(?s)no split 'trian'.*Did you mean 'train'"):
        corpus.split("trian")
    info = json.loads((tmp_path / "c" / "corpus.json").read_text())
    (tmp_path / "c" / "corpus.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(DataError, match="newer softclip"):
        Corpus.open(tmp_path / "c")


def test_a_damaged_split_is_a_data_error(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c")
    (tmp_path / "c" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        corpus.split("train")
