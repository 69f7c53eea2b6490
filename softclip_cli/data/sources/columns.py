"""Which column of a table holds what: given names are checked, missing ones guessed, every guess with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from softclip_cli.data.sources.base import SPLIT_NAMES, SourceOptions
from softclip_cli.data.sources.readers import Reader
from softclip_cli.data.sources.walk import is_image_name
from softclip_cli.errors import UsageError, nearest

# The usual names, the likeliest first; compared in lower case with _ for spaces and dashes.
# fmt: off
IMAGE_NAMES = (
    "image", "filepath", "file_path", "image_path", "img_path", "image_file", "image_filename", "image_name",
    "file_name", "filename", "img", "jpg", "png", "jpeg", "webp", "picture", "photo", "pixel_values", "path", "file",
)
CAPTION_NAMES = (
    "caption", "captions", "title", "text", "txt", "texts", "sentences", "sentence", "description", "descriptions",
    "alt_text", "alt", "raw_caption", "prompt", "comment",
)
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "fine_label", "coarse_label", "class_name", "class_id",
)
# fmt: on
SPLIT_COLUMN_NAMES = ("split", "subset", "partition")
KEY_NAMES = ("key", "__key__")
NUMBERED_CAPTION = re.compile(r"(caption|sentence|text|comment|description)s?_?\d+")


@dataclass
class Columns:
    """The columns to read; `notes` gives a line for each guess."""

    image: str
    captions: list[str]
    label: str | None = None
    group: str | None = None
    split: str | None = None
    key: str | None = None
    notes: list[str] = field(default_factory=list)

    def choices(self) -> dict[str, str | list[str]]:
        """What goes into corpus.json."""
        named = {"image_column": self.image, "caption_columns": self.captions, "label_column": self.label}
        named |= {"group_column": self.group, "split_column": self.split, "key_column": self.key}
        return {name: column for name, column in named.items() if column}


def choose_columns(reader: Reader, options: SourceOptions, *, split_known: bool = False) -> Columns:
    """Take the columns that the options name and guess the others.

    Args:
        reader: the table (the first one, if there are several).
        options: the user's choice.
        split_known: the split of each row is known already, so no split column is looked for.

    Raises:
        UsageError: a named column does not exist (all such are named, with the nearest ones), or no image column, or
            neither a caption nor a label column is found.
    """
    _check_given(reader, options)
    notes: list[str] = []

    def guessed(what: str, found: tuple[str, str] | None) -> str | None:
        if found:
            notes.append(f"{what}: {found[0]!r} ({found[1]})")
        return found[0] if found else None

    image = options.image_column or guessed("image column", _guess_image(reader))
    if image is None:
        raise UsageError(
            f"no image column found in {reader.name}",
            "its columns: " + ", ".join(reader.columns),
            "name the one that holds image paths or bytes: --image-column NAME",
        )
    captions = list(options.caption_columns)
    if not captions:
        captions, why = _guess_captions(reader, image, options)
        if captions:
            notes.append(f"caption column{'s' * (len(captions) > 1)}: {', '.join(map(repr, captions))} ({why})")
    label = options.label_column or guessed("label column", _guess_label(reader, bool(captions), [image, *captions]))
    if not captions and label is None:
        raise UsageError(
            f"no caption column found in {reader.name}",
            "its columns: " + ", ".join(reader.columns),
            "name it: --caption-column NAME, or for a labelled set --label-column NAME",
        )
    split = options.split_column or (None if split_known else guessed("split column", _guess_split(reader)))
    key = options.key_column or guessed("key column", _by_name(reader, KEY_NAMES, {"text", "unknown"}))
    return Columns(image, captions, label, options.group_column, split, key, notes)


def _check_given(reader: Reader, options: SourceOptions) -> None:
    given = [("--image-column", options.image_column), ("--label-column", options.label_column)]
    given += [("--caption-column", name) for name in options.caption_columns]
    given += [("--group-column", options.group_column), ("--split-column", options.split_column)]
    given += [("--key-column", options.key_column)]
    wrong = [(option, name) for option, name in given if name is not None and name not in reader.columns]
    if wrong:
        close = " ".join(f"{name!r}: {hint}" for _, name in wrong if (hint := nearest(name, reader.columns)))
        raise UsageError(
            f"{reader.name} has no column " + ", ".join(f"{name!r} ({option})" for option, name in wrong),
            "its columns: " + ", ".join(reader.columns),
            close if len(wrong) > 1 else close.partition(": ")[2] or "name one of them",
        )


def normal(name: str) -> str:
    """A column's name in lower case with _ for spaces and dashes."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _by_name(reader: Reader, names: Sequence[str], kinds: set[str]) -> tuple[str, str] | None:
    by_name: dict[str, str] = {}
    for column in reader.columns:
        by_name.setdefault(normal(column), column)
    for name in names:
        if name in by_name and reader.kind(by_name[name]) in kinds:
            return by_name[name], "a usual name for it"
    return None


def _guess_image(reader: Reader) -> tuple[str, str] | None:
    encoded = [name for name in reader.columns if reader.kind(name) == "image"]
    usual = [name for want in IMAGE_NAMES for name in encoded if normal(name) == want]
    if encoded:
        return (usual or encoded)[0], "it holds encoded images"
    # A column of file names is surer than a name: tables have an `image` column of numbers and a `file_name` beside it.
    texts = [name for name in reader.columns if reader.kind(name) in {"text", "unknown"}]
    rows = reader.sample(texts)
    paths = []
    for place, name in enumerate(texts):
        values = [str(row[place]) for row in rows if row[place]]
        if values and sum(is_image_name(value) for value in values) >= 0.8 * len(values):
            paths.append(name)
    usual = [name for want in IMAGE_NAMES for name in paths if normal(name) == want]
    if paths:
        return (usual or paths)[0], "its values are names of image files"
    return _by_name(reader, IMAGE_NAMES, {"text", "unknown"})


def _guess_captions(reader: Reader, image: str, options: SourceOptions) -> tuple[list[str], str]:
    taken = {options.label_column, image}
    kinds = {"text", "list", "unknown"}
    found = _by_name(reader, CAPTION_NAMES, kinds)
    if found and found[0] not in taken:
        return [found[0]], found[1]
    numbered = [
        name for name in reader.columns if NUMBERED_CAPTION.fullmatch(normal(name)) and reader.kind(name) in kinds
    ]
    if numbered:
        return numbered, "numbered captions"
    known = {*IMAGE_NAMES, *LABEL_NAMES, *SPLIT_COLUMN_NAMES, *KEY_NAMES, "id", "index", "url"}
    others = [
        name
        for name in reader.columns
        if name not in taken and reader.kind(name) in kinds and normal(name) not in known
    ]
    if len(reader.columns) == 2 and len(others) == 1:
        return others, "the only other column"
    return [], ""


def _guess_label(reader: Reader, has_captions: bool, taken: list[str]) -> tuple[str, str] | None:
    classes = [name for name in reader.columns if reader.kind(name) == "class"]
    usual = [name for want in LABEL_NAMES for name in classes if normal(name) == want]
    if classes:
        return (usual or classes)[0], "it is a ClassLabel"
    # A table with captions may have a column `label` that means anything: there it must be asked for.
    if has_captions:
        return None
    found = _by_name(reader, LABEL_NAMES, {"number", "text", "unknown"})
    return found if found and found[0] not in taken else None


def _guess_split(reader: Reader) -> tuple[str, str] | None:
    found = _by_name(reader, SPLIT_COLUMN_NAMES, {"text", "unknown", "class"})
    if not found:
        return None
    values = {str(row[0]).strip().lower() for row in reader.sample([found[0]]) if row[0] is not None}
    return found if values and values <= {*SPLIT_NAMES, "restval"} else None
