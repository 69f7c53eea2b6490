"""The table of sources, and the detection of the right one. A new source is a module and a row here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from softclip_cli.data.sources import classes, coco, flickr, hub, karpathy, pairs, parquet, tables, webdataset
from softclip_cli.data.sources.base import Source, SourceOptions
from softclip_cli.data.sources.places import is_address, is_pattern, shown
from softclip_cli.errors import DataError, UsageError, nearest

COLUMN_OPTIONS = frozenset(
    f"{name}_column{'s' * (name == 'caption')}" for name in ("image", "caption", "label", "group", "split", "key")
) | {"image_root", "class_names"}


@dataclass(frozen=True)
class SourceKind:
    """A kind of source.

    Attributes:
        layout: what it looks like, for people.
        detect: the reason why a path or name is of this kind, or None.
        open: opens it.
        options: the options that mean something for it, beside those that mean something for all.
    """

    layout: str
    detect: Callable[[str], str | None]
    open: Callable[[str, SourceOptions, str], Source]
    options: frozenset[str]


# In the order in which they are tried: a folder of pairs that has a table of statistics in it is still one of pairs.
SOURCES: dict[str, SourceKind] = {
    "datasets": SourceKind(
        "a folder written by datasets.save_to_disk", hub.detect_folder, hub.open_folder, COLUMN_OPTIONS
    ),
    "flickr": SourceKind(
        "Flickr8k.token.txt or captions.txt, images beside it",
        flickr.detect,
        flickr.open_source,
        frozenset({"image_root", "encoding"}),
    ),
    "karpathy": SourceKind(
        "dataset_coco.json, dataset_flickr8k.json or dataset_flickr30k.json",
        karpathy.detect,
        karpathy.open_source,
        frozenset({"image_root"}),
    ),
    "coco": SourceKind(
        "captions_val2017.json, or annotations/ with such files beside the image folders",
        coco.detect,
        coco.open_source,
        frozenset({"image_root"}),
    ),
    "pairs": SourceKind(
        "a folder of x.jpg with x.txt or x.json", pairs.detect, pairs.open_source, frozenset({"encoding"})
    ),
    "webdataset": SourceKind(
        "tars of x.jpg with x.txt, x.json or x.cls",
        webdataset.detect,
        webdataset.open_source,
        frozenset({"caption_columns", "class_names", "encoding"}),
    ),
    "table": SourceKind(
        "a .csv, .tsv, .jsonl or .parquet table", tables.detect, tables.open_source, COLUMN_OPTIONS | {"encoding"}
    ),
    "parquet": SourceKind(
        "a folder of Parquet files in the Hub's layout", parquet.detect, parquet.open_source, COLUMN_OPTIONS
    ),
    "classes": SourceKind(
        "CLASS/x.jpg, SPLIT/CLASS/x.jpg or DOMAIN/CLASS/x.jpg",
        classes.detect,
        classes.open_source,
        frozenset({"class_names"}),
    ),
    "hub": SourceKind("the name of a dataset on the Hub, org/name", hub.detect_hub, hub.open_hub, COLUMN_OPTIONS),
}
# What can also be a pattern of files or an fsspec address.
ANYWHERE = ("webdataset", "parquet")
FOR_ALL = frozenset({"format", "split_lists"})


def open_source(source: str, options: SourceOptions) -> Source:
    """Open a path, or a name on the Hub, as the kind that `options.format` says or that is detected.

    Raises:
        DataError: it does not exist, is of no kind that is known, or cannot be read.
        UsageError: an unknown format, an option that means nothing for the format, a wrong column.
    """
    name, reason = _kind(source, options.format)
    kind = SOURCES[name]
    _check_options(name, kind, options)
    try:
        return kind.open(source, options, reason)
    except OSError as error:
        raise DataError(f"{source} cannot be read", str(error), "check the path and its permissions") from error


def _kind(source: str, wanted: str | None) -> tuple[str, str]:
    if wanted is not None:
        if wanted not in SOURCES:
            raise UsageError(
                f"unknown format {wanted!r}", "known: " + ", ".join(SOURCES), nearest(wanted, SOURCES) or "leave it out"
            )
        anywhere = is_address(source) or is_pattern(source)
        if wanted != "hub" and not (anywhere and wanted in ANYWHERE) and not Path(source).exists():
            raise _missing(source)
        return wanted, "asked for by --format"
    if is_address(source) or is_pattern(source):
        return _kind_anywhere(source)
    for name, kind in SOURCES.items():
        try:
            reason = kind.detect(source)
        except OSError as error:
            raise DataError(f"{source} cannot be read", str(error), "check the path and its permissions") from error
        if reason:
            return name, reason
    path = Path(source)
    if not path.exists():
        raise _missing(source)
    if path.is_dir() and not any(path.iterdir()):
        raise DataError(f"{source} is an empty folder", hint="check the path")
    layouts = "; ".join(f"{kind.layout} ({name})" for name, kind in SOURCES.items())
    raise DataError(f"{source} is in no form that softclip knows", _what_is_there(path), f"accepted: {layouts}")


def _kind_anywhere(source: str) -> tuple[str, str]:
    for name in ANYWHERE:
        reason = SOURCES[name].detect(source)
        if reason:
            return name, reason
    raise DataError(
        f"no tars and no Parquet files at {shown(source)}",
        "patterns and addresses are taken for these two forms only",
        "check the pattern, or copy the data here",
    )


def _missing(source: str) -> DataError:
    path = Path(source)
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    why = "" if parent.is_dir() else f"the folder {parent} does not exist either"
    return DataError(f"no data at {source}", why, nearest(path.name, beside) or "check the path")


def _what_is_there(path: Path) -> str:
    if path.is_file():
        return f"the suffix {path.suffix!r} is not one of a table" if path.suffix else "the file has no suffix"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return "it holds " + ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _check_options(name: str, kind: SourceKind, options: SourceOptions) -> None:
    known = {field.name for field in dataclasses.fields(SourceOptions)}
    defaults = SourceOptions()
    given = [field for field in known if getattr(options, field) != getattr(defaults, field)]
    useless = sorted(field for field in given if field not in kind.options and field not in FOR_ALL)
    if useless:
        flags = ", ".join(
            "--" + field.removesuffix("s" * (field == "caption_columns")).replace("_", "-") for field in useless
        )
        takers = ", ".join(other for other, its in SOURCES.items() if set(useless) <= its.options)
        raise UsageError(
            f"{flags} means nothing for the format {name!r}",
            f"the source was taken for {kind.layout}",
            f"leave it out, or say --format ({takers})" if takers else "leave it out",
        )
