"""Tars for the tests: well-formed ones, and members that nobody should put into one."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path


def member(name: str, content: bytes | str = b"") -> tuple[tarfile.TarInfo, bytes]:
    """A plain file."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """A link, device, pipe or folder."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def tar_bytes(members: Iterable[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format, errors="surrogateescape") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def put_tar(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write a tar, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path
