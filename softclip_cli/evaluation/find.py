"""Finding a dataset on the disk: what a user names → a folder, its layout and a split, or an error that says how to get it."""

from __future__ import annotations

import os
from pathlib import Path

from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation.catalogue import Entry, catalogue, find_entry
from softclip_cli.evaluation.corpus_sets import find_task
from softclip_cli.evaluation.layouts import WHOLE, Layout, Wanted, all_layouts, match_split, require_split
from softclip_cli.evaluation.names import timm_lines

DATA_VARIABLE = "SOFTCLIP_DATA"
COMMANDS = {
    "classification": "softclip eval zeroshot --dataset",
    "multi-label": "softclip eval zeroshot --dataset",
    "retrieval": "softclip retrieve --split",
    "ratings": "softclip eval alignment --dataset",
    "composition": "softclip eval composition --dataset",
}


def data_root(given: Path | None = None) -> Path:
    """Where datasets are looked up: `given`, else `$SOFTCLIP_DATA`, else `data` in the current folder."""
    return given or Path(os.environ.get(DATA_VARIABLE) or "data")


def parse_dataset(text: str) -> tuple[str, str]:
    """Split `CORPUS:TASK` or `CORPUS:SPLIT` into its parts; the second is empty where there is none."""
    if Path(text).exists() or text.lower() in {name.lower() for name in catalogue()}:
        return text, ""
    base, colon, part = text.rpartition(":")
    return (base, part) if colon and base and part and "/" not in part else (text, "")


def own_folder(base: str) -> Path | None:
    """The user's own folder, or None where `base` is a catalogue name."""
    looks_like_path = base.startswith((".", "~")) or "/" in base or os.sep in base
    if not looks_like_path and base.lower() in {name.lower() for name in catalogue()}:
        return None
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or looks_like_path:
        raise DataError(
            f"no dataset folder at {base}",
            "it is a file" if folder.exists() else "the folder does not exist",
            "name a folder, or a dataset of the catalogue: softclip datasets list",
        )
    find_entry(base)  # raises, with the nearest names
    return None


def corpus_at(folder: Path) -> Corpus | None:
    """The prepared corpus in a folder, or None where there is none."""
    return Corpus.open(folder) if (folder / "corpus.json").is_file() else None


def layout_of(folder: Path, task: str) -> tuple[Layout, list[str]]:
    """The layout of a user's own folder and its splits.

    Raises:
        DataError: none is recognised; lists the accepted ones.
    """
    layouts = [one for one in all_layouts().values() if one.reads(task)]
    for layout in layouts:
        splits = layout.splits(folder, Wanted(), False)
        if splits:
            return layout, splits
    raise DataError(
        f"{folder} has none of the layouts that hold a {task} set",
        "accepted: " + "; ".join(f"({number}) {layout.shape}" for number, layout in enumerate(layouts, 1)),
        "arrange the folder so, or prepare it: softclip data prepare " + str(folder),
    )


def wanted(entry: Entry) -> Wanted:
    """What the catalogue says of a dataset, as far as a reader needs it."""
    return Wanted(
        entry.image_column,
        entry.label_column,
        entry.split_column,
        entry.folder_names,
        entry.classes,
        entry.rating_columns,
        entry.leave_out_own,
        tuple(line for source in entry.ids for line in timm_lines(source.partition(":")[2])),
        entry.whole,
        entry.lists,
        entry.arrays,
        entry.class_lists,
        entry.table,
    )


def find_set(
    name: str, entry: Entry, root: Path, split: str | None, *, by_name: bool = False
) -> tuple[Path, Layout, str]:
    """The folder of a catalogue dataset, its layout and the split's name there.

    With `by_name`, only folders count that are called as the entry says.

    Raises:
        DataError: it is not there (where to get it, which layouts, where it was looked for), or lacks the split.
    """
    layouts = [all_layouts()[layout] for layout in entry.layouts]
    places = [(root / folder, False) for folder in entry.folders if (root / folder).is_dir()]
    if root.is_dir() and not (by_name and root.resolve().name not in entry.folders):
        # The data root may be the dataset itself. Where its name does not say so, others below it must not be mistaken.
        places.append((root, root.resolve().name not in entry.folders))
    without_split: tuple[Path, list[str]] | None = None
    wants = wanted(entry)
    for folder, shallow in places:
        for layout in layouts:
            splits = layout.splits(folder, wants, shallow)
            if splits == [WHOLE] and entry.whole and not shallow:
                splits = [entry.whole]
            if not splits:
                continue
            found = match_split(split or entry.split, splits) or next(
                (there for there, here in entry.aliases.items() if here == (split or entry.split) and there in splits),
                None,
            )
            if found is not None:
                return folder, layout, found
            if not shallow and without_split is None:
                without_split = (folder, splits)
    if without_split is not None:
        require_split(split or entry.split, without_split[1], f"{name} in {without_split[0]}")
    shapes = "; ".join(f"({number}) {layout.shape_of(wants)}" for number, layout in enumerate(layouts, 1))
    looked = f"{', '.join(entry.folders)} in {root}/ and {root}/ itself"
    there = next((place for place, shallow in places if not shallow), None)
    state = f"{there} is there, but not in an accepted layout; " if there else ""
    target = root / entry.folders[0]
    sources = [part for part in (entry.download(str(target)), entry.site) if part]
    raise DataError(
        f"dataset {name} is not on this machine",
        f"{state}looked for {looked}. Accepted layouts: {shapes}. Example: {target / entry.example}",
        f"get it ({' or '.join(sources)}), or name its place with --data-root DIR",
    )


def tasks_of(dataset: str) -> list[str]:
    """What a dataset can be used for: the catalogue's task, or what a folder's layouts or a corpus offer.

    Returns:
        Some of "classification", "multi-label", "retrieval", "ratings".

    Raises:
        DataError: it is neither in the catalogue nor a folder.
    """
    base, _ = parse_dataset(dataset)
    folder = own_folder(base)
    if folder is None:
        return [find_entry(base)[1].task]
    corpus = corpus_at(folder)
    kinds = {"zeroshot": "classification", "retrieval": "retrieval"}
    offered = [task for kind, task in kinds.items() if corpus is not None and find_task(corpus, kind)]
    if offered:
        return offered
    found: dict[str, str] = {}
    for task in ("classification", "multi-label", "retrieval"):
        for layout in all_layouts().values():
            if layout.reads(task) and layout.splits(folder, Wanted(), False):
                found[task] = layout.name
                break
    if found.get("multi-label") == found.get("classification"):
        found.pop("multi-label", None)  # one label an image is what such a folder usually has
    if found.get("classification") == "class-folders" and len(found) > 1:
        # Any folder of images reads as a class; one with a file of captions or labels beside it is not.
        del found["classification"]
    return list(found)


def present(name: str, root: Path) -> Path | None:
    """The folder in which a catalogue dataset is found with the split that is reported, or None."""
    entry = catalogue()[name]
    try:
        return find_set(name, entry, root, None, by_name=True)[0]
    except DataError:
        return None


def require_task(name: str, entry: Entry, task: str) -> None:
    """Check that a dataset is of the kind that a command evaluates.

    Raises:
        UsageError: it is not; names the command for it.
    """
    if entry.task != task:
        raise UsageError(
            f"{name} is a {entry.task} set", f"{entry.title}", f"use it with: {COMMANDS[entry.task]} {name}"
        )
