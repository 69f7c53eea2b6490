"""Reading tars in a stream, from any file object, trusting nothing: no member is ever written anywhere.

Headers are parsed by the standard library (`tarfile.TarInfo.frombuf`); the walk from header to header is our own, because
`tarfile` takes a damaged header for the end of the archive and reads extended headers of any size into memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED = 1 << 20  # a longer header is an attack, not a name
PIECE = 1 << 20


class TarDamage(Exception):
    """The tar cannot be read on from here; the message says where and why."""


@dataclass(slots=True)
class Member:
    """A member of a tar.

    Attributes:
        name: as the tar has it; bytes that are no UTF-8 stand as surrogate escapes.
        size: in bytes.
        problem: why it is refused (a link, a device, a path that leads out of the folder); empty for a usable file.
        data: its content; None where it is refused or larger than the limit.
        offset: where its content begins in the tar.
    """

    name: str
    size: int
    problem: str = ""
    data: bytes | None = None
    offset: int = 0


def read_tar(stream: IO[bytes], limit: Callable[[str], int]) -> Iterator[Member]:
    """Yield the files of an uncompressed tar in order, and what is refused; folders are passed over.

    Args:
        stream: read forwards only; what is skipped is sought over where the stream can seek.
        limit: how many bytes a member of this name may have; a larger one comes without its data.

    Raises:
        TarDamage: the tar ends before its end mark, or a header is damaged.
    """
    walker = _Walker(stream)
    while (member := walker.next()) is not None:
        info, name = member
        if info.isdir() or info.type == tarfile.XGLTYPE:
            walker.skip(info.size if info.type == tarfile.XGLTYPE else 0)
            continue
        problem = _problem(info, name)
        # Only files have content; a hostile size of a link must not make us jump.
        size = info.size if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES else 0
        offset = walker.place
        data = walker.read(size, name) if not problem and size <= limit(name) else None
        if data is None:
            walker.skip(size, name)
        yield Member(name, size, problem, data, offset)


def _problem(info: tarfile.TarInfo, name: str) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname[:200]!r}"
    if info.isdev():
        return "a device or pipe"
    if info.issparse() or not info.isreg():
        return f"no plain file (type {info.type!r})"
    if name.startswith(("/", "\\")) or name[1:3] in {":\\", ":/"}:
        return "an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "a path that leads out of its folder"
    return "a name with a NUL" if "\0" in name else ""


class _Walker:
    """Goes from header to header; knows where it is, for messages."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.place = stream, 0
        seekable = getattr(stream, "seekable", None)
        self.seekable = bool(seekable and seekable())

    def next(self) -> tuple[tarfile.TarInfo, str] | None:
        """The next header that stands for a member, with its full name; None at the end mark."""
        long_name: str | None = None
        fields: dict[str, str] = {}
        while True:
            start = self.place
            block = self._exactly(BLOCK, "a header")
            if not block.strip(b"\0"):
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError) as error:
                raise TarDamage(f"the header at byte {start:,} is damaged: {error}") from None
            if info.size < 0:
                raise TarDamage(f"the header at byte {start:,} gives a negative size")
            if info.type in {
                tarfile.GNUTYPE_LONGNAME,
                tarfile.GNUTYPE_LONGLINK,
                tarfile.XHDTYPE,
                tarfile.SOLARIS_XHDTYPE,
            }:
                if info.size > MAX_EXTENDED:
                    raise TarDamage(f"the extended header at byte {start:,} claims {info.size:,} bytes")
                content = self.read(info.size, "an extended header")
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = content.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                elif info.type != tarfile.GNUTYPE_LONGLINK:
                    fields |= _pax_fields(content, start)
                continue
            if "size" in fields:
                try:
                    info.size = int(fields["size"])
                except ValueError:
                    raise TarDamage(f"the extended header before byte {start:,} gives no size") from None
                if info.size < 0:
                    raise TarDamage(f"the extended header before byte {start:,} gives a negative size")
            return info, fields.get("path") or long_name or info.name

    def read(self, size: int, what: str) -> bytes:
        """The content of a member, and over the padding behind it."""
        content = self._exactly(size, what)
        self._exactly(-size % BLOCK, what)
        return content

    def skip(self, size: int, what: str = "a header") -> None:
        """Over the content of a member and its padding."""
        size += -size % BLOCK
        if self.seekable and size > PIECE:
            # The last block is read, so that a tar that ends in between is noticed.
            self.stream.seek(size - BLOCK, 1)
            self.place += size - BLOCK
            size = BLOCK
        while size:
            size -= len(self._exactly(min(size, PIECE), what))

    def _exactly(self, size: int, what: str) -> bytes:
        pieces: list[bytes] = []
        left = size
        while left:  # in pieces: a size that is a lie must not claim memory
            piece = self.stream.read(min(left, PIECE))
            if not piece and what == "a header" and left == size:
                raise TarDamage(f"it ends after {self.place:,} bytes, without the end mark of a tar")
            if not piece:
                raise TarDamage(f"it ends after {self.place + size - left:,} bytes, in the middle of {what}")
            pieces.append(piece)
            left -= len(piece)
        self.place += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _pax_fields(content: bytes, start: int) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE` of an extended header."""
    fields: dict[str, str] = {}
    place = 0
    while place < len(content) and content[place : place + 1] != b"\0":
        digits, blank, _ = content[place : place + 20].partition(b" ")
        if not blank or not digits.isdigit() or int(digits) < len(digits) + 3:
            raise TarDamage(f"the extended header at byte {start:,} is damaged")
        record = content[place + len(digits) + 1 : place + int(digits) - 1]
        name, _, value = record.partition(b"=")
        fields[name.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        place += int(digits)
    return fields
