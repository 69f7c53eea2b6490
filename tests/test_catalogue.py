"""Every dataset of the catalogue is read from a tiny folder in each accepted layout; missing ones are explained."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import open_clip
import pytest
from catalogue_folders import link_images, numbered, seen, table, words, write
from eval_fixtures import pictures, write_class_folders
from PIL import Image

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation import find, names
from softclip_cli.evaluation.catalogue import catalogue, find_entry
from softclip_cli.evaluation.find import data_root, parse_dataset, present, wanted
from softclip_cli.evaluation.images import FileImages
from softclip_cli.evaluation.layouts import all_layouts
from softclip_cli.evaluation.locate import Texts, classification_set, multi_label_set
from softclip_cli.evaluation.locate_captions import composition_set, rated_set, retrieval_set
from softclip_cli.evaluation.locate_probe import probe_sets

DOT = numbered(0)
OPENERS: dict[str, Callable[..., Any]] = {
    "classification": classification_set,
    "multi-label": multi_label_set,
    "retrieval": retrieval_set,
    "ratings": rated_set,
    "composition": composition_set,
}


def cases(task: str) -> list[tuple[str, str]]:
    return [(name, layout) for name, entry in catalogue().items() if entry.task == task for layout in entry.layouts]


def benchmark_keys() -> dict[str, int]:
    """What the catalogue asks clip-benchmark for → number of classes."""
    return {
        source.partition(":")[2]: entry.classes or 0
        for entry in catalogue().values()
        for source in [*entry.class_names, *entry.prompts]
        if source.startswith("clip_benchmark:")
    }


@pytest.fixture
def benchmark_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if clip-benchmark were installed, with lists of its form."""
    counts = benchmark_keys()
    monkeypatch.setattr(
        names,
        "from_clip_benchmark",
        lambda key, kind: tuple(f"{key} {i}" for i in range(counts[key])) if kind == "names" else (key + " {}",),
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's sets with at most twelve classes or images, which are written and read in no time."""
    for name, entry in list(catalogue().items()):
        changes: dict[str, Any] = {"sizes": dict.fromkeys(entry.sizes, 12)} if entry.task == "retrieval" else {}
        if entry.task == "classification":
            changes = {"classes": min(entry.classes or 0, 12)}
        monkeypatch.setitem(catalogue(), name, entry.model_copy(update=changes))
    lines, subset = find.timm_lines, names.subset_of_reference
    monkeypatch.setattr(find, "timm_lines", lambda name: lines(name)[:12])
    monkeypatch.setattr(
        names, "subset_of_reference", lambda entry: (subset(entry) or tuple(range(entry.classes or 0)))[:12]
    )


def expected_names(name: str, layout: str) -> list[str] | None:
    """The class names that the entry promises for this layout, from what the writers wrote."""
    entry, own = catalogue()[name], words(name, catalogue()[name])
    count = entry.classes or 0
    if layout == "webdataset":
        return [f"own {i}" for i in range(count)]
    first, _, key = entry.class_names[0].partition(":")
    if first == "open_clip":
        indices = names.subset_of_reference(entry) or range(count)
        return [open_clip.IMAGENET_CLASSNAMES[i] for i in indices]
    if first == "timm":
        lemmas = dict(line.split("\t") for line in names.timm_lines("imagenet_synset_to_lemma"))
        return [lemmas[word].split(", ")[0] for word in own]
    if first == "clip_benchmark":
        return [f"{key} {i}" for i in range(count)]
    if layout == "arrays" and name == "fashion-mnist":
        from torchvision.datasets import FashionMNIST

        return list(FashionMNIST.classes)
    own = [f"thing {word}" for word in own] if layout == "list-files" and name == "objectnet" else own
    return [word.replace("_", " ") for word in own]


@pytest.mark.parametrize(("name", "layout"), cases("classification"))
def test_classification_sets_are_read_in_every_layout(
    name: str, layout: str, tmp_path: Path, small: None, benchmark_lists: None
) -> None:
    entry = catalogue()[name]
    write(tmp_path, name, layout)
    undivided = layout == "class-folders" and entry.whole not in ("", entry.split)
    data = classification_set(name, root=tmp_path, split=entry.whole if undivided else None)
    assert (data.name, data.layout, data.class_count) == (name, layout, entry.classes)
    assert entry.aliases.get(data.split, data.split) == (entry.whole if undivided else entry.split)
    assert sorted(data.labels) == list(range(entry.classes or 0))
    assert [seen(data.images[i]) for i in range(len(data.images))] == data.labels.tolist()
    assert list(data.class_names or ()) == expected_names(name, layout)
    assert data.expected_size == entry.sizes.get(entry.whole if undivided else entry.split)
    if layout == "webdataset":
        assert data.prompts == ("an own {}.",)
    elif entry.prompts and entry.prompts[0].startswith("clip_benchmark"):
        assert data.prompts == (entry.prompts[0].partition(":")[2] + " {}",)
    else:
        assert len(data.prompts) == (80 if entry.prompts else 1)
    assert undivided or present(name, tmp_path) == tmp_path / entry.folders[0]


def test_imagenet_has_its_thousand_classes(tmp_path: Path) -> None:
    """At its full size, in contrast to the sets above: ids, names and prompts fit together."""
    write(tmp_path, "imagenet", "hub-parquet")
    data = classification_set("imagenet", root=tmp_path)
    assert data.class_names == tuple(open_clip.IMAGENET_CLASSNAMES) and len(data.prompts) == 80
    assert wanted(catalogue()["imagenet"]).ids == tuple(sorted(names.timm_lines("imagenet_synsets")))


@pytest.mark.parametrize(("name", "layout"), [case for case in cases("classification") if case[1] == "arrays"])
def test_arrays_of_pixels_stand_upright_and_in_colour(name: str, layout: str, tmp_path: Path, small: None) -> None:
    write(tmp_path, name, layout)
    data = classification_set(name, root=tmp_path)
    for index in (0, 7):
        picture = Image.open(io.BytesIO(data.images[index]))
        width, height = picture.size
        assert picture.getpixel((width - 1, height - 1)) in (index, (index, index, index))
        assert picture.getpixel((width - 1, 0)) in (200, (200, 0, 0))
        assert picture.getpixel((0, height - 1)) in (index, (index, index, index))


@pytest.mark.parametrize(
    ("name", "layout"), [case for case in cases("classification") if case[1] in ("list-files", "arrays")]
)
def test_the_training_split_of_a_release_has_the_same_labels(
    name: str, layout: str, tmp_path: Path, small: None, benchmark_lists: None
) -> None:
    entry = catalogue()[name]
    if entry.train is None:
        pytest.skip("no training split")
    write(tmp_path, name, layout)
    sets = probe_sets(name, root=tmp_path)
    for part in (sets.train, sets.test, *([sets.validation] if sets.validation else [])):
        assert [seen(part.images[i]) for i in range(len(part.images))] == part.labels.tolist()
    assert sets.train.split == entry.train and sets.train.class_names == sets.test.class_names
    assert (sets.validation is None) == (entry.validation is None)


@pytest.mark.parametrize(("name", "layout"), cases("multi-label"))
def test_multi_label_sets_are_read_in_every_layout(
    name: str, layout: str, tmp_path: Path, benchmark_lists: None
) -> None:
    entry = catalogue()[name]
    write(tmp_path, name, layout)
    data = multi_label_set(name, root=tmp_path)
    numbers, labels = [seen(data.images[i]) for i in range(len(data.images))], [own.tolist() for own in data.labels]
    assert (data.name, data.layout, data.split) == (name, layout, entry.split)
    assert present(name, tmp_path) == tmp_path / entry.folders[0]
    if entry.classes == 20:
        assert labels == [[number] for number in numbers] and len(numbers) == 20
        difficult = [[(number - 1) % 20] for number in numbers]
        assert data.ignored is None if layout == "webdataset" else [o.tolist() for o in data.ignored or ()] == difficult
        own = [f"own {i}" if layout == "webdataset" else f"class{i:04d}" for i in range(20)]
        assert list(data.class_names or ()) == own
        assert data.prompts == (("an own {}.",) if layout == "webdataset" else ("voc2007_multilabel {}",))
    elif entry.ids:
        ids = wanted(entry).ids
        tench = [index for index, synset in enumerate(ids) if synset == "n01440764"]
        assert len(tench) == 2 and tench[1] == 21843  # in 21k and again as the first of the 1k
        by_number = dict(zip(numbers, labels, strict=True))
        assert by_number[0] == [0] and by_number[2 if layout == "class-folders" else 1] == tench
        assert data.class_count == 22843 and data.class_names is not None
        assert data.class_names[0] == "organism,or being" and data.class_names[21843] == "tench,or Tinca tinca"
        assert "generic" in data.prompts_source
    else:
        assert labels == [[0, 1], [2]] and numbers == [0, 1]
        assert data.class_names == ("Apple", "Ball, round", "Cat", "Dog") and data.empty_classes.tolist() == [3]


@pytest.mark.parametrize(("name", "layout"), cases("retrieval"))
def test_retrieval_sets_are_read_in_every_layout(name: str, layout: str, tmp_path: Path, small: None) -> None:
    entry = catalogue()[name]
    write(tmp_path, name, layout)
    data = retrieval_set(name, root=tmp_path)
    assert len(data.images) == entry.sizes["test"] and data.layout == layout
    assert {len(captions) for captions in data.captions} == {5}
    if layout not in ("karpathy", "flickr-captions"):  # those have many names of one file
        for index in (0, 1, len(data.images) - 1):
            number = seen(data.images[index])
            assert data.captions[index] == [f"caption {number} {k}" for k in range(5)]
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
    assert all(all_layouts()[layout].shape_of(wanted(entry)) in error.why for layout in entry.layouts)
    assert entry.example in error.why


@pytest.mark.parametrize("name", list(catalogue()))
def test_entries_name_what_exists(name: str) -> None:
    entry = catalogue()[name]
    assert set(entry.layouts) <= set(all_layouts()) and (entry.split in entry.sizes or not entry.sizes)
    assert all(all_layouts()[layout].reads(entry.task) for layout in entry.layouts)
    for source in [*entry.class_names, *entry.prompts]:
        where, _, what = source.partition(":")
        assert where in ("dataset", "open_clip", "clip_benchmark", "timm", "torchvision")
        assert where != "open_clip" or hasattr(open_clip, what)
    shapes = {"list-files": "lists", "arrays": "arrays", "class-lists": "class_lists", "label-table": "table"}
    for layout, field in shapes.items():
        assert (layout in entry.layouts) == (getattr(entry, field) is not None), layout
    assert entry.reference is None or catalogue()[entry.reference].task == entry.task
    assert entry.train is None or entry.train != entry.split
    assert entry.licence and entry.citation and entry.site.startswith("https://")


@pytest.mark.skipif(importlib.util.find_spec("clip_benchmark") is None, reason="clip-benchmark is not installed")
@pytest.mark.parametrize("name", list(catalogue()))
def test_clip_benchmark_has_what_the_catalogue_asks_for(name: str) -> None:
    entry = catalogue()[name]
    for source in entry.class_names:
        where, _, key = source.partition(":")
        if where == "clip_benchmark" and entry.class_names[0] == source:
            assert len(names.from_clip_benchmark(key, "names") or ()) == entry.classes
    for source in entry.prompts:
        where, _, key = source.partition(":")
        assert where != "clip_benchmark" or names.prompts([source])[1] == source


def test_a_shifted_sets_classes_are_those_of_its_reference() -> None:
    """Independent of the list of indices: each class's WordNet id has the same place in ImageNet's own order."""
    order = names.timm_lines("imagenet_synsets")
    for name, count in (("imagenet-a", 200), ("imagenet-r", 200)):
        entry = catalogue()[name]
        subset = names.subset_of_reference(entry)
        assert subset is not None and len(subset) == count == entry.classes
        assert tuple(order[index] for index in subset) == wanted(entry).ids
    assert names.subset_of_reference(catalogue()["imagenet-v2"]) is None


def test_objectnets_classes_of_imagenet_are_in_its_own_mapping(tmp_path: Path) -> None:
    entry = catalogue()["objectnet"]
    assert names.subset_of_reference(entry) is None and names.subset_of_reference(entry, tmp_path) is None
    mapping = tmp_path / "mappings" / "objectnet_to_imagenet_1k.json"
    mapping.parent.mkdir()
    mapping.write_text(json.dumps({"Alarm clock": "digital clock; analog clock", "Fish": "tench, Tinca tinca"}))
    subset = names.subset_of_reference(entry, tmp_path)
    assert [open_clip.IMAGENET_CLASSNAMES[i] for i in subset or ()] == ["tench", "analog clock", "digital clock"]
    mapping.write_text(json.dumps({"Fish": "no such fish"}))
    with pytest.raises(DataError, match="1 of 1 classes are none of ImageNet's"):
        names.subset_of_reference(entry, tmp_path)


def test_a_package_list_is_not_laid_over_labels_of_another_order(tmp_path: Path, benchmark_lists: None) -> None:
    """clip-benchmark's lists follow the sorted folders of a release; a copy with other labels names its own classes."""
    entry = catalogue()["eurosat"]
    own = [f"kind {9 - i}" for i in range(10)]
    rows = table(entry, 10, "test", label_names=own)
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "eurosat")
    assert list(classification_set("eurosat", root=tmp_path).class_names or ()) == own


def test_the_data_root_may_be_the_dataset_itself(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "cifar10", {f"class_{i}": 1 for i in range(10)}, "test")
    assert len(classification_set("cifar10", root=tmp_path / "cifar10").images) == 10


def test_another_dataset_below_the_root_is_not_mistaken(tmp_path: Path) -> None:
    write(tmp_path, "cifar10", "hub-parquet")
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
    write(tmp_path, "pacs", "class-folders")
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
    ids = names.timm_lines("imagenet_synsets")
    write_class_folders(tmp_path / "imagenet", {ids[i]: 1 for i in range(3)}, "val")
    with pytest.raises(DataError, match="3 class folders where 1,000 are expected"):
        classification_set("imagenet", root=tmp_path)
    write_class_folders(tmp_path / "imagenet", {"tench": 1}, "val")
    with pytest.raises(DataError, match="1 class folders are none of the 1,000 classes"):
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
    write(tmp_path, "pacs", "class-folders")
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
