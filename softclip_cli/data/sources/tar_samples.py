"""Samples of a WebDataset tar: members that stand together and share a name up to its first dot."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from softclip_cli.data.sources.base import CAPTION_KEYS, MAX_CAPTION_FILE_BYTES, MAX_IMAGE_BYTES
from softclip_cli.data.sources.places import is_address, open_binary, shown
from softclip_cli.data.sources.tar_stream import Member, TarDamage, read_tar
from softclip_cli.data.sources.walk import IMAGE_SUFFIXES
from softclip_cli.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXT_KINDS = ("txt", "text", "caption")  # the first one that a sample has is its caption
SIDE_KINDS = (*TEXT_KINDS, "json", "cls")
MAX_SAMPLE_BYTES = 2 * MAX_IMAGE_BYTES  # members of one key beyond this count as another sample: a tar may never end
MAX_SAMPLE_MEMBERS = 1000
LIST_KEYS = ("captions", "texts", "sentences")


@dataclass
class TarSample:
    """What a tar has under one key.

    Attributes:
        key: the common part of the members' names.
        images: each image member, by what its name has between key and suffix: "" for `key.jpg`, "left" for `key.left.jpg`.
        sides: the members beside the images, by (the same, kind), such as ("", "txt").
        refused: members that are not read, for their kind or their path.
        size, members: bytes and members held.
    """

    key: str
    images: dict[str, Member] = field(default_factory=dict)
    sides: dict[tuple[str, str], Member] = field(default_factory=dict)
    refused: list[Member] = field(default_factory=list)
    size: int = 0
    members: int = 0

    def is_full(self) -> bool:
        """Whether it holds so much that no more should be taken into memory."""
        return self.size >= MAX_SAMPLE_BYTES or self.members >= MAX_SAMPLE_MEMBERS

    def side(self, middle: str, kind: str) -> Member | None:
        """The member of a kind that belongs to an image: its own, else the one for the whole sample."""
        return self.sides.get((middle, kind)) or self.sides.get(("", kind))


def read_samples(place: str, images: bool = True) -> Iterator[TarSample | TarDamage]:
    """Yield the samples of a tar in order; the damage that ends a tar early comes last, as a value.

    Args:
        place: a path or an fsspec address.
        images: also read the images' bytes, not only what stands beside them.

    Raises:
        DataError: the place cannot be read (the tar may still be whole).
        HostError: a package for this kind of address is missing.
    """

    def limit(name: str) -> int:
        kind = name.rpartition(".")[2].lower()
        if kind in SIDE_KINDS:
            return MAX_CAPTION_FILE_BYTES
        return MAX_IMAGE_BYTES if images and "." + kind in IMAGE_SUFFIXES else -1

    with open_binary(place) as stream:
        try:
            opened = gzip.GzipFile(fileobj=stream) if place.lower().endswith(("gz",)) else stream
            yield from _grouped(read_tar(cast(IO[bytes], opened), limit))
        except (TarDamage, EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield error if isinstance(error, TarDamage) else TarDamage(f"its compression is damaged: {error}")
        except Exception as error:
            if not is_address(place) and not isinstance(error, OSError):
                raise  # a bug of ours; storage services have errors of their own
            raise DataError(
                f"{shown(place)} cannot be read to its end", f"{type(error).__name__}: {error}", "run it again"
            ) from error


def _grouped(members: Iterator[Member]) -> Iterator[TarSample]:
    sample: TarSample | None = None
    try:
        for member in members:
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            if (base.startswith(".") and not member.problem) or folder.startswith("__MACOSX"):
                continue
            stem, _, rest = base.partition(".")
            key = folder + slash + stem
            middle, _, kind = rest.lower().rpartition(".")
            image, side = "." + kind in IMAGE_SUFFIXES, kind in SIDE_KINDS
            if not image and not side and not member.problem:
                continue
            # A name that the sample has already starts another sample: appended tars repeat their keys.
            again = sample is not None and ((image and middle in sample.images) or (middle, kind) in sample.sides)
            if sample is None or sample.key != key or again or sample.is_full():
                if sample is not None:
                    yield sample
                sample = TarSample(key)
            sample.members += 1
            sample.size += len(member.data or b"")
            if member.problem:
                sample.refused.append(member)
            elif image:
                sample.images[middle] = member
            else:
                sample.sides[middle, kind] = member
    except TarDamage:
        if sample is not None:
            yield sample
        raise
    if sample is not None:
        yield sample


class NoCaption(Exception):
    """A sample's captions cannot be had; `reason` is a key of `clean.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def captions_of(sample: TarSample, middle: str, encoding: str, fields: tuple[str, ...] = ()) -> list[str]:
    """The raw captions of an image: a list of captions in its JSON, else its text file as one caption, else a caption in
    its JSON. With `fields` given, what the JSON has under these names.

    Raises:
        NoCaption: there is none, or the file that has it cannot be read.
    """
    document: Any = None
    problem = ""
    described = sample.side(middle, "json")
    if described is not None:
        try:
            document = json.loads(decode_text(_data(described), encoding))
        except (ValueError, RecursionError) as error:
            problem = f"{described.name} is not JSON: {error}"
    if not isinstance(document, dict):
        document = {} if document is None or fields else {"captions": document}
    if fields:
        found = [text for name in fields for text in _texts(document.get(name))]
        if not found:
            raise NoCaption("no-caption-file", problem or f"its JSON has nothing under {', '.join(fields)}")
        return found
    for name in LIST_KEYS:
        if isinstance(document.get(name), list) and _texts(document[name]):
            return _texts(document[name])
    for kind in TEXT_KINDS:
        text = sample.side(middle, kind)
        if text is not None:
            return [decode_text(_data(text), encoding)]
    for name in CAPTION_KEYS:
        if texts := _texts(document.get(name)):
            return texts
    if problem:
        raise NoCaption("unreadable-caption-file", problem)
    raise NoCaption("no-caption-file", "no .txt, .caption or .json with a caption has its name")


def _data(member: Member) -> bytes:
    if member.data is None:
        raise NoCaption("unreadable-caption-file", f"{member.name} has {member.size:,} bytes")
    return member.data


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def decode_text(data: bytes, encoding: str) -> str:
    """Text as its byte-order mark says, else in `encoding`; bytes that are not valid in it become surrogate escapes."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    codec = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    return data.decode(codec, "replace" if codec.lower().startswith(("utf-16", "utf-32")) else "surrogateescape")
