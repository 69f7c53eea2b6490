"""WebDataset: tars of `key.jpg` with `key.txt`, `key.json` or `key.cls`, as img2dataset writes them, local or at an address.

Read by a reader of our own (`tar_stream.py`): the webdataset package hands out dictionaries of whole samples, raises for a
doubled name, and says nothing about what it skips, while here every member that is not used has to be counted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from softclip_cli.data.sources.base import (
    MAX_IMAGE_BYTES,
    SPLIT_NAMES,
    Candidate,
    Dropped,
    Part,
    Source,
    SourceOptions,
    printable,
)
from softclip_cli.data.sources.download_stats import read_stats
from softclip_cli.data.sources.labels import MAX_CLASSES
from softclip_cli.data.sources.places import expand, file_name, is_address, is_pattern, natural, shown
from softclip_cli.data.sources.tar_samples import (
    TAR_SUFFIXES,
    NoCaption,
    TarSample,
    captions_of,
    decode_text,
    read_samples,
)
from softclip_cli.data.sources.tar_stream import TarDamage
from softclip_cli.data.sources.walk import walk
from softclip_cli.errors import DataError, UsageError

DETECT_FOLDERS = 1000
PEEK_TARS, PEEK_SAMPLES = 3, 100


def detect(source: str) -> str | None:
    """Recognise a tar, a pattern or address of tars, or a folder with tars whose first samples have an image and more."""
    if is_address(source) or is_pattern(source):
        tars = expand(source, TAR_SUFFIXES)
        return f"WebDataset: {_count(tars)}, such as {file_name(tars[0])}" if tars else None
    path = Path(source)
    if path.is_file():
        return f"WebDataset: a tar, {path.name}" if path.name.lower().endswith(TAR_SUFFIXES) else None
    if not path.is_dir():
        return None
    tars = [
        str(folder / name)
        for folder, names in islice(walk(path), DETECT_FOLDERS)
        for name in names
        if name.lower().endswith(TAR_SUFFIXES)
    ]
    for tar in sorted(tars, key=natural)[:PEEK_TARS]:
        for sample in islice(read_samples(tar, images=False), PEEK_SAMPLES):
            # A tar of bare images is somebody's archive, not a WebDataset.
            if isinstance(sample, TarSample) and sample.images and sample.sides:
                names = [next(iter(members.values())).name for members in (sample.images, sample.sides)]
                return f"WebDataset: {_count(tars)}; {file_name(tar)} has {printable(' and '.join(names))}"
    return None


def _count(tars: list[str]) -> str:
    return f"{len(tars):,} tar{'s' * (len(tars) != 1)}"


def open_source(source: str, options: SourceOptions, reason: str) -> Source:
    """Open tars; splits come from the names of folders and files, statistics of the download from beside the tars.

    Raises:
        DataError: there is no tar, one that a pattern names is missing, or none has images with captions or classes.
        UsageError: classes without names that cannot be counted.
    """
    tars = expand(source, TAR_SUFFIXES)
    if not tars:
        raise DataError(
            f"{shown(source)} holds no tars", "looked for .tar, .tar.gz and .tgz", "check the path or pattern"
        )
    missing = [tar for tar in tars if not is_address(tar) and not Path(tar).is_file()]
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{len(missing)} of the {len(tars)} tars do not exist", names, "check the range in the braces")
    has_captions, has_labels = _peek(tars, options)
    found = Source("webdataset", shown(source), reason, [], has_captions=has_captions)
    found.notes.append(f"{_count(tars)}, read in a stream; nothing is unpacked to the disk")
    splits = [_split(tar, source) for tar in tars]
    if all(splits):
        found.choices["splits"] = "names of folders or tars"
        found.notes.append(
            "splits: " + ", ".join(dict.fromkeys(map(str, splits))) + ", from the names of folders or tars"
        )
    else:
        splits = [None] * len(tars)
    if has_labels:
        _name_classes(found, source, tars, options)
    if options.caption_columns:
        found.choices["caption_columns"] = list(options.caption_columns)
    stats = read_stats(source, tars)
    if stats:
        found.choices["download"] = stats.report()
        found.notes.extend(stats.notes())
    for tar, split in zip(tars, splits, strict=True):
        records = _Records(tar, split, options, found)
        found.parts.append(Part(file_name(tar), records, split=split, total=stats.by_tar.get(tar) if stats else None))
    return found


def _peek(tars: list[str], options: SourceOptions) -> tuple[bool, bool]:
    """Whether the first samples have captions, and whether they have classes.

    Raises:
        DataError: they have neither.
    """
    has_captions = has_labels = has_images = False
    damage = ""
    for tar in tars[:PEEK_TARS]:
        for sample in islice(read_samples(tar, images=False), PEEK_SAMPLES):
            if isinstance(sample, TarDamage):
                damage = damage or f"; {file_name(tar)} is damaged: {sample}"
                continue
            has_images |= bool(sample.images)
            has_labels |= any(kind == "cls" for _, kind in sample.sides)
            for middle in sample.images:
                with contextlib.suppress(NoCaption):
                    has_captions |= bool(captions_of(sample, middle, options.encoding, options.caption_columns))
        if has_captions or has_labels:
            return has_captions, has_labels
    looked = ", ".join(file_name(tar) for tar in tars[:PEEK_TARS])
    why = "images, but no .txt, .caption, .json with a caption, or .cls of the same name" if has_images else "no images"
    raise DataError(
        f"{looked}: no sample has an image with a caption or a class",
        f"the first samples have {why}{damage}",
        "the files of a sample share their name up to the first dot, and stand together: tar --sort=name -cf x.tar FOLDER",
    )


def _split(tar: str, source: str) -> str | None:
    """The split that a folder, or a word of the tar's name, is named after: `val/0.tar`, `cc3m-train-0012.tar`."""
    place = PurePosixPath(shown(tar))
    base = PurePosixPath(shown(source))
    below = place.relative_to(base).parts if place.is_relative_to(base) else place.parts[-2:]
    for part in below or (place.name,):
        for word in re.split(r"[^A-Za-z]+", part):
            if word.lower() in SPLIT_NAMES:
                return SPLIT_NAMES[word.lower()]
    return None


def _name_classes(found: Source, source: str, tars: list[str], options: SourceOptions) -> None:
    """Set the names of the classes, if they can be known; beside captions, classes without names are left alone."""
    listed = _listed_classes(source)
    if options.class_names is not None:
        found.class_names, why = list(options.class_names), "--class-names"
    elif listed:
        found.class_names, why = listed
    elif found.has_captions:
        return
    elif any(map(is_address, tars)):
        raise UsageError(
            "the classes have no names",
            "to count them, all tars would have to be fetched",
            "give --class-names A,B,...",
        )
    else:
        found.class_names = [str(number) for number in range(_highest_class(tars) + 1)]
        why = "numbers without names; --class-names gives them names"
    found.notes.append(f"classes: {len(found.class_names)} ({why})")


def _listed_classes(source: str) -> tuple[list[str], str] | None:
    """The names in `classnames.txt`, beside the tars or one folder above, as CLIP_benchmark lays its sets out."""
    if is_pattern(source) or is_address(source):
        return None
    path = Path(source)
    for folder in (path, path.parent):
        file = folder / "classnames.txt"
        if file.is_file():
            names = [line.strip() for line in decode_text(file.read_bytes(), "utf-8").split("\n") if line.strip()]
            if names and len(set(names)) == len(names):
                return [printable(name) for name in names], file.name
    return None


def _highest_class(tars: list[str]) -> int:
    highest = -1
    for tar in tars:
        for sample in read_samples(tar, images=False):
            if isinstance(sample, TarDamage):
                continue
            for middle in sample.images:
                with contextlib.suppress(ValueError):
                    highest = max(highest, _class_number(sample, middle) or 0)
    if not 0 <= highest < MAX_CLASSES:
        raise DataError(
            "the .cls files do not number classes", f"the highest number is {highest}", "give --class-names A,B,..."
        )
    return highest


def _class_number(sample: TarSample, middle: str) -> int | None:
    """The content of `key.cls`; None where there is none, or a negative one, which marks the unlabelled.

    Raises:
        ValueError: it is no number.
    """
    member = sample.side(middle, "cls")
    if member is None or member.data is None:
        return None
    number = int(member.data[:40].decode("ascii", "replace").strip())
    return number if number >= 0 else None


class _Records:
    """The candidates of one tar; called, it reads from the beginning."""

    def __init__(self, tar: str, split: str | None, options: SourceOptions, source: Source) -> None:
        self.tar, self.name, self.split = tar, file_name(tar), split
        self.encoding, self.fields = options.encoding, options.caption_columns
        self.has_captions, self.class_names = source.has_captions, source.class_names

    def __call__(self) -> Iterator[Candidate | Dropped]:
        for sample in read_samples(self.tar):
            if isinstance(sample, TarDamage):
                yield self._dropped(self.name, "damaged-tar", f"{self.name}: {sample}; what follows is lost")
                continue
            if sample.refused:  # whoever puts one such member into a sample is not to be trusted with the others
                member = sample.refused[0]
                detail = f"{self.name}: {printable(member.name)[:300]!r} is {member.problem}"
                yield self._dropped(printable(sample.key)[:300], "refused-member", detail)
                continue
            if not sample.images:
                names = ", ".join(printable(member.name) for member in sample.sides.values())
                yield self._dropped(printable(sample.key), "no-image-file", f"{self.name}: {names} and no image")
            for middle in sample.images:
                yield self._record(sample, middle)

    def _dropped(self, key: str, reason: str, detail: str) -> Dropped:
        return Dropped(key, self.split or "", reason, detail)

    def _record(self, sample: TarSample, middle: str) -> Candidate | Dropped:
        member = sample.images[middle]
        key = printable(sample.key + (f".{middle}" if middle and len(sample.images) > 1 else ""))
        where = f"{self.name}: {printable(member.name)}"
        if member.data is None:
            megabytes = member.size >> 20
            return self._dropped(
                key, "image-too-large", f"{where} has {megabytes:,} MB, more than {MAX_IMAGE_BYTES >> 20}"
            )
        captions: list[str] = []
        if self.has_captions:
            try:
                captions = captions_of(sample, middle, self.encoding, self.fields)
            except NoCaption as problem:
                return self._dropped(key, problem.reason, f"{where}: {problem.detail}")
        label = None
        if self.class_names is not None:
            try:
                label = _class_number(sample, middle)
            except ValueError as error:
                return self._dropped(key, "unknown-label", f"{where}: {error}")
            if label is not None and label >= len(self.class_names):
                return self._dropped(key, "unknown-label", f"{where}: class {label} of {len(self.class_names)}")
            if label is None and not self.has_captions:
                return self._dropped(key, "no-label", f"{where} has no .cls")
        return Candidate(key, member.data, captions, self.split, label, None, where, member.name)
