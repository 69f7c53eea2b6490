"""Copies of datasets that are wrong in some way are refused, and the message names what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from catalogue_folders import numbered, seen, write
from eval_fixtures import write_class_folders

from softclip_cli.errors import DataError
from softclip_cli.evaluation.catalogue import catalogue
from softclip_cli.evaluation.locate import classification_set, multi_label_set
from softclip_cli.evaluation.locate_captions import retrieval_set
from softclip_cli.evaluation.protected import protected_set
from softclip_cli.evaluation.sets import MultiLabelSet


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """CIFAR-10 as clip-benchmark's tars."""
    write(tmp_path, "cifar10", "webdataset")
    return tmp_path / "cifar10"


def refused(
    pattern: str, dataset: str | Path, root: Path | None = None, read: object = classification_set
) -> DataError:
    with pytest.raises(DataError, match=pattern) as caught:
        read(str(dataset), root=root)  # type: ignore[operator]
    assert caught.value.exit_code == 3
    return caught.value


# Tars


def test_tars_of_ones_own_bring_their_names_and_prompts(tars: Path) -> None:
    data = classification_set(str(tars))
    assert data.split == "test" and data.prompts == ("an own {}.",) and data.class_names_source == "classnames.txt"
    assert [seen(data.images[i]) for i in range(10)] == data.labels.tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert data.images.key(5) == "s0000001.png of 1.tar"
    again = pickle.loads(pickle.dumps(data.images))  # as a worker process gets it
    assert again[9] == data.images[9] and again.signature() == data.images.signature()


def test_tars_are_protected_whatever_they_hold(tars: Path, tmp_path: Path) -> None:
    assert len(protected_set(str(tars)).images) == 10
    write(tmp_path, "voc2007", "webdataset")
    assert len(protected_set(str(tmp_path / "voc2007")).images) == 20
    assert len(protected_set("voc2007", tmp_path).images) == 20


def test_a_missing_shard_is_named(tars: Path) -> None:
    (tars / "test" / "1.tar").unlink()
    assert "1.tar" in refused("1 of 2 shards are not there", tars).why


def test_a_tar_cut_off_is_named(tars: Path) -> None:
    path = tars / "test" / "1.tar"
    os.truncate(path, 700)
    refused("1.tar is damaged", tars)


def test_a_tar_that_changed_after_it_was_indexed_is_named(tars: Path) -> None:
    data = classification_set(str(tars))
    os.truncate(tars / "test" / "1.tar", 700)
    with pytest.raises(DataError, match="cannot be read") as caught:
        data.images[9]
    assert "1.tar ends before it does" in caught.value.why


def test_tars_of_another_kind_are_named(tars: Path) -> None:
    assert "another kind" in refused("10 of 10|5 of 5 images have no .txt", tars, read=retrieval_set).hint
    refused("images have no .npy", tars, read=multi_label_set)


def test_class_names_that_are_not_as_many_as_the_classes_are_named(tars: Path) -> None:
    (tars / "classnames.txt").write_text("".join(f"own {i}\n" for i in range(9)))
    refused("cifar10: 9 classes .* where 10 are expected", "cifar10", tars.parent)
    refused("label 9 of image s0000009.png of 1.tar is outside the 9 classes", tars)
    (tars / "classnames.txt").write_text("".join(f"own {i}\n" for i in range(11)))
    refused("1 of 11 classes have no image: own 10", tars)


# Splits


def test_a_split_that_has_the_size_of_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example CIFAR-10's 50,000 training images under test/: a fine accuracy, but not of the test set."""
    monkeypatch.setitem(
        catalogue(), "cifar10", catalogue()["cifar10"].model_copy(update={"sizes": {"train": 20, "test": 10}})
    )
    write_class_folders(tmp_path / "cifar10", {f"class_{i}": 2 for i in range(10)}, "test")
    error = refused("split test .* has 20 images, which is the size of split train", "cifar10", tmp_path)
    assert "mixed up" in error.why and "--split train" in error.hint


def test_an_undivided_copy_is_not_taken_for_a_split(tmp_path: Path) -> None:
    write(tmp_path, "eurosat", "class-folders")
    error = refused("has no split 'test'", "eurosat", tmp_path)
    assert "it has all" in error.why and "--split all" in error.hint


# Releases


def test_lists_that_do_not_match_their_images_are_named(tmp_path: Path) -> None:
    write(tmp_path, "dtd", "list-files")
    place = tmp_path / "dtd"
    (place / "images" / "class_0003" / "class_0003_3.jpg").unlink()
    error = refused("labels/test1.txt does not match the images", "dtd", tmp_path)
    assert "1 of 47 images are not there, first images/class_0003/class_0003_3.jpg" in error.why
    (place / "labels" / "test1.txt").write_text("banded banded_0002.jpg\n")
    refused("test1.txt, line 1: not of the form", "dtd", tmp_path)


def test_a_class_that_the_release_does_not_know_is_named(tmp_path: Path) -> None:
    write(tmp_path, "aircraft", "list-files")
    path = tmp_path / "aircraft" / "data" / "variants.txt"
    path.write_text(path.read_text().replace("class_0007", "Zeppelin NT"))
    refused("class 'class_0007' of split test is not in data/variants.txt", "aircraft", tmp_path)


def test_numbers_beyond_the_classes_are_named(tmp_path: Path) -> None:
    write(tmp_path, "pets", "list-files")
    path = tmp_path / "pets" / "annotations" / "test.txt"
    path.write_text(path.read_text().replace("class_0000_0 1 ", "class_0000_0 38 "))
    refused("label 37 of image images/class_0000_0.jpg is outside the 37 classes", "pets", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("cifar10", "test_batch", pickle.dumps({"data": os.getcwd, "labels": []})),
        ("cifar10", "test_batch", b"\x80\x02}q"),
        ("cifar10", "test_batch", pickle.dumps({"labels": []})),
        ("mnist", "t10k-images-idx3-ubyte", b"\x00\x00\x0d\x03" + bytes(12)),
        ("mnist", "t10k-images-idx3-ubyte", b"\x00\x00\x08\x03\x00\x00\x00\x0a\x00\x00\x00\x1c\x00\x00\x00\x1cshort"),
        ("stl10", "test_X.bin", bytes(1000)),
        ("stl10", "test_X.bin", b""),
        ("svhn", "test_32x32.mat", b"not a MATLAB file"),
        ("flowers102", "setid.mat", b"not a MATLAB file"),
        ("food101", "meta/test.json", b"{"),
    ],
)
def test_damaged_files_of_a_release_are_named(name: str, file: str, content: bytes, tmp_path: Path) -> None:
    layout = "arrays" if catalogue()[name].arrays else "list-files"
    write(tmp_path, name, layout)
    (tmp_path / name / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        classification_set(name, root=tmp_path)
    assert Path(file).name in caught.value.what


def test_a_pickle_does_not_run_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, "cifar10", "arrays")

    class Attack:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / "cifar10" / "test_batch").write_bytes(pickle.dumps({"data": Attack(), "labels": []}))
    assert "mkdir" in refused("test_batch cannot be read", "cifar10", tmp_path).why
    assert not (tmp_path / "ran").exists()


# Several classes an image


def test_vocs_lists_must_be_of_the_same_images(tmp_path: Path) -> None:
    write(tmp_path, "voc2007", "class-lists")
    lists = tmp_path / "voc2007" / "ImageSets" / "Main"
    shutil.copy(lists / "class0004_test.txt", tmp_path / "kept.txt")
    (lists / "class0004_test.txt").write_text("000001 1\n")
    refused("the list of class0004 for split test is of other images", "voc2007", tmp_path, multi_label_set)
    (lists / "class0004_test.txt").unlink()
    refused("the list of class0004 for split test is not there", "voc2007", tmp_path, multi_label_set)
    shutil.copy(tmp_path / "kept.txt", lists / "class0004_test.txt")
    (lists / "class0019_test.txt").write_text("\n".join(f"{i:06d} -1" for i in range(20)))
    refused("1 of 20 classes have no image: class0019", "voc2007", tmp_path, multi_label_set)


def test_a_label_that_no_class_has_is_named(tmp_path: Path) -> None:
    write(tmp_path, "open-images", "label-table")
    place = tmp_path / "open-images"
    (place / "class-descriptions.csv").write_text("/m/a,Apple\n/m/b,Ball\n")
    refused("label /m/c of image image1 is none of the 2 classes", "open-images", tmp_path, multi_label_set)
    (place / "class-descriptions.csv").unlink()
    refused("class-descriptions.csv is not there", "open-images", tmp_path, multi_label_set)
    write_class_folders(tmp_path / "imagenet-21k", {"tench": 1})
    refused("1 class folders are none of the 22,843", "imagenet-21k", tmp_path, multi_label_set)


def _set(labels: list[list[int]], **facts: object) -> MultiLabelSet:
    arrays = tuple(np.array(own, dtype=np.int64) for own in labels)
    return MultiLabelSet("set", "test", [numbered(i) for i in range(len(labels))], arrays, **facts)  # type: ignore[arg-type]


def test_a_multi_label_set_is_checked_when_it_is_made() -> None:
    data = _set([[2, 0], [], [1]], class_names=("a", "b", "c"), ignored=([1], [], []))
    assert [own.tolist() for own in data.labels] == [[0, 2], [], [1]] and data.class_count == 3
    assert data.class_label(2) == "c" and _set([[0]]).class_label(0) == "class 0"
    others = [_set([[2, 0], [], [1]]), _set([[2, 0], [1], [1]]), _set([[2, 0], [], [1]], ignored=([], [2], []))]
    assert len({one.content() for one in (data, *others)}) == 4
    assert data.content() == _set([[0, 2], [], [1]], class_count=3, ignored=([1], [], [])).content()
    for labels, facts, message in (
        ([[0], [3]], {"class_count": 3}, "label 3 of image number 1 is outside"),
        ([[0, -1]], {"class_count": 1}, "label -1 of image number 0 is outside"),
        ([[0], [1]], {"class_names": ("a",)}, "label 1 of image number 1 is outside the 1 classes"),
        ([[0]], {"class_names": ("a", "b")}, "1 of 2 classes have no image: b"),
        ([[0], [0]], {"ignored": ([0], [])}, "class 0 is both true and ignored for image number 0"),
        ([[0], [0]], {"ignored": ([],)}, "2 images but"),
        ([[], []], {"class_count": 2, "allow_empty": True}, "no image has a label"),
        ([[0]], {"prompts": ("no place",)}, "0 places"),
        ([], {}, "has no images"),
    ):
        with pytest.raises(DataError, match=message):
            _set(labels, **facts)
    assert _set([[0]], class_names=("a", "b"), allow_empty=True).empty_classes.tolist() == [1]


def test_captions_of_a_tar_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue(), "flickr8k", catalogue()["flickr8k"].model_copy(update={"sizes": {"test": 4}}))
    write(tmp_path, "flickr8k", "webdataset")
    assert retrieval_set("flickr8k", root=tmp_path).captions[1] == [f"caption 2 {k}" for k in range(5)]
    image = json.dumps({"images": [{"filename": "gone.jpg", "split": "test", "sentences": [{"raw": "a"}] * 5}]})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset_x.json").write_text(image)
    error = refused("does not match the images", tmp_path / "other", read=retrieval_set)
    assert "1 of 1 images are not there, first gone.jpg" in error.why
