"""`softclip data export`: tars that open_clip's own trainer reads, Parquet that `datasets` reads, the same bytes each time."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from prepare_samples import image_bytes, jpeg, put
from typer.testing import CliRunner

from softclip_cli.app import app
from softclip_cli.data.corpus import Corpus, CorpusWriter, Record, features_for
from softclip_cli.data.export import export
from softclip_cli.data.export import parquet as parquet_module
from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.data.sharded.corpus import ShardedCorpus
from softclip_cli.errors import DataError, UsageError

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two splits; images of five kinds, one to three captions, keys with dots, labels and groups."""
    path = tmp_path_factory.mktemp("corpus") / "c"
    features = features_for(class_names=["cat", "dog"], groups=True)
    with CorpusWriter(path) as writer:
        for split, count in (("train", 25), ("val", 6)):
            with writer.split(split, features) as part:
                for n in range(count):
                    image = image_bytes(n, (40, 30), KINDS[n % 5])
                    captions = [f"{split} {n} é {k}" for k in range(1 + n % 3)]
                    part.write(Record(f"a.b/{n}.jpg", image, captions, n % 2, f"g{n // 2}" if n % 4 else None))
    return Corpus.open(path)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tars_hold_every_sample_with_all_that_is_known_of_it(corpus: Corpus, tmp_path: Path) -> None:
    facts = export(corpus, tmp_path / "o", "webdataset")["splits"]
    assert facts["train"] | {"bytes": 0} == {
        "rows": 25, "samples": 25, "files": 1, "bytes": 0, "converted": 10, "without_caption": 0,
    }  # fmt: skip
    assert json.loads((tmp_path / "o" / "val" / "sizes.json").read_text()) == {"00000.tar": 6}
    with tarfile.open(tmp_path / "o" / "train" / "00000.tar") as archive:
        members = archive.getmembers()
        content = {info.name: archive.extractfile(info).read() for info in members}  # type: ignore[union-attr]
    assert {(info.mtime, info.uid, info.gid, info.uname) for info in members} == {(0, 0, 0, "")}
    rows = corpus.split("train")
    for n in range(25):
        suffix = ("jpg", "png", "webp", "png", "png")[n % 5]
        image = content[f"{n:09d}.{suffix}"]
        assert (image == rows[n]["image"]["bytes"]) == (n % 5 < 3)
        described = json.loads(content[f"{n:09d}.json"])
        assert described == {
            "key": f"a.b/{n}.jpg", "captions": rows[n]["captions"], "caption": rows[n]["captions"][0],
            "label": n % 2, "class": ("cat", "dog")[n % 2], "group": rows[n]["group"],
        }  # fmt: skip
        assert content[f"{n:09d}.txt"].decode() == rows[n]["captions"][0]
        assert content[f"{n:09d}.cls"] == str(n % 2).encode()


def test_tars_are_of_bounded_size_and_lose_nothing(corpus: Corpus, tmp_path: Path, monkeypatch) -> None:
    whole = CorpusWriter(tmp_path / "c")
    with whole as writer, writer.split("train") as part:
        for n in range(30):
            part.write(Record(str(n), image_bytes(n, (200, 200), "PNG"), [f"caption {n}"]))
    made = Corpus.open(tmp_path / "c")
    export(made, tmp_path / "o", "webdataset", shard_bytes=1 << 20)
    tars = sorted((tmp_path / "o" / "train").glob("*.tar"))
    assert len(tars) >= 3
    assert all(tar.stat().st_size <= (1 << 20) + tarfile.RECORDSIZE for tar in tars)
    sizes = json.loads((tmp_path / "o" / "train" / "sizes.json").read_text())
    assert list(sizes) == [tar.name for tar in tars]
    data = ShardedCorpus.open(str(tmp_path / "o"), tmp_path / "index").split("train")
    assert data["captions"] == [[f"caption {n}"] for n in range(30)]
    export(made, tmp_path / "p", "parquet", shard_bytes=1 << 20)
    assert len(list((tmp_path / "p" / "data").iterdir())) >= 3


@pytest.mark.parametrize("to", ["webdataset", "parquet"])
def test_the_same_corpus_gives_the_same_bytes(corpus: Corpus, tmp_path: Path, to: str) -> None:
    for name in ("one", "two"):
        export(corpus, tmp_path / name, to)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_each_caption_makes_a_sample_for_each(corpus: Corpus, tmp_path: Path) -> None:
    facts = export(corpus, tmp_path / "o", "webdataset", each_caption=True, splits=["val"])["splits"]
    assert facts["val"]["samples"] == sum(1 + n % 3 for n in range(6))
    data = ShardedCorpus.open(str(tmp_path / "o"), tmp_path / "index").split("train")
    assert data["captions"] == [[f"val {n} é {k}"] for n in range(6) for k in range(1 + n % 3)]


@pytest.mark.parametrize("to", ["webdataset", "parquet"])
def test_what_was_exported_prepares_to_the_same_records(corpus: Corpus, tmp_path: Path, to: str) -> None:
    export(corpus, tmp_path / "o", to)
    options = {} if to == "webdataset" else {"group_column": "group"}
    again = prepare(tmp_path / "o", tmp_path / "c", PrepareOptions(workers=1, min_side=1, **options))
    for split in ("train", "val"):
        before, after = corpus.split(split), again.split(split)
        assert after["captions"][:] == before["captions"][:]
        assert after["label"][:] == before["label"][:]
        if to == "parquet":
            assert [row["image"]["bytes"] for row in after] == [row["image"]["bytes"] for row in before]
            assert after["key"][:] == before["key"][:]
            assert after["group"][:] == before["group"][:]


def test_datasets_loads_the_parquet_files_with_images_and_class_names(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(parquet_module, "GROUP_ROWS", 7)
    monkeypatch.setattr(parquet_module, "READ_ROWS", 7)
    export(corpus, tmp_path / "o", "parquet")
    files = sorted(path.name for path in (tmp_path / "o" / "data").iterdir())
    assert files == ["train-00000-of-00001.parquet", "val-00000-of-00001.parquet"]
    assert pq.ParquetFile(tmp_path / "o" / "data" / files[0]).num_row_groups == 4
    loaded = datasets.load_dataset(str(tmp_path / "o"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 25, "val": 6}
    assert loaded["train"].features["label"].names == ["cat", "dog"]
    row = loaded["train"][7]
    assert row["image"].size == (40, 30)
    assert row["captions"] == ["train 7 é 0", "train 7 é 1"]


def test_splits_of_other_columns_are_configurations_of_their_own(tmp_path: Path) -> None:
    import datasets

    with CorpusWriter(tmp_path / "c") as writer:
        for name, features in (("train", features_for()), ("test", features_for(class_names=["x", "y"]))):
            with writer.split(name, features) as part:
                part.write(Record("a", jpeg(), ["x"], label=0))
    export(Corpus.open(tmp_path / "c"), tmp_path / "o", "parquet")
    cache = str(tmp_path / "cache")
    assert list(datasets.load_dataset(str(tmp_path / "o"), "default", cache_dir=cache)) == ["train"]
    assert datasets.load_dataset(str(tmp_path / "o"), "test", cache_dir=cache)["test"].features["label"].names == [
        "x",
        "y",
    ]


def test_open_clip_s_own_trainer_reads_the_tars(corpus: Corpus, tmp_path: Path) -> None:
    """Its data pipeline, as it stands: the number of samples from sizes.json, images and first captions."""
    webdataset = pytest.importorskip("webdataset", minversion="0.2")
    if int(webdataset.__version__.split(".")[0]) >= 1:
        pytest.skip("open_clip 3.3 breaks with webdataset >= 1")
    data = pytest.importorskip("open_clip_train.data")
    export(corpus, tmp_path / "o", "webdataset")
    tars = f"{tmp_path}/o/train/{{00000..00000}}.tar"
    assert data.get_dataset_size(tars) == (25, 1)
    arguments = SimpleNamespace(
        train_data=tars, val_data=tars, train_num_samples=None, val_num_samples=25, dataset_resampled=False,
        train_data_upsampling_factors=None, seed=0, workers=1, world_size=1, batch_size=5,
    )  # fmt: skip
    texts: list[str] = []

    def tokenizer(text: str) -> list[int]:
        texts.append(text)
        return [len(text)]

    # Evaluation order is the files' order; in this process, so that the texts can be seen.
    arguments.workers = 0
    loader = data.get_wds_dataset(arguments, lambda image: image.size, is_train=False, tokenizer=tokenizer).dataloader
    sizes = [tuple(size) for images, _ in loader for size in images]
    assert texts == [captions[0] for captions in corpus.split("train")["captions"]]
    assert set(sizes) == {(40, 30)}
    arguments.workers = 1
    train = data.get_wds_dataset(arguments, lambda image: image.size, is_train=True, tokenizer=tokenizer)
    assert train.dataloader.num_samples == 25
    assert sum(len(batch[1]) for batch in train.dataloader) == 25


def test_signatures_stay_behind(tmp_path: Path) -> None:
    put(tmp_path / "s" / "a.jpg", jpeg())
    put(tmp_path / "s" / "a.txt", "x")
    made = prepare(tmp_path / "s", tmp_path / "c", PrepareOptions(workers=1))
    assert "signature" in made.split("train").column_names
    export(made, tmp_path / "o", "parquet")
    assert pq.read_schema(next((tmp_path / "o" / "data").iterdir())).names == ["key", "image", "captions"]


def test_images_without_captions_are_written_and_counted(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "c") as writer, writer.split("test", features_for(class_names=["x", "y"])) as part:
        part.write(Record("a", jpeg(), [], label=1))
    facts = export(Corpus.open(tmp_path / "c"), tmp_path / "o", "webdataset")["splits"]["test"]
    assert facts["without_caption"] == 1
    with tarfile.open(tmp_path / "o" / "test" / "00000.tar") as archive:
        assert archive.getnames() == ["000000000.cls", "000000000.jpg", "000000000.json"]


def test_the_output_is_protected(corpus: Corpus, tmp_path: Path) -> None:
    put(tmp_path / "mine" / "thesis.txt", "years of work")
    with pytest.raises(DataError, match="is not an export"):
        export(corpus, tmp_path / "mine", "parquet", overwrite=True)
    export(corpus, tmp_path / "o", "webdataset")
    with pytest.raises(DataError, match="--overwrite"):
        export(corpus, tmp_path / "o", "parquet")
    export(corpus, tmp_path / "o", "parquet", overwrite=True)
    assert (tmp_path / "o" / "README.md").is_file()
    assert not (tmp_path / "o" / "train").exists()
    with pytest.raises(DataError, match="no split"):
        export(corpus, tmp_path / "p", "parquet", splits=["trian"])
    with pytest.raises(UsageError, match="unknown format 'parket'"):
        export(corpus, tmp_path / "p", "parket")
    with pytest.raises(UsageError, match="--each-caption"):
        export(corpus, tmp_path / "p", "parquet", each_caption=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "o"]


def test_the_command_says_what_it_made_and_how_to_go_on(corpus: Corpus, tmp_path: Path) -> None:
    arguments = ["data", "export", str(corpus.path), str(tmp_path / "o"), "--to", "webdataset"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "images of kinds that open_clip does not read, now PNG: 12" in result.stdout
    assert "softclip train --data" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--overwrite", "--json", "--split", "val"])
    assert json.loads(result.stdout)["splits"]["val"]["rows"] == 6
    assert CliRunner().invoke(app, arguments).exit_code == 3
