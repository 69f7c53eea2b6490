"""Datasets that are tables: a prepared corpus, a `datasets` folder, or Parquet files as the Hub keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import DataError
from softclip_cli.evaluation.images import ArrowImages, ImageSource, Interleaved, ParquetImages, Subset
from softclip_cli.evaluation.layouts import WHOLE, Captioned, Labelled, Layout, Paired, Wanted

if TYPE_CHECKING:
    import datasets

SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "class", "cls")
CAPTION_LISTS = ("captions", "caption", "sentences", "texts", "text", "alt_text")
NUMBERED_CAPTION = re.compile(r"(caption|sentence|text)_?(\d+)")


@dataclass(frozen=True)
class Table:
    """One split of a table, whatever it is stored as.

    Attributes:
        where: for messages.
        features: column types as `datasets` has them.
        column: name → all its values.
        images: name of an image column → its images.
        card: features that a dataset card beside the table states; they may name classes where the table does not.
    """

    where: str
    features: datasets.Features
    column: Callable[[str], list[Any]]
    images: Callable[[str], ImageSource]
    card: dict[str, Any] = field(default_factory=dict)

    def image_column(self, wanted: str | None) -> str:
        """The column that holds encoded images."""
        import datasets

        if wanted in self.features:
            return str(wanted)
        typed, binary = [], []  # other bytes than images are kept in tables, too: signatures in a prepared corpus
        for name, feature in self.features.items():
            if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
                typed.append(name)
            elif getattr(feature, "dtype", None) in ("binary", "large_binary"):
                binary.append(name)
        found = typed or binary
        if len(found) != 1:
            raise DataError(
                f"{self.where}: cannot tell the image column",
                f"columns that could be: {', '.join(found) or 'none'}; all columns: {', '.join(self.features)}",
                "prepare the data with `softclip data prepare`, which takes column names",
            )
        return found[0]

    def label_column(self, wanted: str | None) -> str:
        """The column that holds class numbers."""
        import datasets

        if wanted in self.features:
            return str(wanted)
        labels = [name for name, feature in self.features.items() if isinstance(feature, datasets.ClassLabel)]
        integers = [name for name in LABEL_NAMES if "int" in str(getattr(self.features.get(name), "dtype", ""))]
        found = [name for name in LABEL_NAMES if name in labels] or labels or integers
        if not found:
            raise DataError(
                f"{self.where} has no labels",
                f"no column of class numbers; columns: {', '.join(self.features)}",
                "it serves for retrieval (softclip retrieve) if it has captions, not for classification",
            )
        return found[0]

    def labelled(self, wanted: Wanted, rows: np.ndarray | None = None) -> Labelled:
        """Images and labels, of all rows or some."""
        import datasets

        column = self.label_column(wanted.label_column)
        values = [-1 if value is None else value for value in self.column(column)]  # -1: no label, as on the Hub
        if values and not isinstance(values[0], int):
            raise DataError(
                f"{self.where}: column {column!r} does not hold class numbers",
                f"its first value is {values[0]!r}",
                "prepare the data with `softclip data prepare`",
            )
        images, labels = self.images(self.image_column(wanted.image_column)), np.asarray(values, dtype=np.int64)
        if rows is not None:
            images, labels = Subset(images, rows.tolist()), labels[rows]
        for source, features in (("the label column", self.features), ("the dataset card README.md", self.card)):
            feature = features.get(column)
            if isinstance(feature, datasets.ClassLabel) and feature.names:
                return Labelled(images, labels, tuple(feature.names), source, class_count=len(feature.names))
        return Labelled(images, labels)

    def captioned(self, wanted: Wanted, rows: np.ndarray | None = None) -> Captioned:
        """Images and captions, of all rows or some."""
        captions, column = self._captions()
        images = self.images(self.image_column(wanted.image_column))
        if rows is not None:
            images, captions = Subset(images, rows.tolist()), [captions[row] for row in rows]
        return Captioned(images, captions, {"caption_column": column})

    def _captions(self) -> tuple[list[list[str]], str]:
        for name in CAPTION_LISTS:
            if name not in self.features:
                continue
            values = self.column(name)
            if values and isinstance(values[0], str):
                return [[value] for value in values], name
            if values and isinstance(values[0], list) and all(isinstance(text, str) for text in values[0]):
                return values, name
        numbered = sorted(
            (name for name in self.features if NUMBERED_CAPTION.fullmatch(name)),
            key=lambda n: int(re.sub(r"\D", "", n)),
        )
        if numbered:
            columns = [self.column(name) for name in numbered]
            return [[text for text in texts if text] for texts in zip(*columns, strict=True)], ", ".join(numbered)
        raise DataError(
            f"{self.where} has no captions",
            f"no column captions, caption, sentences or caption_0, ...; columns: {', '.join(self.features)}",
            "prepare the data with `softclip data prepare`, which takes column names",
        )


def arrow_table(dataset: datasets.Dataset, signature: str, where: str) -> Table:
    """A table over a `datasets.Dataset`; its image columns stay encoded."""
    import datasets

    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    key = "key" if "key" in dataset.column_names else None
    return Table(
        where,
        dataset.features,
        lambda name: list(dataset[name][:]),
        lambda name: ArrowImages(dataset, signature, name, key),
    )


def parquet_table(files: Sequence[Path], where: str, card: dict[str, Any] | None = None) -> Table:
    """A table over Parquet shards.

    Raises:
        DataError: a file cannot be read as Parquet.
    """
    import datasets
    import pyarrow.parquet as pq

    try:
        features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
        rows = sum(pq.read_metadata(path).num_rows for path in files)
    except Exception as error:  # Arrow raises many kinds for a damaged file
        raise DataError(
            f"{files[0]} cannot be read as Parquet", f"{type(error).__name__}: {error}", "fetch the file again"
        ) from error
    if rows == 0:
        raise DataError(f"{where} has no rows")

    def column(name: str) -> list[Any]:
        return [value for path in files for value in pq.read_table(path, columns=[name])[name].to_pylist()]

    return Table(where, features, column, lambda name: ParquetImages(files, name), card or {})


def card_features(folder: Path) -> dict[str, Any]:
    """The features that a Hub dataset card (README.md) states, of all its configurations together."""
    from datasets.info import DatasetInfosDict

    features: dict[str, Any] = {}
    card = folder / "README.md"
    if card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith("---"):
        try:
            for info in DatasetInfosDict.from_directory(str(folder)).values():
                features.update(info.features or {})
        except Exception:  # a card is free text with YAML on top: what cannot be read states nothing
            return {}
    return features


def parquet_files(folder: Path, shallow: bool) -> dict[str, list[Path]]:
    """Parquet shards by split: `SPLIT-00000-of-00001.parquet`, `SPLIT.parquet` or `SPLIT/0000.parquet`, anywhere below.

    Raises:
        DataError: two subfolders hold the same split, so that one of them must be named.
    """
    found = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")] if shallow else folder.rglob("*.parquet")
    splits: dict[str, list[Path]] = {}
    for path in sorted(found):
        if path.stem.isdigit():
            split = path.parent.name
        else:
            shard = SHARD.fullmatch(path.stem)
            split = shard["split"] if shard else path.stem
        splits.setdefault(split, []).append(path)
    for split, files in splits.items():
        parents = sorted({str(path.parent.relative_to(folder)) for path in files})
        if len(parents) > 1:
            raise DataError(
                f"{folder} holds split {split!r} in several folders",
                "these look like configurations of one dataset: " + ", ".join(parents),
                f"name one of them: {folder / parents[0]}",
            )
    return splits


def _parquet_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    files = parquet_files(folder, shallow)
    if not files:
        return None
    if wanted.split_column:
        table = _all_parquet(folder, files)
        if wanted.split_column in table.features:
            return sorted(set(table.column(wanted.split_column)))
    return list(files)


def _all_parquet(folder: Path, files: dict[str, list[Path]]) -> Table:
    return parquet_table([path for paths in files.values() for path in paths], str(folder), card_features(folder))


def _open_parquet(folder: Path, split: str, wanted: Wanted) -> tuple[Table, np.ndarray | None]:
    files = parquet_files(folder, shallow=False)
    table = _all_parquet(folder, files)
    if wanted.split_column and wanted.split_column in table.features:
        values = table.column(wanted.split_column)
        return table, np.flatnonzero(np.array([value == split for value in values]))
    return parquet_table(files[split], f"{folder}, split {split}", table.card), None


def _labelled_parquet(folder: Path, split: str, wanted: Wanted) -> Labelled:
    table, rows = _open_parquet(folder, split, wanted)
    return table.labelled(wanted, rows)


def _captioned_parquet(folder: Path, split: str, wanted: Wanted) -> Captioned:
    table, rows = _open_parquet(folder, split, wanted)
    return table.captioned(wanted, rows)


def _paired_parquet(folder: Path, split: str, wanted: Wanted) -> Paired:
    """Winoground's columns: image_0, image_1, caption_0, caption_1, and collapsed_tag where it is there."""
    table, _ = _open_parquet(folder, split, wanted)
    missing = [name for name in ("image_0", "image_1", "caption_0", "caption_1") if name not in table.features]
    if missing:
        raise DataError(
            f"{table.where} has no pairs of images and captions",
            f"no column {missing[0]!r}; columns: {', '.join(table.features)}",
            "softclip datasets show winoground tells which files are read",
        )
    first, second = table.column("caption_0"), table.column("caption_1")
    captions = [text for both in zip(first, second, strict=True) for text in both]
    tags = table.column("collapsed_tag") if "collapsed_tag" in table.features else [""] * len(first)
    images = Interleaved([table.images("image_0"), table.images("image_1")])
    return Paired(images, captions, [str(tag or "") for tag in tags])


def _datasets_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    if (folder / "dataset_dict.json").is_file():
        return list(json.loads((folder / "dataset_dict.json").read_text())["splits"])
    return [WHOLE] if (folder / "state.json").is_file() else None


def _open_datasets(folder: Path, split: str) -> Table:
    import datasets

    path = folder / split if split else folder
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # `datasets` and Arrow raise many kinds for a damaged folder
        raise DataError(f"{path} cannot be read as a datasets folder", f"{type(error).__name__}: {error}") from error
    shards = [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in sorted(path.glob("*.arrow"))]
    return arrow_table(loaded, json.dumps(shards), str(path))


def _corpus_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    return Corpus.open(folder).splits if (folder / "corpus.json").is_file() else None


def corpus_table(corpus: Corpus, split: str) -> Table:
    """One split of a prepared corpus."""
    return arrow_table(corpus.split(split), f"{corpus.fingerprint}/{split}", f"{corpus.path}, split {split}")


CORPUS = Layout(
    "corpus",
    "a prepared corpus, made by `softclip data prepare` or `softclip data generate` (corpus.json)",
    _corpus_splits,
    lambda folder, split, wanted: corpus_table(Corpus.open(folder), split).labelled(wanted),
    lambda folder, split, wanted: corpus_table(Corpus.open(folder), split).captioned(wanted),
)
DATASETS = Layout(
    "datasets",
    "a folder as `datasets` saves it (save_to_disk)",
    _datasets_splits,
    lambda folder, split, wanted: _open_datasets(folder, split).labelled(wanted),
    lambda folder, split, wanted: _open_datasets(folder, split).captioned(wanted),
)
HUB_PARQUET = Layout(
    "hub-parquet",
    "Parquet files as the Hub keeps them: SPLIT-00000-of-00001.parquet, in the folder or below",
    _parquet_splits,
    _labelled_parquet,
    _captioned_parquet,
    composed=_paired_parquet,
)
