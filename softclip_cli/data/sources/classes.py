"""Class folders: `class/*.jpg`, or `split/class/*.jpg` and `domain/class/*.jpg`, whose upper folders become splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from softclip_cli.data.sources.base import SPLIT_NAMES, Candidate, Dropped, Part, Source, SourceOptions
from softclip_cli.data.sources.walk import is_image_name, relative, walk
from softclip_cli.errors import DataError, UsageError


def detect(source: str) -> str | None:
    """Recognise a folder whose images all lie in subfolders."""
    root = Path(source)
    if not root.is_dir():
        return None
    classes = set()
    for folder, files in walk(root):
        if any(map(is_image_name, files)):
            if folder == root:
                return None
            classes.add(relative(folder, root))
    if len(classes) < 2:
        return None
    tops = _upper_folders(classes)
    if tops:
        names = {name.split("/", 1)[1] for name in classes}
        return f"class folders: {len(names)} classes below each of {', '.join(sorted(tops))}"
    return f"class folders: images in {len(classes)} folders, such as {min(classes)}/, and no captions"


def _upper_folders(classes: set[str]) -> set[str]:
    """The top folders, if they are splits or domains of the same classes rather than classes themselves."""
    below: dict[str, set[str]] = {}
    for name in classes:
        top, slash, rest = name.partition("/")
        if not slash:
            return set()
        below.setdefault(top, set()).add(rest)
    if all(top.lower() in SPLIT_NAMES for top in below):
        return set(below)
    union = set().union(*below.values())
    shared = set.intersection(*below.values())
    # Domains repeat the classes; a hierarchy of classes (animal/dog, vehicle/car) does not.
    return set(below) if len(below) > 1 and len(shared) >= len(union) / 2 else set()


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open class folders. Classes are numbered in the sorted order of their names, or as `--class-names` lists them.

    Raises:
        DataError: there are no images in subfolders.
        UsageError: `class_names` misses a folder.
    """
    root = Path(source)
    counts = {relative(folder, root): sum(map(is_image_name, files)) for folder, files in walk(root) if folder != root}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        raise DataError(
            f"{root} holds no class folders",
            "no subfolder holds images",
            "expected CLASS/x.jpg, SPLIT/CLASS/x.jpg or DOMAIN/CLASS/x.jpg",
        )
    tops = _upper_folders(set(counts))
    class_of = {folder: folder.split("/", 1)[1] if tops else folder for folder in counts}
    names = sorted(set(class_of.values()))
    if options.class_names is not None:
        missing = sorted(set(names) - set(options.class_names))
        if missing:
            raise UsageError(
                "--class-names does not name every class folder",
                "missing: " + ", ".join(missing[:10]),
                "for class folders its names are the folders', in the order of the class numbers",
            )
        names = list(options.class_names)
    found = Source("classes", source, reason, [], has_captions=False, class_names=names)
    if tops:
        found.choices["splits"] = "folders"
        found.notes.append(f"splits: the folders {', '.join(sorted(tops))}")
    number = {name: index for index, name in enumerate(names)}
    labels = {folder: number[name] for folder, name in class_of.items()}

    def part(top: str | None) -> Part:
        total = sum(count for folder, count in counts.items() if top is None or folder.split("/", 1)[0] == top)
        return Part(top or str(root), lambda: _records(root, top, labels), split=top, total=total)

    found.parts = [part(top) for top in sorted(tops)] if tops else [part(None)]
    if loose := [name for name in next(walk(root))[1] if is_image_name(name)]:
        found.parts.append(Part("loose images", lambda: _loose(loose), total=len(loose)))
    return found


def _loose(names: list[str]) -> Iterator[Dropped]:
    for name in names:
        yield Dropped(name, "", "no-class-folder", "it lies beside the class folders, not in one")


def _records(root: Path, top: str | None, labels: dict[str, int]) -> Iterator[Candidate]:
    for folder, files in walk(root / top if top else root):
        label = labels.get(relative(folder, root))
        if label is None:
            continue
        for name in filter(is_image_name, files):
            key = relative(folder / name, root)
            yield Candidate(key, folder / name, [], split=top, label=label, where=key)
