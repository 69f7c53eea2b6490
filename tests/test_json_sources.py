"""COCO and Karpathy JSON: found where people keep them, images found beside them, and nothing lost silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prepare_samples import dropped, jpeg, put, rows

from softclip_cli.data.prepare import PrepareOptions, prepare
from softclip_cli.data.sources import open_source
from softclip_cli.data.sources.base import Candidate, Dropped, SourceOptions
from softclip_cli.errors import DataError


def coco_file(path: Path, names: list[str], captions: int = 5) -> Path:
    """A caption file as COCO's: annotations in another order than the images, the long lists last."""
    document = {
        "info": {"year": 2017}, "licenses": [],
        "images": [{"file_name": name, "id": 100 + n, "coco_url": f"http://x/{name}"} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": 100 + n, "id": 10 * n + k, "caption": f"caption {k} of {name}"}
            for k in range(captions) for n, name in reversed(list(enumerate(names)))
        ],
    }  # fmt: skip
    return put(path, json.dumps(document))


def coco_folder(root: Path) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        names = [f"{number:012d}.jpg" for number in range(count)]
        coco_file(root / "annotations" / f"captions_{split}2017.json", names)
        put(
            root / "annotations" / f"instances_{split}2017.json",
            json.dumps({"images": [], "annotations": [{"bbox": []}]}),
        )
        for number, name in enumerate(names):
            put(root / f"{split}2017" / name, jpeg(number))
    return root


@pytest.mark.parametrize("images", ["", "images"])
def test_coco_as_it_is_unpacked(tmp_path: Path, images: str) -> None:
    root = coco_folder(tmp_path / "coco")
    if images:
        (root / images).mkdir()
        for split in ("train2017", "val2017"):
            (root / split).rename(root / images / split)
    source = open_source(str(root), SourceOptions())
    assert source.format == "coco"
    assert "annotations/captions_train2017.json" in source.reason
    corpus = prepare(root, tmp_path / "c", PrepareOptions(workers=1))
    assert {name: split["rows"] for name, split in corpus.info["splits"].items()} == {"train": 3, "val": 2}
    assert rows(corpus, "val")[1]["captions"] == [f"caption {k} of 000000000001.jpg" for k in range(5)]
    assert rows(corpus, "val")[1]["image"]["bytes"] == jpeg(1)
    assert corpus.info["dropped"]["records"] == 0


def test_one_coco_file_and_an_image_root(tmp_path: Path) -> None:
    root = coco_folder(tmp_path / "coco")
    file = root / "annotations" / "captions_val2017.json"
    assert open_source(str(file), SourceOptions()).parts[0].split == "val"
    moved = (root / "val2017").rename(tmp_path / "elsewhere")
    found = list(open_source(str(file), SourceOptions(image_root=moved)).parts[0].records())
    assert [item.image for item in found] == [moved / f"{n:012d}.jpg" for n in range(2)]  # type: ignore[union-attr]


def test_broken_entries_of_coco_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    document = {
        "images": [{"file_name": "a.jpg", "id": 1}, {"id": 2}, {"file_name": "absent.jpg", "id": 3}, "nonsense"],
        "annotations": [
            {"image_id": 1, "caption": "fine"}, {"image_id": 1, "caption": None}, {"image_id": 9, "caption": "whose?"},
            {"image_id": 3, "caption": "x"}, {"image_id": [1], "caption": "y"}, 7,
        ],
    }  # fmt: skip
    path = put(tmp_path / "captions_mine.json", json.dumps(document))
    corpus = prepare(path, tmp_path / "c", PrepareOptions(workers=1, max_dropped=1))
    assert [row["captions"] for row in rows(corpus)] == [["fine"]]
    assert corpus.info["dropped"]["reasons"] == {"bad-row": 4, "no-image": 2, "missing-image": 1}
    assert len(dropped(corpus)) == 7


def test_json_that_is_no_caption_file_is_a_data_error(tmp_path: Path) -> None:
    boxes = put(tmp_path / "instances.json", json.dumps({"images": [], "annotations": [{"bbox": [1]}]}))
    with pytest.raises(DataError, match="has no captions"):
        open_source(str(boxes), SourceOptions())
    for content, match in (("{", "is not JSON"), ("[1]", "no list of images")):
        with pytest.raises(DataError, match=match):
            open_source(str(put(tmp_path / "x.json", content)), SourceOptions(format="coco"))
    with pytest.raises(DataError, match="no form that softclip knows"):
        open_source(str(put(tmp_path / "y.json", '{"a": 1}')), SourceOptions())


def karpathy_file(path: Path, folders: bool) -> Path:
    splits = ["train", "restval", "val", "test"]
    images = [
        {
            **({"filepath": "train2014" if split == "train" else "val2014"} if folders else {}),
            "filename": f"{n}.jpg", "imgid": n, "split": split,
            "sentences": [{"tokens": ["a", split], "raw": f"A {split}, {k}.", "sentid": k} for k in range(5)],
        }
        for n, split in enumerate(splits)
    ]  # fmt: skip
    return put(path, json.dumps({"images": images, "dataset": "coco"}))


def test_karpathy_for_coco_finds_the_two_folders_and_trains_on_restval(tmp_path: Path) -> None:
    karpathy_file(tmp_path / "dataset_coco.json", folders=True)
    for number in range(4):
        put(tmp_path / "images" / ("train2014" if number == 0 else "val2014") / f"{number}.jpg", jpeg(number))
    source = open_source(str(tmp_path), SourceOptions())
    assert source.format == "karpathy"
    assert "the 1 images of restval go to train, as is usual" in source.notes
    corpus = prepare(tmp_path, tmp_path / "c", PrepareOptions(workers=1))
    assert {name: [row["key"] for row in rows(corpus, name)] for name in corpus.splits} == {
        "train": ["train2014/0.jpg", "val2014/1.jpg"], "val": ["val2014/2.jpg"], "test": ["val2014/3.jpg"],
    }  # fmt: skip
    assert rows(corpus, "test")[0]["captions"] == [f"A test, {k}." for k in range(5)]


def test_karpathy_with_all_images_in_one_folder(tmp_path: Path) -> None:
    path = karpathy_file(tmp_path / "json" / "dataset_flickr30k.json", folders=False)
    for number in range(4):
        put(tmp_path / "flat" / f"{number}.jpg", jpeg(number))
    found = list(open_source(str(path), SourceOptions(image_root=tmp_path / "flat")).parts[0].records())
    assert [item.image for item in found] == [tmp_path / "flat" / f"{n}.jpg" for n in range(4)]  # type: ignore[union-attr]
    # COCO's file names two folders, but some keep all its images in one.
    path = karpathy_file(tmp_path / "flat" / "dataset_coco.json", folders=True)
    found = list(open_source(str(path), SourceOptions()).parts[0].records())
    assert [item.image for item in found] == [tmp_path / "flat" / f"{n}.jpg" for n in range(4)]  # type: ignore[union-attr]


def test_broken_entries_of_karpathy_are_counted(tmp_path: Path) -> None:
    images = [
        {"filename": "a.jpg", "split": "train", "sentences": [{"tokens": ["only", "words"]}, 3, {"raw": "Raw."}]},
        {"filename": "b.jpg", "split": "train"}, {"filename": "", "sentences": []}, None,
    ]  # fmt: skip
    path = put(tmp_path / "dataset.json", json.dumps({"images": images}))
    found = list(open_source(str(path), SourceOptions()).parts[0].records())
    assert [item.captions for item in found if isinstance(item, Candidate)] == [["only words", "Raw."]]
    assert [item.reason for item in found if isinstance(item, Dropped)] == ["bad-row"] * 3
