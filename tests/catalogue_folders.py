"""Tiny folders of the catalogue's datasets: one writer a layout. Image i shows the number i, so that labels can be checked."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import re
import struct
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import scipy.io
from eval_fixtures import png
from PIL import Image

from softclip_cli.evaluation.catalogue import Entry, catalogue
from softclip_cli.evaluation.find import wanted
from softclip_cli.evaluation.names import timm_lines
from softclip_cli.evaluation.shapes import Arrays

# What class `i` is called in a release, and a line of its lists; `{w}` is the word, `{i}` the image.
LINES: dict[str, dict[str, str]] = {
    "food101": {"test": "{w}/{i}", "train": "{w}/{i}"},
    "sun397": {"test": "a/{w}/sun_{i}.jpg"},
    "aircraft": dict.fromkeys(("train", "val", "test"), "{i} {w}"),
    "dtd": dict.fromkeys(("train", "val", "test"), "{w}/{w}_{i}.jpg"),
    "pets": dict.fromkeys(("trainval", "test"), "{w}_{i} {n} 1 1"),
    "gtsrb": {"train": "GTSRB/Training/{n:05d}/{i}.ppm", "test": "{i}.ppm;53;54;6;5;48;49;{n}"},
    "objectnet": {"test": "images/{w}/{i}.png"},
    "tiny-imagenet": {"train": "train/{w}/images/{w}_{i}.JPEG", "val": "val_{i}.JPEG\t{w}\t0\t32\t44\t62"},
    "ucf101": {"train": "{w}/v_{i}.avi {n}", "test": "{w}/v_{i}.avi"},
    "birdsnap": {"test": "{w}/{i}.jpg"},
}
MAT_FIRST = {"cars", "flowers102"}


@cache
def numbered(number: int) -> bytes:
    """An image that shows a number."""
    colour = np.array([number & 255, number >> 8, 255 - (number & 255)], dtype=np.uint8)
    return png(np.broadcast_to(colour, (2, 2, 3)))


def seen(data: bytes) -> int:
    """The number that an image shows."""
    red, green, blue = Image.open(io.BytesIO(data)).convert("RGB").getpixel((1, 1))  # type: ignore[misc]
    return int(red) if red == green == blue else int(red) + 256 * int(green)


def words(name: str, entry: Entry) -> list[str]:
    """What the classes are called in the folders or lists of a release."""
    ids = wanted(entry).ids
    if ids:
        return list(ids)
    if name == "imagenet-v2":
        return [str(number) for number in range(entry.classes or 0)]
    if entry.folder_names == "wnid":  # Tiny-ImageNet: any WordNet ids
        return list(timm_lines("imagenet_a_synsets"))[: entry.classes]
    return [f"class_{number:04d}" for number in range(entry.classes or 0)]


def write(root: Path, name: str, layout: str) -> None:
    """The dataset, with an image a class, in one of its layouts."""
    entry = catalogue()[name]
    WRITERS[layout](root / entry.folders[0], name, entry)


def link_images(folder: Path, names: list[str]) -> None:
    """Many names of one small file: quick to make."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_bytes(numbered(0))
    for name in names[1:]:
        os.link(folder / names[0], folder / name)


def _put(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(numbered(number))


def class_folders(place: Path, name: str, entry: Entry) -> None:
    parts = [""] if entry.whole and name != "imagenet-21k" else [entry.split]
    folders = words(name, entry)
    if entry.task == "multi-label":
        folders = [folders[0], folders[-1], "n01440764"]
    for part in parts:
        for number, folder in enumerate(folders):
            _put(place / part / folder / "1.png", number)


def table(entry: Entry, count: int, split: str, *, label_names: list[str] | None) -> datasets.Dataset:
    """Rows as the Hub has them: an image and a label, or an image and a list of captions."""
    image = entry.image_column or "image"
    rows: dict[str, list] = {image: [{"bytes": numbered(i), "path": None} for i in range(count)]}
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


def _count(entry: Entry) -> int:
    return int(entry.classes or 0) if entry.task == "classification" else entry.sizes[entry.split]


def hub_parquet(place: Path, name: str, entry: Entry) -> None:
    folder = place / "config"
    folder.mkdir(parents=True)
    rows = table(entry, _count(entry), entry.split, label_names=words(name, entry))
    rows.to_parquet(folder / f"{entry.split}-00000-of-00001.parquet", batch_size=97)


def datasets_folder(place: Path, name: str, entry: Entry) -> None:
    rows = table(entry, _count(entry), entry.split, label_names=words(name, entry))
    datasets.DatasetDict({entry.split: rows}).save_to_disk(place)


def corpus(place: Path, name: str, entry: Entry) -> None:
    from softclip_cli.data.corpus import CorpusWriter, Record, features_for

    labelled = entry.task == "classification"
    features = features_for(class_names=words(name, entry) if labelled else None)
    with CorpusWriter(place) as writer, writer.split(entry.split, features) as part:
        for i in range(_count(entry)):
            captions = [f"caption {i} {k}" for k in range(5)]
            part.write(Record(f"{i}", numbered(i), captions, label=i if labelled else None))


def webdataset(place: Path, name: str, entry: Entry) -> None:
    """As clip-benchmark's converter writes: numbered shards, classnames.txt and templates beside them."""
    split = next((there for there, here in entry.aliases.items() if here == entry.split), entry.split)
    (place / split).mkdir(parents=True)
    count = _count(entry) if entry.task != "multi-label" else entry.classes or 0
    shards = 2
    for shard in range(shards):
        with tarfile.open(place / split / f"{shard}.tar", "w") as tar:
            for i in range(shard, count, shards):
                _member(tar, f"s{i:07d}.png", numbered(i))
                if entry.task == "classification":
                    _member(tar, f"s{i:07d}.cls", str(i).encode())
                elif entry.task == "multi-label":
                    stream = io.BytesIO()
                    np.save(stream, np.eye(count, dtype=np.float32)[i])
                    _member(tar, f"s{i:07d}.npy", stream.getvalue())
                else:
                    _member(tar, f"s{i:07d}.txt", "\n".join(f"caption {i} {k}" for k in range(5)).encode())
    (place / split / "nshards.txt").write_text(f"{shards}\n")
    if entry.task != "retrieval":
        (place / "classnames.txt").write_text("".join(f"own {i}\n" for i in range(count)))
        (place / "zeroshot_classification_templates.txt").write_text("an own {c}.\n")


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def karpathy(place: Path, name: str, entry: Entry) -> None:
    files = [f"{i}.jpg" for i in range(_count(entry))]
    link_images(place / "images", files)
    sentences = [{"raw": f" a caption {k}"} for k in range(6)]
    images = [{"filename": file, "split": entry.split, "sentences": sentences} for file in files]
    images += [{"filename": "missing.jpg", "split": "train", "sentences": sentences}]
    (place / "dataset_any.json").write_text(json.dumps({"images": images, "dataset": name}))


def flickr_captions(place: Path, name: str, entry: Entry) -> None:
    files = [f"{i}.jpg" for i in range(_count(entry))]
    link_images(place / "Images", files)
    lines = [f"{file}#{k}\tcaption {k} ." for file in [*files, "other.jpg"] for k in range(5)]
    (place / "Any.token.txt").write_text("\n".join(lines))
    (place / "Any.lemma.token.txt").write_text("wrong file")
    (place / f"Any_8k.{entry.split}Images.txt").write_text("\n".join(files))
    (place / "Any_8k.trainImages.txt").write_text("other.jpg\n")


def list_files(place: Path, name: str, entry: Entry) -> None:
    """The lists of a release, each class with an image in each split; labels as words or numbers."""
    shape = entry.lists
    assert shape is not None
    if name in MAT_FIRST:
        return _mat_lists(place, entry)
    labels = words(name, entry)
    for split, where in shape.lists.items():
        lines = [LINES[name][split].format(w=w, i=i, n=i + (shape.first or 0)) for i, w in enumerate(labels)]
        pattern = shape.line if isinstance(shape.line, str) else shape.line[split]
        image = shape.image if isinstance(shape.image, str) else shape.image[split]
        for i, line in enumerate(lines):
            match = re.fullmatch(pattern, line)
            assert match, (name, line)
            _put(place / image.format(**match.groupdict(), split=split), i)
        if "*" in where:
            continue
        (place / where).parent.mkdir(parents=True, exist_ok=True)
        if where.endswith(".json"):
            (place / where).write_text(json.dumps({w: [line] for w, line in zip(labels, lines, strict=True)}))
        else:
            header = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"] if where.endswith(".csv") else []
            header = ["path"] if where == "test_images.txt" else header
            (place / where).write_text("\n".join([*header, *reversed(lines)]) + "\n")
    if shape.classes:
        (place / shape.classes).write_text("".join(f"/a/{w}\n" if shape.class_line else f"{w}\n" for w in labels))
    if shape.names:
        (place / shape.names).parent.mkdir()
        more = {**{w: f"thing {w}" for w in labels}, "other": "not of ImageNet"}
        (place / shape.names).write_text(json.dumps(more))
        (place / shape.only).write_text(json.dumps({f"thing {w}": "tench, Tinca tinca" for w in labels}))
        _put(place / "images" / "other" / "1.png", 999)


def _mat_lists(place: Path, entry: Entry) -> None:
    shape, count = entry.lists, entry.classes or 0
    assert shape is not None and isinstance(shape.image, str)
    order = list(range(count))[::-1]
    variables: dict[str, dict[str, Any]] = {}
    for number, (split, where) in enumerate(shape.lists.items()):
        file, _, variable = where.partition(":")
        if shape.fields:
            kinds = [("class", "O"), ("fname", "O")]
            rows = np.array([(i + 1, f"{i:05d}.jpg") for i in order], dtype=kinds)
            variables.setdefault(file, {})[variable] = rows
            paths = [f"{i:05d}.jpg" for i in range(count)]
        else:
            # Numbers of images: those of split s are s·count + 1 to (s + 1)·count.
            variables.setdefault(file, {})[variable] = np.array([[number * count + i + 1 for i in order]])
            paths = [number * count + i + 1 for i in range(count)]  # type: ignore[misc]
        for i, path in enumerate(paths):
            _put(place / shape.image.format(path=path, split=split), i)
    if shape.labels:
        file, _, variable = shape.labels.partition(":")
        variables[file] = {variable: np.array([[i % count + 1 for i in range(len(shape.lists) * count)]])}
    if shape.classes:
        file, _, variable = shape.classes.partition(":")
        variables[file] = {variable: np.array([f"class_{i:04d}" for i in range(count)], dtype=object)}
    for file, found in variables.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(place / file, found)


def arrays(place: Path, name: str, entry: Entry) -> None:
    """Each image shows its class's number, but for a red line at its top: so the axes can be told."""
    shape, count = entry.arrays, entry.classes or 0
    assert shape is not None
    place.mkdir(parents=True)
    for files in shape.files.values():
        for file in files if shape.kind in ("pickle", "mat") else files[:1]:
            gray = "c" not in shape.axes
            side = {"mat": 32}.get(shape.kind, shape.shape[-1] if shape.shape else 28)
            pixels = np.empty((count, side, side, 3), dtype=np.uint8)
            pixels[:] = np.arange(count)[:, None, None, None]
            pixels[:, 0] = (200, 0, 0)
            stored = pixels[..., 0] if gray else np.transpose(pixels, ["nhwc".index(axis) for axis in shape.axes])
            _store(place, shape, file, files, np.ascontiguousarray(stored), count)
    if shape.classes:
        file, _, key = shape.classes.partition(":")
        labels = [f"class_{i:04d}" for i in range(count)]
        (place / file).write_bytes(pickle.dumps({key: labels}, 2) if key else "\n".join(labels).encode())


def _store(place: Path, shape: Arrays, file: str, files: list[str], stored: np.ndarray, count: int) -> None:
    labels = np.arange(count) + shape.first
    if shape.kind == "idx":  # one file plain, one packed: both occur
        (place / file).write_bytes(struct.pack(">HBB3I", 0, 8, 3, *stored.shape) + stored.tobytes())
        packed = struct.pack(">HBBI", 0, 8, 1, count) + labels.astype(np.uint8).tobytes()
        (place / f"{files[1]}.gz").write_bytes(gzip.compress(packed))
    elif shape.kind == "raw":
        stored.tofile(place / file)
        labels.astype(np.uint8).tofile(place / files[1])
    elif shape.kind == "pickle":
        document = {shape.images: stored.reshape(count, -1), shape.labels: labels.tolist()}
        (place / file).write_bytes(pickle.dumps(document, 2))
    else:
        if shape.zero_is is not None:
            labels[labels == 0] = shape.zero_is
        scipy.io.savemat(place / file, {shape.images: stored, shape.labels: labels[:, None]})


def class_lists(place: Path, name: str, entry: Entry) -> None:
    shape, count = entry.class_lists, entry.classes or 0
    assert shape is not None
    for split in ("train", "val", "trainval", entry.split):
        for number in range(count):
            rows = [
                f"{i:06d} {'1' if i == number else ' 0' if i == (number + 1) % count else '-1'}" for i in range(count)
            ]
            path = place / shape.lists.format(name=f"class{number:04d}", split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(rows) + "\n")
        path.with_name(f"{split}.txt").write_text("000000\n")  # the list of the split, which is no class's
    for i in range(count):
        _put(place / shape.image.format(path=f"{i:06d}"), i)


def label_table(place: Path, name: str, entry: Entry) -> None:
    shape = entry.table
    assert shape is not None
    place.mkdir(parents=True)
    split = entry.split
    labels = [[wanted(entry).ids[0]], ["n01440764"]] if entry.ids else [["/m/a", "/m/b"], ["/m/c"]]
    images = ["image0.jpg", "image1.jpg"] if entry.ids else ["image0", "image1"]
    rows = [(image, label, 1) for image, own in zip(images, labels, strict=True) for label in own]
    rows.append((images[1], labels[0][0], 0))
    columns = [shape.image_column, shape.label_column, *([shape.true_column] if shape.true_column else [])]
    with (place / shape.tables[split]).open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(columns)
        table.writerows(row[: len(columns)] for row in rows if row[2] or shape.true_column)
    if shape.classes:
        (place / shape.classes).write_text('/m/a,Apple\n/m/b,"Ball, round"\n/m/c,Cat\n/m/d,Dog\n')
    for i, image in enumerate(images):
        _put(place / shape.image.format(path=image, split=split), i)


WRITERS = {
    "class-folders": class_folders,
    "hub-parquet": hub_parquet,
    "datasets": datasets_folder,
    "corpus": corpus,
    "webdataset": webdataset,
    "karpathy": karpathy,
    "flickr-captions": flickr_captions,
    "list-files": list_files,
    "arrays": arrays,
    "class-lists": class_lists,
    "label-table": label_table,
}
