"""`datasets`: a folder written by `save_to_disk` (a prepared corpus is one too), or a name on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from softclip_cli.data.sources.arrow_readers import DatasetReader
from softclip_cli.data.sources.base import Source, SourceOptions, split_name
from softclip_cli.data.sources.tables import table_source
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets

HUB_NAME = re.compile(r"(?:hf://)?(?:datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")


def detect_folder(source: str) -> str | None:
    """Recognise what `datasets.save_to_disk` writes."""
    root = Path(source)
    for name in ("dataset_dict.json", "state.json"):
        if (root / name).is_file():
            return f"a `datasets` folder: it has {name}"
    return None


def open_folder(source: str, options: SourceOptions, reason: str) -> Source:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DataError: the folder cannot be read.
        UsageError: a column that does not exist, or none found.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(source)
    except Exception as error:  # `datasets` and Arrow raise many kinds for a damaged folder
        raise DataError(
            f"{source} cannot be read as a `datasets` folder", f"{type(error).__name__}: {error}", "save it again"
        ) from error
    return _from_datasets("datasets", source, reason, loaded, options)


def detect_hub(source: str) -> str | None:
    """Recognise `org/name`, `org/name:configuration` and `hf://datasets/org/name` that are no paths on this machine."""
    # Where a folder `org` lies here, `org/name` is rather a path with a slip of the pen than a name on the Hub.
    if Path(source).exists() or Path(source).parent.is_dir() or not HUB_NAME.fullmatch(source):
        return None
    return "a name on the Hugging Face Hub: there is no such path here"


def open_hub(source: str, options: SourceOptions, reason: str) -> Source:
    """Download (or take from the local cache) a dataset of the Hub; a local path is read as a repository of the Hub.

    Raises:
        DataError: it cannot be fetched.
        UsageError: a column that does not exist, or none found.
    """
    import datasets

    match = HUB_NAME.fullmatch(source)
    name, config = (match["name"], match["config"]) if match and not Path(source).exists() else (source, None)
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # connection, absence, gating, configuration, script: each library layer has its own
        raise DataError(
            f"{source} is neither on this machine nor to be had from the Hub",
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}",
            "check the spelling and the connection; or fetch it elsewhere "
            f"(hf download --repo-type dataset {name} --local-dir FOLDER), copy the folder here and prepare that",
        ) from error
    return _from_datasets("hub", source, reason, loaded, options)


def _from_datasets(
    format_name: str, source: str, reason: str, loaded: datasets.Dataset | datasets.DatasetDict, options: SourceOptions
) -> Source:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        tables = [(split_name(name), DatasetReader(split, f"split {name}")) for name, split in loaded.items()]
    else:
        tables = [(None, DatasetReader(loaded, Path(source).name))]  # type: ignore[list-item]
    if not tables:
        raise DataError(f"{source} holds no splits")
    return table_source(format_name, source, reason, tables, options, Path(source))
