"""Sources: each form of data is recognised, and yields the records that are in it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_samples import image_bytes, jpeg, pairs_folder, put
from tar_samples import member, put_tar

from softclip_cli.data.sources import SOURCES, open_source
from softclip_cli.data.sources.base import Candidate, Dropped, Source, SourceOptions, split_name
from softclip_cli.data.sources.readers import BadRow, CsvReader, Row
from softclip_cli.errors import DataError, UsageError


def items(source: Source) -> list[Candidate | Dropped]:
    return [item for part in source.parts for item in part.records()]


def records(path: Path | str, **options: object) -> list[Candidate]:
    found = items(open_source(str(path), SourceOptions(**options)))  # type: ignore[arg-type]
    assert all(isinstance(item, Candidate) for item in found), found
    return found  # type: ignore[return-value]


def captions_of(path: Path | str, **options: object) -> dict[str, list[str]]:
    return {item.key: item.captions for item in records(path, **options)}


def images(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        put(root / name, jpeg(number))


# Folders of pairs


def test_pairs_are_found_at_every_depth_with_text_or_json(tmp_path: Path) -> None:
    put(tmp_path / "a.JPG", jpeg())
    put(tmp_path / "a.txt", "x")
    put(tmp_path / "deep/er/b.png", image_bytes(1, (8, 8), "PNG"))
    put(tmp_path / "deep/er/b.json", '{"caption": "y"}')
    put(tmp_path / "README.txt", "about this folder")
    put(tmp_path / ".hidden/c.jpg", jpeg())
    source = open_source(str(tmp_path), SourceOptions())
    assert source.format == "pairs"
    assert "a.JPG has a.txt beside it" in source.reason
    found = [(item.key, item.captions) for item in items(source)]
    assert found == [("a.JPG", tmp_path / "a.txt"), ("deep/er/b.png", tmp_path / "deep/er/b.json")]
    assert source.parts[0].total == 2


def test_pairs_without_a_partner_are_reported(tmp_path: Path) -> None:
    pairs_folder(tmp_path, 2)
    put(tmp_path / "lonely.jpg", jpeg())
    put(tmp_path / "orphan.txt", "no image")
    found = [
        (item.key, item.reason)
        for item in items(open_source(str(tmp_path), SourceOptions()))
        if isinstance(item, Dropped)
    ]
    assert found == [("lonely.jpg", "no-caption-file"), ("orphan.txt", "no-image-file")]


def test_folders_named_as_splits_become_splits(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "train", 2)
    pairs_folder(tmp_path / "validation", 1)
    assert [(item.key, item.split) for item in records(tmp_path)] == [
        ("train/0.jpg", "train"), ("train/1.jpg", "train"), ("validation/0.jpg", "validation"),
    ]  # fmt: skip
    pairs_folder(tmp_path / "more", 1)
    assert {item.split for item in records(tmp_path)} == {None}


def test_links_are_followed_once(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "real", 2)
    (tmp_path / "real" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(records(tmp_path)) == 2


# Class folders


def test_class_folders(tmp_path: Path) -> None:
    images(tmp_path, "dog/1.jpg", "cat/1.jpg", "cat/2.jpg")
    source = open_source(str(tmp_path), SourceOptions())
    assert (source.format, source.class_names, source.has_captions) == ("classes", ["cat", "dog"], False)
    assert [(item.key, item.label) for item in items(source)] == [("cat/1.jpg", 0), ("cat/2.jpg", 0), ("dog/1.jpg", 1)]


def test_domains_of_the_same_classes_become_splits(tmp_path: Path) -> None:
    images(tmp_path, "photo/dog/1.jpg", "photo/cat/1.jpg", "sketch/dog/1.jpg", "sketch/cat/1.jpg")
    source = open_source(str(tmp_path), SourceOptions())
    assert source.class_names == ["cat", "dog"]
    assert [(part.split, part.total) for part in source.parts] == [("photo", 2), ("sketch", 2)]
    assert [(item.key, item.split, item.label) for item in items(source)][1:3] == [
        ("photo/dog/1.jpg", "photo", 1), ("sketch/cat/1.jpg", "sketch", 0),
    ]  # fmt: skip


def test_a_hierarchy_of_classes_is_not_taken_for_domains(tmp_path: Path) -> None:
    images(tmp_path, "animal/dog/1.jpg", "animal/cat/1.jpg", "vehicle/car/1.jpg")
    source = open_source(str(tmp_path), SourceOptions())
    assert source.class_names == ["animal/cat", "animal/dog", "vehicle/car"]
    assert not source.has_splits


def test_class_names_set_the_numbers(tmp_path: Path) -> None:
    images(tmp_path, "dog/1.jpg", "cat/1.jpg")
    assert [item.label for item in records(tmp_path, class_names=("dog", "fox", "cat"))] == [2, 0]
    with pytest.raises(UsageError, match="dog"):
        open_source(str(tmp_path), SourceOptions(class_names=("cat",)))


# Tables


def test_csv_with_quotes_newlines_and_commas(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    put(tmp_path / "t.csv", 'image,caption\na.jpg,"one, ""quoted""\nand broken"\nb.jpg,plain\n')
    assert captions_of(tmp_path / "t.csv") == {"a.jpg": ['one, "quoted"\nand broken'], "b.jpg": ["plain"]}


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(max_examples=100, deadline=None)
@given(table=st.lists(st.tuples(cell, cell), min_size=1, max_size=10), delimiter=st.sampled_from(",\t;|"))
def test_csv_reader_reads_what_python_writes(
    tmp_path_factory: pytest.TempPathFactory, table: list, delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("image", "caption"), *table])
    assert [row.values for row in CsvReader(path).rows(["image", "caption"])] == table


def test_an_unclosed_quote_spoils_only_its_row(tmp_path: Path) -> None:
    lines = ["image,caption", "0.jpg,fine", '1.jpg,"never closed', *(f"{n}.jpg,caption {n}" for n in range(2, 500))]
    path = put(tmp_path / "t.csv", "\n".join(lines) + "\n")
    found = list(CsvReader(path).rows(["image", "caption"]))
    assert [item.number for item in found if isinstance(item, BadRow)] == [3]
    assert [item.values for item in found if isinstance(item, Row)] == [
        (f"{n}.jpg", "fine" if n == 0 else f"caption {n}") for n in range(500) if n != 1
    ]
    assert [item.number for item in found] == list(range(2, 502))


def test_rows_of_the_wrong_width_are_reported_with_their_line(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg")
    put(tmp_path / "t.csv", "image,caption\na.jpg,x\nb.jpg,too,many\nc.jpg\n")
    bad = [item for item in items(open_source(str(tmp_path / "t.csv"), SourceOptions())) if isinstance(item, Dropped)]
    assert [item.key for item in bad] == ["t.csv:3", "t.csv:4"]
    assert "line 3 of t.csv has 3 fields, its header names 2" in bad[0].detail


def test_rows_of_one_image_become_one_record_wherever_they_stand(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    put(tmp_path / "t.csv", "image,caption\na.jpg,a1\na.jpg,a2\nb.jpg,b1\na.jpg,a3\nc.jpg,c1\nb.jpg,b2\n")
    source = open_source(str(tmp_path / "t.csv"), SourceOptions())
    for _ in range(2):  # parts can be read again
        assert [(item.key, item.captions) for item in items(source)] == [
            ("a.jpg", ["a1", "a2", "a3"]), ("b.jpg", ["b1", "b2"]), ("c.jpg", ["c1"]),
        ]  # fmt: skip
    assert source.parts[0].total == 3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["x", "y", "z"])), min_size=1, max_size=20))
def test_grouping_equals_a_dictionary(tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str]]) -> None:
    path = put(tmp_path_factory.mktemp("t") / "t.csv", "image,caption\n" + "".join(f"{a}.jpg,{b}\n" for a, b in table))
    expected: dict[str, list[str]] = {}
    for image, caption in table:
        expected.setdefault(f"{image}.jpg", []).append(caption)
    assert list(captions_of(path).items()) == list(expected.items())


def test_one_image_in_two_splits_stays_two_records(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", "image,caption,split\na.jpg,x,train\na.jpg,y,test\n")
    assert [(item.split, item.captions) for item in records(tmp_path / "t.csv")] == [("train", ["x"]), ("test", ["y"])]


@pytest.mark.parametrize(
    ("header", "image", "captions"),
    [
        ("filepath,title", "filepath", ["title"]),
        ("id,image_path,caption", "image_path", ["caption"]),
        ("image,file_name,text", "file_name", ["text"]),  # the column of file names beats the name `image`
        ("img,caption_0,caption_1,caption_2", "img", ["caption_0", "caption_1", "caption_2"]),
        ("Image Name,Comment", "Image Name", ["Comment"]),
        ("datei,beschreibung", "datei", ["beschreibung"]),
    ],
)
def test_columns_are_guessed(tmp_path: Path, header: str, image: str, captions: list[str]) -> None:
    names = header.split(",")
    row = ["17" if name != image else "a.jpg" for name in names]
    put(tmp_path / "t.csv", f"{header}\n{','.join(row)}\n")
    source = open_source(str(tmp_path / "t.csv"), SourceOptions())
    assert source.choices["image_column"] == image
    assert source.choices["caption_columns"] == captions
    assert any(f"image column: {image!r} (" in note for note in source.notes)


def test_wrong_columns_are_usage_errors_that_name_the_nearest_and_all(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "filepath,title\na.jpg,x\n")
    with pytest.raises(UsageError) as caught:
        open_source(str(path), SourceOptions(caption_columns=("titel",)))
    assert "'titel' (--caption-column)" in caught.value.what
    assert caught.value.why == "its columns: filepath, title"
    assert caught.value.hint == "Did you mean 'title'?"
    with pytest.raises(UsageError, match=r"(?s)'fil' \(--image-column\).*'tile' \(--caption-column\)"):
        open_source(str(path), SourceOptions(image_column="fil", caption_columns=("tile",)))


def test_a_table_without_captions_or_images_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)no image column.*--image-column"):
        open_source(str(put(tmp_path / "a.csv", "x,y\n1,2\n")), SourceOptions())
    with pytest.raises(UsageError, match=r"(?s)no caption column.*--caption-column"):
        open_source(str(put(tmp_path / "b.csv", "image,x,y\na.jpg,1,2\n")), SourceOptions())


def test_tsv_and_json_lines(tmp_path: Path) -> None:
    put(tmp_path / "t.tsv", "filepath\ttitle\na.jpg\tone, two\n")
    assert captions_of(tmp_path / "t.tsv") == {"a.jpg": ["one, two"]}
    lines = [{"image": "a.jpg", "captions": ["x", "y"]}, {"image": "b.jpg", "captions": "z"}, {"image": "c.jpg"}]
    text = "\n".join(json.dumps(line) for line in lines)
    put(tmp_path / "t.jsonl", text + '\n{"image": broken\n[1]\n')
    found = items(open_source(str(tmp_path / "t.jsonl"), SourceOptions()))
    assert [item.captions for item in found if isinstance(item, Candidate)] == [["x", "y"], ["z"], []]
    assert [item.key for item in found if isinstance(item, Dropped)] == ["t.jsonl:4", "t.jsonl:5"]


def test_several_caption_columns_and_all_other_columns(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", "p,c1,c2,g,s,k,l\na.jpg,x,y,g1,dev,k1,cat\nb.jpg,z,,g1,train,k2,dog\n")
    found = records(
        tmp_path / "t.csv", image_column="p", caption_columns=("c1", "c2"), group_column="g", split_column="s",
        key_column="k", label_column="l",
    )  # fmt: skip
    assert [(r.key, r.captions, r.group, r.split, r.label) for r in found] == [
        ("k1", ["x", "y"], "g1", "val", 0), ("k2", ["z", ""], "g1", "train", 1),
    ]  # fmt: skip


def test_image_folder_is_found_below_the_table(tmp_path: Path) -> None:
    images(tmp_path / "data" / "Images", "a.jpg", "b.jpg")
    put(tmp_path / "captions.csv", "image,caption\na.jpg,x\nb.jpg,y\n")
    found = records(tmp_path)
    assert [item.image for item in found] == [tmp_path / "data" / "Images" / name for name in ("a.jpg", "b.jpg")]
    elsewhere = records(tmp_path, image_root=tmp_path / "data")
    assert elsewhere[0].image == tmp_path / "data" / "a.jpg"


def test_a_folder_with_a_table_a_split(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", "image,caption\na.jpg,x\n")
    put(tmp_path / "valid.csv", "image,caption\nb.jpg,y\n")
    assert [(item.key, item.split) for item in records(tmp_path)] == [("a.jpg", "train"), ("b.jpg", "val")]
    put(tmp_path / "other.csv", "image,caption\n")
    with pytest.raises(DataError, match="several tables"):
        open_source(str(tmp_path), SourceOptions())


def test_addresses_on_the_web_and_missing_images_are_reported(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", "image,caption\nhttps://example.org/a.jpg,x\n,y\n,z\n")
    found = items(open_source(str(tmp_path / "t.csv"), SourceOptions(image_column="image")))
    assert [item.reason for item in found if isinstance(item, Dropped)] == ["image-is-a-url", "no-image", "no-image"]


def test_encodings_by_byte_order_mark_and_by_option(tmp_path: Path) -> None:
    text = "image,caption\na.jpg,Mädchen läuft\n"
    for name, codec in (("utf8", "utf-8-sig"), ("utf16", "utf-16")):
        path = put(tmp_path / f"{name}.csv", text.encode(codec))
        assert captions_of(path) == {"a.jpg": ["Mädchen läuft"]}
    path = put(tmp_path / "latin.csv", text.encode("latin-1"))
    assert captions_of(path, encoding="latin-1") == {"a.jpg": ["Mädchen läuft"]}
    with pytest.raises(UsageError, match="no such text encoding"):
        open_source(str(path), SourceOptions(encoding="klingon"))


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
        (["0", "2", "1"], ["0", "1", "2"], [0, 2, 1]),
        (["10", "9", "10"], ["9", "10"], [1, 0, 1]),
    ],
)
def test_labels_of_text_tables_are_numbered(
    tmp_path: Path, values: list[str], names: list[str], numbers: list[int]
) -> None:
    put(tmp_path / "t.csv", "image,label\n" + "".join(f"{n}.jpg,{value}\n" for n, value in enumerate(values)))
    source = open_source(str(tmp_path / "t.csv"), SourceOptions())
    assert source.class_names == names
    assert [item.label for item in items(source)] == numbers
    assert not source.has_captions


def test_class_names_number_text_labels_and_unknown_ones_are_reported(tmp_path: Path) -> None:
    put(tmp_path / "t.csv", "image,label\na.jpg,dog\nb.jpg,fox\nc.jpg,\n")
    found = items(open_source(str(tmp_path / "t.csv"), SourceOptions(class_names=("cat", "dog"))))
    assert isinstance(found[0], Candidate)
    assert found[0].label == 1
    assert [item.reason for item in found[1:]] == ["unknown-label", "no-label"]  # type: ignore[union-attr]


# Parquet and `datasets`


def hub_table(count: int, start: int = 0) -> dict[str, list]:
    return {
        "img": [{"bytes": image_bytes(start + n, (8, 8), "PNG"), "path": f"{start + n}.png"} for n in range(count)],
        "label": [n % 2 for n in range(count)],
    }


def test_parquet_with_bytes_and_paths(tmp_path: Path) -> None:
    table = pa.table({"image": [jpeg(1), jpeg(2)], "caption": ["x", "y"]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = records(tmp_path / "t.parquet")
    assert [(item.key, item.image) for item in found] == [("t-00000001", jpeg(1)), ("t-00000002", jpeg(2))]
    pq.write_table(pa.table({"path": ["a.jpg", "a.jpg"], "text": ["x", "y"]}), tmp_path / "p.parquet")
    assert captions_of(tmp_path / "p.parquet") == {"a.jpg": ["x", "y"]}


def test_hub_layout_without_metadata(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(
            pa.table(hub_table(2, 2 * number)), put(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", "")
        )
    pq.write_table(pa.table(hub_table(1, 9)), tmp_path / "data" / "test-00000-of-00001.parquet")
    source = open_source(str(tmp_path), SourceOptions())
    assert (source.format, source.class_names, source.has_captions) == ("parquet", ["0", "1"], False)
    assert [(item.key, item.split, item.label) for item in items(source)] == [
        ("9.png", "test", 0), ("0.png", "train", 0), ("1.png", "train", 1), ("2.png", "train", 0),
        ("3.png", "train", 1),
    ]  # fmt: skip
    assert open_source(str(tmp_path), SourceOptions(class_names=("cat", "dog"))).class_names == ["cat", "dog"]


FEATURES = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})


def test_class_names_come_from_the_files_metadata(tmp_path: Path) -> None:
    put(tmp_path / "data" / "x", "")
    datasets.Dataset.from_dict(hub_table(3), features=FEATURES).to_parquet(
        tmp_path / "data" / "train-00000-of-00001.parquet"
    )
    source = open_source(str(tmp_path), SourceOptions())
    assert source.class_names == ["cat", "dog"]
    assert any("it is a ClassLabel" in note for note in source.notes)


def test_class_names_come_from_the_card(tmp_path: Path) -> None:
    pq.write_table(pa.table(hub_table(3)), put(tmp_path / "plain_text" / "train-00000-of-00001.parquet", ""))
    put(
        tmp_path / "README.md",
        "---\ndataset_info:\n  config_name: plain_text\n  features:\n  - name: img\n    dtype: image\n  - name: label\n"
        "    dtype:\n      class_label:\n        names:\n          '0': cat\n          '1': dog\n---\n# A set\n",
    )
    assert open_source(str(tmp_path), SourceOptions()).class_names == ["cat", "dog"]
    put(tmp_path / "README.md", "# Not a card")
    assert open_source(str(tmp_path), SourceOptions()).class_names == ["0", "1"]


def test_several_configurations_must_be_named(tmp_path: Path) -> None:
    for name in ("de", "en"):
        pq.write_table(pa.table(hub_table(1)), put(tmp_path / name / "train-00000-of-00001.parquet", ""))
    with pytest.raises(DataError, match="de, en"):
        open_source(str(tmp_path), SourceOptions())
    assert len(records(tmp_path / "en")) == 1


def test_converted_parquet_has_the_split_in_the_folder(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        pq.write_table(pa.table(hub_table(1)), put(tmp_path / "default" / split / "0000.parquet", ""))
    assert [item.split for item in records(tmp_path)] == ["train", "val"]


def test_negative_labels_mean_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [jpeg(1)], "caption": ["x"], "label": [-1]}), tmp_path / "t.parquet")
    assert records(tmp_path / "t.parquet", label_column="label", class_names=("a",))[0].label is None


def test_text_that_is_not_utf8_in_parquet_spoils_only_its_caption(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0], raw.null_count)
    lists = pa.ListArray.from_arrays([0, 2, 2, 3], text)
    pq.write_table(pa.table({"image": [jpeg(n) for n in range(3)], "caption": text}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [jpeg(n) for n in range(3)], "captions": lists}), tmp_path / "b.parquet")
    assert [item.captions for item in records(tmp_path / "a.parquet")] == [["fine"], ["caf\udce9"], []]
    assert [item.captions for item in records(tmp_path / "b.parquet")] == [["fine", "caf\udce9"], [], []]


def test_damaged_parquet_is_a_data_error(tmp_path: Path) -> None:
    put(tmp_path / "t.parquet", b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        open_source(str(tmp_path / "t.parquet"), SourceOptions())


@pytest.mark.parametrize("as_dict", [False, True])
def test_datasets_folder(tmp_path: Path, as_dict: bool) -> None:
    data = datasets.Dataset.from_dict(hub_table(3), features=FEATURES)
    saved = datasets.DatasetDict({"train": data, "validation": data}) if as_dict else data.select([2, 0])
    saved.save_to_disk(tmp_path / "d")
    source = open_source(str(tmp_path / "d"), SourceOptions())
    assert (source.format, source.class_names) == ("datasets", ["cat", "dog"])
    found = [(item.key, item.split, item.label) for item in items(source)]
    assert found[:2] == (
        [("0.png", "train", 0), ("1.png", "train", 1)] if as_dict else [("2.png", None, 0), ("0.png", None, 0)]
    )
    assert len(found) == (6 if as_dict else 2)


def test_hub_name_offline_is_a_data_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        open_source("somebody/some-pictures", SourceOptions())
    assert caught.value.exit_code == 3
    assert "neither on this machine nor to be had from the Hub" in caught.value.what
    assert "--local-dir" in caught.value.hint


def test_a_mistyped_relative_path_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs_folder(tmp_path / "data" / "photos", 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"(?s)no data at data/photo.*Did you mean 'photos'"):
        open_source("data/photo", SourceOptions())


def test_hub_loading_works_on_a_local_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    repository = tmp_path / "repo"
    put(repository / "data" / "x", "")
    (repository / "data" / "x").unlink()
    datasets.Dataset.from_dict(hub_table(3), features=FEATURES).to_parquet(
        repository / "data" / "train-00000-of-00001.parquet"
    )
    source = open_source(str(repository), SourceOptions(format="hub"))
    assert source.class_names == ["cat", "dog"]
    assert [(item.split, item.label) for item in items(source)] == [("train", 0), ("train", 1), ("train", 0)]


# Flickr

TOKENS = "".join(f"{name}.jpg#{n}\tcaption {n} of {name}\n" for name in "abc" for n in range(5))


def flickr_folder(root: Path) -> Path:
    images(root / "Flicker8k_Dataset", "a.jpg", "b.jpg", "c.jpg")
    put(root / "Flickr_8k.trainImages.txt", "a.jpg\n")
    put(root / "Flickr_8k.devImages.txt", "b.jpg\n")
    put(root / "Flickr_8k.testImages.txt", "c.jpg\n")
    return root


def test_flickr_token_file(tmp_path: Path) -> None:
    put(flickr_folder(tmp_path) / "Flickr8k.token.txt", TOKENS)
    put(tmp_path / "Flickr8k.lemma.token.txt", TOKENS.replace("caption", "lemma"))
    put(tmp_path / "ExpertAnnotations.txt", "a.jpg\tb.jpg#2\t1\t1\t1\n")
    source = open_source(str(tmp_path), SourceOptions())
    assert source.format == "flickr"
    assert source.reason == "a Flickr token file: Flickr8k.token.txt has lines NAME#k<TAB>CAPTION"
    assert list(source.split_lists) == ["train", "val", "test"]
    found = items(source)
    assert [(item.key, len(item.captions)) for item in found] == [("a.jpg", 5), ("b.jpg", 5), ("c.jpg", 5)]
    assert found[1].captions[2] == "caption 2 of b"
    assert found[0].image == tmp_path / "Flicker8k_Dataset" / "a.jpg"


def test_kaggle_form_of_flickr(tmp_path: Path) -> None:
    table = "image,caption\n" + "".join(f'{name}.jpg,"caption {n}, of {name}"\n' for name in "abc" for n in range(5))
    put(flickr_folder(tmp_path) / "captions.txt", table)
    source = open_source(str(tmp_path), SourceOptions())
    assert (source.format, list(source.split_lists)) == ("flickr", ["train", "val", "test"])
    assert items(source)[2].captions[4] == "caption 4, of c"
    for path in tmp_path.glob("Flickr_8k*"):
        path.unlink()
    assert open_source(str(tmp_path), SourceOptions()).format == "table"


def test_kaggle_form_of_flickr30k(tmp_path: Path) -> None:
    images(tmp_path / "flickr30k_images", "a.jpg")
    put(
        tmp_path / "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| Two men .\na.jpg| 1| Several men , here .\n",
    )
    assert captions_of(tmp_path) == {"a.jpg": ["Two men .", "Several men , here ."]}


# Detection

COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}
KARPATHY = {"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "x"}]}]}


def test_every_kind_is_detected_by_no_other_before_it(tmp_path: Path) -> None:
    put(flickr_folder(tmp_path / "flickr") / "Flickr8k.token.txt", TOKENS)
    pairs_folder(tmp_path / "pairs")
    put(tmp_path / "pairs" / "stats.csv", "a,b\n1,2\n")
    put(tmp_path / "table" / "t.csv", "image,caption\na.jpg,x\n")
    put(tmp_path / "coco" / "annotations" / "captions_val.json", json.dumps(COCO))
    put(tmp_path / "karpathy" / "dataset_coco.json", json.dumps(KARPATHY))
    put_tar(tmp_path / "webdataset" / "0.tar", [member("a.jpg", jpeg()), member("a.txt", "x")])
    pq.write_table(pa.table(hub_table(1)), put(tmp_path / "parquet" / "train.parquet", ""))
    images(tmp_path / "classes", "a/1.jpg", "b/1.jpg")
    datasets.Dataset.from_dict(hub_table(1), features=FEATURES).save_to_disk(tmp_path / "datasets")
    for name in set(SOURCES) - {"hub"}:
        assert open_source(str(tmp_path / name), SourceOptions()).format == name


def test_format_overrides_detection(tmp_path: Path) -> None:
    images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    put(tmp_path / "cat" / "1.txt", "x")
    assert open_source(str(tmp_path), SourceOptions()).format == "pairs"
    forced = open_source(str(tmp_path), SourceOptions(format="classes"))
    assert (forced.format, forced.reason) == ("classes", "asked for by --format")
    with pytest.raises(UsageError, match="Did you mean 'classes'"):
        open_source(str(tmp_path), SourceOptions(format="clases"))


def test_what_is_not_there_or_not_known_is_a_data_error(tmp_path: Path) -> None:
    pairs_folder(tmp_path / "photos")
    with pytest.raises(DataError, match=r"(?s)no data at.*Did you mean 'photos'"):
        open_source(str(tmp_path / "photo"), SourceOptions())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty folder"):
        open_source(str(tmp_path / "empty"), SourceOptions())
    put(tmp_path / "odd" / "thesis.docx", "x")
    with pytest.raises(DataError, match=r"(?s)no form that softclip knows.*thesis.docx"):
        open_source(str(tmp_path / "odd"), SourceOptions())
    images(tmp_path / "bare", "a.jpg", "b.jpg")
    with pytest.raises(DataError, match="no form that softclip knows"):
        open_source(str(tmp_path / "bare"), SourceOptions())


def test_an_option_that_means_nothing_is_a_usage_error(tmp_path: Path) -> None:
    pairs_folder(tmp_path)
    with pytest.raises(UsageError, match=r"--caption-column means nothing for the format 'pairs'"):
        open_source(str(tmp_path), SourceOptions(caption_columns=("x",)))


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("dev", "val"),
        ("Validation", "val"),
        ("TRAIN", "train"),
        ("art-painting", "art_painting"),
        ("../x", "x"),
        ("v1.2", "v1.2"),
    ],
)
def test_split_names(given_name: str, expected: str) -> None:
    assert split_name(given_name) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_split_names_are_safe_folder_names(text: str) -> None:
    try:
        name = split_name(text)
    except DataError:
        return
    assert name
    assert not {"/", "\\", "\0"} & set(name)
    assert name not in {".", ".."}
    assert not name.startswith(".")
