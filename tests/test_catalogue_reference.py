"""Releases are read as torchvision reads them, tars as the webdataset package does: the same images, labels and names."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets as tv
import torchvision.datasets.cifar
import torchvision.datasets.stl10
import webdataset
from catalogue_folders import WRITERS, seen, write

from softclip_cli.evaluation.catalogue import catalogue
from softclip_cli.evaluation.locate import classification_set, multi_label_set
from softclip_cli.evaluation.names import readable

TEST: dict[str, Any] = {"split": "test"}
# Name → torchvision's class, where the release lies below torchvision's root, its arguments.
TORCHVISION: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "food101": (tv.Food101, "food-101", TEST),
    "dtd": (tv.DTD, "dtd/dtd", TEST),
    "aircraft": (tv.FGVCAircraft, "fgvc-aircraft-2013b", TEST),
    "pets": (tv.OxfordIIITPet, "oxford-iiit-pet", TEST),
    "flowers102": (tv.Flowers102, "flowers-102", TEST),
    "cars": (tv.StanfordCars, "stanford_cars", TEST),
    "gtsrb": (tv.GTSRB, "gtsrb", TEST),
    "sun397": (tv.SUN397, "SUN397", {}),
    "mnist": (tv.MNIST, "MNIST/raw", {"train": False}),
    "fashion-mnist": (tv.FashionMNIST, "FashionMNIST/raw", {"train": False}),
    "cifar10": (tv.CIFAR10, "cifar-10-batches-py", {"train": False}),
    "cifar100": (tv.CIFAR100, "cifar-100-python", {"train": False}),
    "stl10": (tv.STL10, "stl10_binary", TEST),
    "svhn": (tv.SVHN, "", TEST),
    "country211": (tv.Country211, "country211", TEST),
    "rendered-sst2": (tv.RenderedSST2, "rendered-sst2", TEST),
    "eurosat": (tv.EuroSAT, "eurosat/2750", {}),
}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision without its checksums, which tiny copies cannot have."""
    for kind in (tv.Flowers102, tv.STL10, tv.SVHN):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)


@pytest.mark.parametrize("name", list(TORCHVISION))
def test_releases_are_read_as_torchvision_reads_them(
    name: str, tmp_path: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, below, arguments = TORCHVISION[name]
    entry = catalogue()[name].model_copy(update={"classes": min(catalogue()[name].classes or 0, 12)})
    if name == "rendered-sst2":  # whose folders torchvision itself names
        monkeypatch.setattr("catalogue_folders.words", lambda name, entry: ["negative", "positive"])
    monkeypatch.setitem(catalogue(), name, entry)
    root = tmp_path / name
    layout = next(one for one in ("list-files", "arrays", "class-folders") if one in entry.layouts)
    WRITERS[layout](root / below, name, entry)
    for packed in root.rglob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    theirs = kind(root=root, **arguments)
    ours = classification_set(name, root=root if below else tmp_path, split=entry.whole or None)
    assert ours.layout == layout and ours.class_count == entry.classes
    pairs = []
    for image, label in (theirs[i] for i in range(len(theirs))):
        red, green, blue = image.convert("RGB").getpixel((1, 1))
        pairs.append((red if red == green == blue else red + 256 * green, int(label)))
    assert sorted((seen(ours.images[i]), int(ours.labels[i])) for i in range(len(ours.images))) == sorted(pairs)
    if entry.class_names[0] == "dataset" and hasattr(theirs, "classes"):
        assert list(ours.class_names or ())[:12] == [readable(each.replace("/", " ")) for each in theirs.classes][
            :12
        ] or (name == "fashion-mnist" and list(ours.class_names or ()) == list(theirs.classes))


@pytest.mark.parametrize(("name", "kind"), [("stl10", "cls"), ("voc2007", "npy")])
def test_tars_are_read_as_webdataset_reads_them(name: str, kind: str, tmp_path: Path) -> None:
    write(tmp_path, name, "webdataset")
    shards = [str(tmp_path / name / "test" / f"{shard}.tar") for shard in (0, 1)]
    theirs = list(webdataset.WebDataset(shards, shardshuffle=False).to_tuple("png", kind))
    if kind == "cls":
        data = classification_set(name, root=tmp_path)
        assert [int(label) for _, label in theirs] == data.labels.tolist()
        assert [image for image, _ in theirs] == [data.images[i] for i in range(len(data.images))]
    else:
        several = multi_label_set(name, root=tmp_path)
        decoded = webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("npy")
        assert [row.nonzero()[0].tolist() for (row,) in decoded] == [own.tolist() for own in several.labels]
        assert [image for image, _ in theirs] == [several.images[i] for i in range(len(several.images))]
