"""Every dataset of the catalogue is read from a tiny folder in each accepted layout; missing ones are explained."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import open_clip
import pytest
from eval_fixtures import pictures, png, write_class_folders

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation import names
from softclip_cli.evaluation.catalogue import Entry, catalogue, find_entry
from softclip_cli.evaluation.find import data_root, parse_dataset, present
from softclip_cli.evaluation.images import FileImages
from softclip_cli.evaluation.layouts import all_layouts
from softclip_cli.evaluation.locate import Texts, classification_set, probe_sets, rated_set, retrieval_set

DOT = png(np.zeros((2, 2, 3), dtype=np.uint8))
CLASSIFICATION = [name for name, entry in catalogue().items() if entry.task == "classification"]
RETRIEVAL = [name for name, entry in catalogue().items() if entry.task == "retrieval"]
OPENERS: dict[str, Callable[..., Any]] = {
    "classification": classification_set,
    "retrieval": retrieval_set,
    "ratings": rated_set,
}
READERS = {"classification": "labelled", "retrieval": "captioned", "ratings": "rated"}
BENCHMARK = {"cifar10": [f"kind {i}" for i in range(10)], "cifar100": [f"kind {i}" for i in range(100)]}


def folder_names(entry: Entry) -> list[str]:
    words = [f"class_{number:04d}" for number in range(entry.classes or 0)]
    return [f"n{number:08d}" for number in range(len(words))] if entry.folder_names == "wnid" else words


def table(entry: Entry, count: int, split: str, *, label_names: list[str] | None) -> datasets.Dataset:
    """Rows as the Hub has them: an image and a label, or an image and a list of captions."""
    image = entry.image_column or "image"
    rows: dict[str, list] = {image: [{"bytes": DOT, "path": None}] * count}
    features: dict = {image: datasets.Image()}
    if entry.task == "classification":
        label = entry.label_column or "label"
        rows[label] = [number % (entry.classes or 1) for number in range(count)]
        features[label] = datasets.ClassLabel(names=label_names) if label_names else datasets.Value("int64")
    else:
        rows["caption"] = [[f"caption {i} {k}" for k in range(5)] for i in range(count)]
        features["caption"] = datasets.List(datasets.Value("string"))
    if entry.split_column:
        rows[entry.split_column] = [split] * count
        features[entry.split_column] = datasets.Value("string")
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def link_images(folder: Path, names_: list[str]) -> None:
    """Many names of one small file: quick to make."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names_[0]).write_bytes(DOT)
    for name in names_[1:]:
        os.link(folder / names_[0], folder / name)


def write_layout(root: Path, name: str, layout: str) -> None:
    """The dataset, tiny, in one of its layouts."""
    entry = catalogue()[name]
    place, split = root / entry.folders[0], entry.split
    count = entry.classes if entry.task == "classification" else entry.sizes[split]
    assert count is not None
    label_names = folder_names(entry)
    if layout == "class-folders":
        for folder in label_names:
            link_images(place / split / folder, ["1.JPEG"])
            if entry.train:
                link_images(place / entry.train / folder, ["1.JPEG"])
    elif layout == "hub-parquet":
        place = place / "config"
        place.mkdir(parents=True)
        table(entry, count, split, label_names=label_names).to_parquet(
            place / f"{split}-00000-of-00001.parquet", batch_size=97
        )
    elif layout == "datasets":
        datasets.DatasetDict({split: table(entry, count, split, label_names=label_names)}).save_to_disk(place)
    elif layout == "corpus":
        from softclip_cli.data.corpus import CorpusWriter, Record, features_for

        labelled = entry.task == "classification"
        with (
            CorpusWriter(place) as writer,
            writer.split(split, features_for(class_names=label_names if labelled else None)) as part,
        ):
            for i in range(count):
                part.write(Record(f"{i}", DOT, [f"caption {i} {k}" for k in range(5)], label=i if labelled else None))
    elif layout == "karpathy":
        files = [f"{i}.jpg" for i in range(count)]
        link_images(place / "images", files)
        sentences = [{"raw": f" a caption {k}"} for k in range(6)]
        images = [{"filename": file, "split": split, "sentences": sentences} for file in files]
        images += [{"filename": "missing.jpg", "split": "train", "sentences": sentences}]
        (place / "dataset_any.json").write_text(json.dumps({"images": images, "dataset": name}))
    elif layout == "flickr-captions":
        files = [f"{i}.jpg" for i in range(count)]
        link_images(place / "Images", files)
        lines = [f"{file}#{k}\tcaption {k} ." for file in [*files, "other.jpg"] for k in range(5)]
        (place / "Any.token.txt").write_text("\n".join(lines))
        (place / "Any.lemma.token.txt").write_text("wrong file")
        (place / f"Any_8k.{split}Images.txt").write_text("\n".join(files))
        (place / "Any_8k.trainImages.txt").write_text("other.jpg\n")
    else:
        raise AssertionError(f"no test data for layout {layout}")


@pytest.fixture
def benchmark_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if clip-benchmark were installed, with lists of its form."""
    monkeypatch.setattr(
        names, "from_clip_benchmark", lambda key, kind: tuple(BENCHMARK[key]) if kind == "names" else ("{} here",)
    )


@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in CLASSIFICATION for layout in catalogue()[name].layouts]
)
def test_classification_sets_are_read_in_every_layout(
    name: str, layout: str, tmp_path: Path, benchmark_lists: None
) -> None:
    entry = catalogue()[name]
    write_layout(tmp_path, name, layout)
    data = classification_set(name, root=tmp_path)
    assert (data.name, data.split, data.layout) == (name, entry.split, layout)
    assert data.class_count == entry.classes and sorted(data.labels) == list(range(entry.classes or 0))
    assert data.images[entry.classes - 1] == DOT if entry.classes else None
    assert data.class_names is not None and len(data.class_names) == entry.classes
    assert data.expected_size == entry.sizes[entry.split]
    assert present(name, tmp_path) == tmp_path / entry.folders[0]
    if entry.class_names[0].startswith("open_clip"):
        assert data.class_names == tuple(open_clip.IMAGENET_CLASSNAMES) and len(data.prompts) == 80
    else:
        assert data.class_names[:2] == ("class 0000", "class 0001")


@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name in RETRIEVAL for layout in catalogue()[name].layouts]
)
def test_retrieval_sets_are_read_in_every_layout(name: str, layout: str, tmp_path: Path) -> None:
    entry = catalogue()[name]
    write_layout(tmp_path, name, layout)
    data = retrieval_set(name, root=tmp_path)
    assert len(data.images) == entry.sizes["test"] and data.layout == layout
    assert {len(captions) for captions in data.captions} == {5}
    assert data.images[len(data.images) - 1] == DOT
    assert data.gallery() == f"{entry.sizes['test']:,} images × {5 * entry.sizes['test']:,} texts"


@pytest.mark.parametrize("name", list(catalogue()))
def test_a_missing_dataset_says_where_to_get_it_and_how_it_must_lie(name: str, tmp_path: Path) -> None:
    entry = catalogue()[name]
    opened = OPENERS[entry.task]
    with pytest.raises(DataError) as caught:
        opened(name, root=tmp_path)
    error = caught.value
    assert error.exit_code == 3 and name in error.what
    assert entry.hub in error.hint and entry.site in error.hint and "--data-root" in error.hint
    assert str(tmp_path) in error.why and all(folder in error.why for folder in entry.folders)
    assert all(all_layouts()[layout].shape in error.why for layout in entry.layouts)


@pytest.mark.parametrize("name", list(catalogue()))
def test_entries_name_what_exists(name: str) -> None:
    entry = catalogue()[name]
    assert set(entry.layouts) <= set(all_layouts()) and entry.split in entry.sizes
    for layout in entry.layouts:
        assert getattr(all_layouts()[layout], READERS[entry.task]) is not None
    for source in [*entry.class_names, *entry.prompts]:
        where, _, what = source.partition(":")
        assert where in ("dataset", "open_clip", "clip_benchmark")
        assert where != "open_clip" or hasattr(open_clip, what)
    assert entry.licence and entry.citation and entry.site.startswith("https://")


def test_the_data_root_may_be_the_dataset_itself(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "cifar10", {f"class_{i}": 1 for i in range(10)}, "test")
    assert len(classification_set("cifar10", root=tmp_path / "cifar10").images) == 10


def test_another_dataset_below_the_root_is_not_mistaken(tmp_path: Path) -> None:
    write_layout(tmp_path, "cifar10", "hub-parquet")
    with pytest.raises(DataError, match="cifar100 is not on this machine"):
        classification_set("cifar100", root=tmp_path)


def test_the_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTCLIP_DATA", str(tmp_path / "sets"))
    assert data_root() == tmp_path / "sets"
    monkeypatch.delenv("SOFTCLIP_DATA")
    assert data_root() == Path("data")
    assert data_root(tmp_path) == tmp_path


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        classification_set("imagnet")
    assert "imagenet" in caught.value.hint and caught.value.exit_code == 3
    assert find_entry("ImageNet")[0] == "imagenet"


def test_a_dataset_of_the_other_task_is_refused() -> None:
    with pytest.raises(UsageError, match="imagenet is a classification set"):
        retrieval_set("imagenet")
    with pytest.raises(UsageError, match="coco-5k is a retrieval set"):
        classification_set("coco-5k")


def test_references_are_taken_apart(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert parse_dataset("coco-5k") == ("coco-5k", "")
    assert parse_dataset(f"{tmp_path}/corpus:kind") == (f"{tmp_path}/corpus", "kind")
    assert parse_dataset(f"{tmp_path}/a:b") == (f"{tmp_path}/a:b", "")


def test_class_names_of_a_dataset_card_are_used(tmp_path: Path) -> None:
    entry = catalogue()["cifar10"]
    place = tmp_path / "cifar10" / "plain_text"
    place.mkdir(parents=True)
    table(entry, 20, "test", label_names=None).to_parquet(place / "test-00000-of-00001.parquet")
    assert classification_set("cifar10", root=tmp_path).class_names is None
    info = datasets.DatasetInfo(
        features=datasets.Features({"label": datasets.ClassLabel(names=[f"thing_{i}" for i in range(10)])})
    )
    yaml = json.dumps({"dataset_info": {"config_name": "plain_text", **info._to_yaml_dict()}})
    card = f"---\n{yaml}\n---\n# The card of the dataset\n"
    (tmp_path / "cifar10" / "README.md").write_text(card)
    data = classification_set("cifar10", root=tmp_path)
    assert data.class_names == tuple(f"thing {i}" for i in range(10))
    assert data.class_names_source == "the dataset card README.md"


def test_clip_benchmarks_lists_are_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "clip_benchmark"
    (package / "datasets").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "datasets" / "en_classnames.json").write_text(json.dumps({"cifar10": ["plane", "car"]}))
    (package / "datasets" / "en_zeroshot_classification_templates.json").write_text(json.dumps({"cifar10": ["a {c}!"]}))
    monkeypatch.syspath_prepend(tmp_path)
    assert names.from_clip_benchmark("cifar10", "names") == ("plane", "car")
    assert names.prompts(["clip_benchmark:cifar10"]) == (("a {}!",), "clip_benchmark:cifar10")
    assert names.from_clip_benchmark("unknown", "names") is None


def test_without_prompts_the_result_says_generic(tmp_path: Path) -> None:
    write_layout(tmp_path, "pacs", "class-folders")
    data = classification_set("pacs", root=tmp_path)
    assert data.prompts == ("a photo of a {}.",) and "generic" in data.prompts_source


# Folders of one's own


def test_class_folders_of_ones_own(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"wire_haired_dog": 3, "cat": 2})
    data = classification_set(str(tmp_path))
    assert data.class_names == ("cat", "wire haired dog") and data.labels.tolist() == [0, 0, 1, 1, 1]
    assert isinstance(data.images, FileImages) and data.images.key(2) == "wire_haired_dog/0.png"


def test_numbered_folders_are_ordered_as_numbers_and_name_nothing(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {str(i): 1 for i in range(12)})
    data = classification_set(str(tmp_path))
    assert [data.images.key(i).split("/")[0] for i in range(12)] == [str(i) for i in range(12)]
    assert data.class_names is None
    (tmp_path / "classnames.txt").write_text("\n".join(f"{i}\tnumber {i}" for i in reversed(range(12))))
    assert classification_set(str(tmp_path)).class_names == tuple(f"number {i}" for i in range(12))


def test_given_names_and_templates_win(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "set", {"a": 1, "b": 1})
    (tmp_path / "names.txt").write_text("apple\npear\n\n")
    (tmp_path / "templates.txt").write_text("a picture of a {}\nthe {c}\n")
    data = classification_set(str(tmp_path / "set"), texts=Texts(tmp_path / "names.txt", tmp_path / "templates.txt"))
    assert data.class_names == ("apple", "pear") and data.prompts == ("a picture of a {}", "the {}")
    assert (data.class_names_source, data.prompts_source) == ("names.txt", "templates.txt")


@pytest.mark.parametrize(
    ("content", "message"), [("no place\n", "0 places"), ("{} and {}\n", "2 places"), ("", "empty")]
)
def test_bad_templates_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "templates.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        names.read_templates(path)


def test_a_wrong_number_of_class_names_is_named(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "set", {"a": 1, "b": 1})
    (tmp_path / "names.txt").write_text("apple\npear\nplum\n")
    with pytest.raises(DataError, match="3 class names for 2 classes"):
        classification_set(str(tmp_path / "set"), texts=Texts(class_names=tmp_path / "names.txt"))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "lonely").mkdir()
    with pytest.raises(DataError, match="1 of 3 classes have no image: lonely"):
        classification_set(str(tmp_path))


def test_a_wrong_number_of_class_folders_is_named(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "imagenet", {f"n{i:08d}": 1 for i in range(3)}, "val")
    with pytest.raises(DataError, match="3 class folders where 1,000 are expected"):
        classification_set("imagenet", root=tmp_path)
    write_class_folders(tmp_path / "imagenet", {"tench": 1}, "val")
    with pytest.raises(DataError, match="not named by WordNet ids"):
        classification_set("imagenet", root=tmp_path)


@pytest.mark.parametrize("unknown", [-1, None])
def test_labels_outside_the_classes_are_named(unknown: int | None, tmp_path: Path) -> None:
    rows = {"image": [{"bytes": DOT, "path": None}] * 3, "label": [0, 1, unknown]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"label -1 of image row 2 of test.parquet is outside") as caught:
        classification_set(str(tmp_path))
    assert "published without labels" in caught.value.why


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_class_folders(tmp_path, {"a": 2, "b": 2}, split)
    assert classification_set(str(tmp_path)).split == "valid"
    assert classification_set(str(tmp_path), split="val").split == "valid"
    with pytest.raises(DataError, match="has no split 'test'") as caught:
        classification_set(str(tmp_path), split="test")
    assert "train, valid" in caught.value.why


def test_domains_are_splits_and_a_hierarchy_of_classes_is_not(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        write_class_folders(tmp_path / "domains", {"dog": 1, "cat": 1}, domain)
    assert classification_set(str(tmp_path / "domains"), split="sketch").class_names == ("cat", "dog")
    with pytest.raises(DataError, match="several splits"):
        classification_set(str(tmp_path / "domains"))
    write_class_folders(tmp_path / "tree", {"dog": 1, "cat": 1}, "animals")
    write_class_folders(tmp_path / "tree", {"car": 1, "bus": 2}, "vehicles")
    assert np.bincount(classification_set(str(tmp_path / "tree")).labels).tolist() == [2, 3]


def test_a_folder_of_no_layout_says_which_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError) as caught:
        classification_set(str(tmp_path))
    assert "SPLIT/CLASS/x.jpg" in caught.value.why and "softclip data prepare" in caught.value.hint
    with pytest.raises(DataError, match="no dataset folder"):
        classification_set(str(tmp_path / "absent"))


def test_two_configurations_must_be_told_apart(tmp_path: Path) -> None:
    entry = catalogue()["cifar10"]
    for config in ("one", "two"):
        (tmp_path / config).mkdir()
        table(entry, 10, "test", label_names=None).to_parquet(tmp_path / config / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="in several folders"):
        classification_set(str(tmp_path))
    assert len(classification_set(str(tmp_path / "one")).images) == 10


def test_rows_of_several_shards_and_row_groups_keep_their_order(tmp_path: Path) -> None:
    entry, images = catalogue()["cifar10"], pictures(25, size=8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    for shard, (start, stop) in enumerate(((0, 11), (11, 25))):
        rows = {
            "img": [{"bytes": data, "path": None} for data in images[start:stop]],
            "label": [i % 10 for i in range(start, stop)],
        }
        part = datasets.Dataset.from_dict(rows, features=features)
        part.to_parquet(tmp_path / f"test-{shard:05d}-of-00002.parquet", batch_size=4)
    data = classification_set(str(tmp_path))
    assert [data.images[i] for i in (24, 0, 12, 10, 11, 3)] == [images[i] for i in (24, 0, 12, 10, 11, 3)]
    assert data.images.key(12) == "row 1 of test-00001-of-00002.parquet"
    assert data.labels.tolist() == [i % entry.classes for i in range(25)]  # type: ignore[operator]


# Probe sets


def test_probe_sets_of_a_folder(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        write_class_folders(tmp_path, {"a": count, "b": count}, split, seed=count)
    sets = probe_sets(str(tmp_path))
    assert (sets.train.split, sets.test.split, len(sets.train.images)) == ("train", "test", 12)
    assert sets.validation is not None and sets.validation.split == "val"


def test_a_folder_without_splits_is_divided(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"a": 10, "b": 20})
    sets = probe_sets(str(tmp_path))
    assert np.bincount(sets.test.labels).tolist() == [2, 4] and np.bincount(sets.train.labels).tolist() == [8, 16]
    keys = [{part.images.key(i) for i in range(len(part.images))} for part in (sets.train, sets.test)]
    assert not keys[0] & keys[1] and "held_out" in sets.notes


def test_a_probe_without_a_training_split_asks_for_one(tmp_path: Path) -> None:
    write_layout(tmp_path, "pacs", "class-folders")
    with pytest.raises(DataError, match="no training split") as caught:
        probe_sets("pacs", root=tmp_path)
    assert "--train-split" in caught.value.hint


# Captions that do not fit


def test_a_gallery_of_another_size_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "flickr8k"
    link_images(place / "images", ["a.jpg", "b.jpg"])
    (place / "x.token.txt").write_text("".join(f"{n}.jpg#{k}\twords\n" for n in "ab" for k in range(5)))
    (place / "x.testImages.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(DataError, match="2 images where this test set has 1,000") as caught:
        retrieval_set("flickr8k", root=tmp_path)
    assert str(place) in caught.value.hint
    assert retrieval_set(str(place)).gallery() == "2 images × 10 texts"


def test_captions_without_their_images_are_named(tmp_path: Path) -> None:
    link_images(tmp_path / "images", ["a.jpg"])
    (tmp_path / "x.token.txt").write_text("a.jpg#0\tone\nb.jpg#0\ttwo\n")
    (tmp_path / "x.testImages.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(DataError, match="does not match the images") as caught:
        retrieval_set(str(tmp_path))
    assert "1 of 2 images are not there, first b.jpg" in caught.value.why
    (tmp_path / "x.testImages.txt").write_text("a.jpg\nc.jpg\n")
    with pytest.raises(DataError, match=r"does not match x\.token\.txt"):
        retrieval_set(str(tmp_path))


def test_captions_as_a_csv_file_without_splits(tmp_path: Path) -> None:
    link_images(tmp_path / "Images", ["a.jpg", "b.jpg"])
    (tmp_path / "captions.txt").write_text('image,caption\na.jpg,"one, and more"\nb.jpg,two\na.jpg,three\n')
    data = retrieval_set(str(tmp_path))
    assert data.captions == [["one, and more", "three"], ["two"]] and data.split == "all"


def test_numbered_caption_columns_are_read_in_order(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": DOT, "path": None}] * 2, **{f"caption_{k}": [f"{k}a", f"{k}b"] for k in range(11)}}
    features = {"image": datasets.Image(), **{f"caption_{k}": datasets.Value("string") for k in range(11)}}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(
        tmp_path / "test-00000-of-00001.parquet"
    )
    assert retrieval_set(str(tmp_path)).captions[1] == [f"{k}b" for k in range(11)]


def test_karpathys_train_split_takes_restval_along(tmp_path: Path) -> None:
    link_images(tmp_path / "val2014", ["a.jpg", "b.jpg", "c.jpg"])
    images = [
        {"filepath": "val2014", "filename": f"{name}.jpg", "split": split, "sentences": [{"raw": name}]}
        for name, split in (("a", "train"), ("b", "restval"), ("c", "test"))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    assert retrieval_set(f"{tmp_path}:train").captions == [["a"], ["b"]]
    assert retrieval_set(str(tmp_path)).captions == [["c"]]


# Real copies, where there are any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no copy of CIFAR-10 in shared/data")
def test_the_hubs_copy_of_cifar10_is_read() -> None:
    data = classification_set("cifar10", root=SHARED)
    assert (len(data.images), data.class_count, data.layout) == (10_000, 10, "hub-parquet")
    assert np.bincount(data.labels).tolist() == [1000] * 10
    assert data.images[9_999].startswith(b"\x89PNG")


@pytest.mark.skipif(not (SHARED / "flickr8k").is_dir(), reason="no copy of Flickr8k in shared/data")
def test_the_official_test_split_of_flickr8k_is_read() -> None:
    data = retrieval_set("flickr8k", root=SHARED)
    assert data.gallery() == "1,000 images × 5,000 texts" and data.layout == "flickr-captions"
    listed = (SHARED / "flickr8k" / "Flickr_8k.testImages.txt").read_text().split()
    assert [data.images.key(i) for i in range(1000)] == listed
    assert data.images[0][:2] == b"\xff\xd8"


@pytest.mark.skipif(not (SHARED / "pacs").is_dir(), reason="no copy of PACS in shared/data")
def test_the_domains_of_pacs_are_splits() -> None:
    for split, size in catalogue()["pacs"].sizes.items():
        data = classification_set("pacs", split=split, root=SHARED)
        assert len(data.images) == size and data.class_names[:2] == ("dog", "elephant")  # type: ignore[index]
