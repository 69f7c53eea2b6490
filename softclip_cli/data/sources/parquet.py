"""Parquet files in the layout of the Hub: `data/train-00000-of-00002.parquet`, `plain_text/test-...`, a card."""

from __future__ import annotations

import re
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

from softclip_cli.data.sources.arrow_readers import ParquetReader
from softclip_cli.data.sources.base import SPLIT_NAMES, Source, SourceOptions, split_name
from softclip_cli.data.sources.places import expand, file_name, is_address, is_pattern, shown
from softclip_cli.data.sources.tables import table_source
from softclip_cli.data.sources.walk import walk
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets

SHARD = re.compile(r"(?P<split>\w[\w.]*?)-\d+-of-\d+(-[0-9a-f]+)?")
SUFFIXES = (".parquet", ".pq")
WORD = re.compile(r"[A-Za-z]+")


def detect(source: str) -> str | None:
    """Recognise a folder that holds Parquet files, or a pattern or address of such files."""
    if is_address(source) or is_pattern(source):
        places = expand(source, SUFFIXES)
        count = f"{len(places)} file{'s' * (len(places) > 1)}"
        return f"Parquet: {count}, such as {file_name(places[0])}" if places else None
    root = Path(source)
    if not root.is_dir():
        return None
    files = _files(root)
    if not files:
        return None
    count = f"{len(files)} Parquet file{'s' * (len(files) > 1)}"
    return f"Parquet in the Hub's layout: {count}, such as {files[0].relative_to(root).as_posix()}"


def _files(root: Path) -> list[Path]:
    return [folder / name for folder, names in walk(root) for name in names if name.lower().endswith(".parquet")]


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open a folder of Parquet files; splits come from the names of files and folders, class names from the files' own
    metadata or the dataset card.

    Raises:
        DataError: no Parquet file, a damaged one, or several configurations.
        UsageError: a column that does not exist, or none found.
    """
    if is_address(source) or is_pattern(source):
        return _open_places(source, options, reason)
    root = Path(source)
    files = _files(root)
    if not files:
        raise DataError(f"{root} holds no Parquet files", hint="name the folder above them")
    configurations: dict[Path, list[Path]] = {}
    for file in files:
        folder = file.parent
        # default/train/0000.parquet: the folder is the split, the one above it the configuration.
        if folder != root and split_of(file) is not None and SHARD.fullmatch(file.stem) is None and _usual(folder.name):
            folder = folder.parent
        configurations.setdefault(folder, []).append(file)
    if len(configurations) > 1:
        names = [folder.relative_to(root).as_posix() for folder in configurations]
        raise DataError(
            f"{root} holds several datasets",
            "Parquet files lie in " + ", ".join(names),
            f"name one of them: softclip data prepare {root / names[-1]} OUT",
        )
    folder = next(iter(configurations))
    card = _card_features(root, folder)
    tables = [(split_of(file), ParquetReader(file, card)) for file in files]
    return table_source("parquet", source, reason, tables, options, root)


def _open_places(source: str, options: SourceOptions, reason: str) -> Source:
    """Open the Parquet files that a pattern or an fsspec address names; splits come from their names."""
    places = expand(source, SUFFIXES)
    if not places:
        raise DataError(f"no Parquet files at {shown(source)}", hint="check the pattern or the address")
    tables = [(split_of(PurePosixPath(shown(place))), ParquetReader(place)) for place in places]
    return table_source("parquet", shown(source), reason, tables, options, Path())


def _usual(name: str) -> str | None:
    """The split that a name starts with, if it is a usual one: `train`, `train_0`, `validation-images`."""
    word = WORD.match(name)
    return SPLIT_NAMES.get(word.group().lower()) if word else None


def split_of(file: PurePath) -> str | None:
    """The split that the name of a file, or of its folder, tells."""
    shard = SHARD.fullmatch(file.stem)
    if shard:
        return split_name(shard["split"])
    return _usual(file.stem) or _usual(file.parent.name)


def _card_features(root: Path, folder: Path) -> datasets.Features | None:
    """Features that README.md or dataset_infos.json declare for the dataset in `folder`, for files that carry none."""
    from datasets.info import DatasetInfosDict

    for place in dict.fromkeys((root, folder, root.parent)):
        if not (place / "dataset_infos.json").is_file() and not _has_front_matter(place / "README.md"):
            continue
        try:
            infos = DatasetInfosDict.from_directory(str(place))
        except Exception:  # a README.md may be anything; then the files must do
            continue
        if infos:
            named = infos.get(folder.name) or infos.get("default") or next(iter(infos.values()))
            return named.features
    return None


def _has_front_matter(card: Path) -> bool:
    """Whether a README.md starts as the card of a dataset does."""
    if not card.is_file():
        return False
    with card.open("rb") as stream:
        return stream.read(3) == b"---"
