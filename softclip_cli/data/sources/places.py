"""Places of files: local paths, patterns such as `shards/{00000..00012}.tar`, and fsspec addresses such as `s3://bucket/x`.

Everything that reads tars or Parquet opens them here, as file objects: what is read never depends on where it lies.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from softclip_cli.errors import DataError, HostError, SoftclipError, UsageError

ADDRESS = re.compile(r"[A-Za-z][\w+.-]+(::[A-Za-z][\w+.-]+)*://")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_PLACES = 1_000_000


def is_address(source: str) -> bool:
    """Whether it is an fsspec address (`s3://...`, `https://...`), not a local path or a dataset on the Hub (`hf://`)."""
    return bool(ADDRESS.match(source)) and not source.startswith("hf://")


def is_pattern(source: str) -> bool:
    """Whether it names several files by `{a..b}`, `{a,b}`, `*`, `?` or `[...]`, and is no path that exists as it stands."""
    # A question mark in an http address starts its query.
    signs = "{*" if source.startswith(("http://", "https://")) else "{*?["
    return any(sign in source for sign in signs) and (is_address(source) or not Path(source).exists())


def expand(source: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files that a path, a pattern or an address names, in natural order (2 before 10).

    Args:
        source: a file, a folder (searched at every depth), a pattern of either, or an fsspec address of one of these.
        suffixes: the files looked for in folders, in lower case, such as `.tar`.

    Raises:
        DataError: a folder or pattern that cannot be read.
        HostError: a package for this kind of address is missing.
        UsageError: an unknown kind of address, or braces that are too many.
    """
    found: list[str] = []
    for place in braces(source):
        # Files named one by one need no listing, which a web server could not give.
        if not is_pattern(place) and _suffix(place).endswith(suffixes):
            found.append(place)
        elif is_address(place):
            found.extend(_remote_files(place, suffixes))
        else:
            found.extend(_local_files(place, suffixes))
    return found if BRACES.search(source) else sorted(found, key=natural)


def braces(pattern: str) -> list[str]:
    """Expand `{00..12}` (as many digits as the longer end is written with) and `{a,b}`, as a shell does.

    Raises:
        UsageError: more than a million files.
    """
    pieces = BRACES.split(pattern)  # text and the content of braces take turns
    choices = [_choices(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > MAX_PLACES:
        raise UsageError(f"{pattern} names {total:,} files", f"at most {MAX_PLACES:,} are taken", "check the braces")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    match = RANGE.fullmatch(inside)
    if not match:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = int(match[1]), int(match[2])
    width = max(len(match[1]), len(match[2])) if match[1].startswith("0") or match[2].startswith("0") else 0
    if abs(last - first) >= MAX_PLACES:
        raise UsageError(f"{{{inside}}} names too many files", f"at most {MAX_PLACES:,} are taken", "check the braces")
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key in which numbers count by value: 2.tar before 10.tar."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _suffix(place: str) -> str:
    """The last part of a place in lower case, without the query of a web address."""
    return place.split("?", 1)[0].lower() if place.startswith(("http://", "https://")) else place.lower()


def _local_files(place: str, suffixes: tuple[str, ...]) -> list[str]:
    from softclip_cli.data.sources.walk import walk

    if is_pattern(place):
        pattern = Path(place)
        base = Path(pattern.anchor)
        return [
            str(path)
            for path in base.glob(str(pattern.relative_to(base)) if pattern.anchor else place)
            if path.is_file() and path.name.lower().endswith(suffixes)
        ]
    return [
        str(folder / name) for folder, names in walk(Path(place)) for name in names if name.lower().endswith(suffixes)
    ]


def _remote_files(place: str, suffixes: tuple[str, ...]) -> list[str]:
    def search() -> list[str]:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(place)
        names = filesystem.glob(path) if is_pattern(place) else filesystem.find(path)
        return [filesystem.unstrip_protocol(name) for name in names if _suffix(name).endswith(suffixes)]

    return _careful(search, place)


def open_binary(place: str | Path) -> IO[bytes]:
    """Open a local file or an fsspec address for reading bytes.

    Raises:
        DataError: it is not there or cannot be read.
        HostError: a package for this kind of address is missing.
    """
    if isinstance(place, Path) or not is_address(place):
        try:
            return Path(place).open("rb")
        except OSError as error:
            raise DataError(f"{place} cannot be read", error.strerror or str(error), "check the path") from error

    def remote() -> IO[bytes]:
        import fsspec

        return fsspec.open(place, "rb").open()

    return _careful(remote, place)


def _careful(action: Callable[[], Any], place: str) -> Any:
    """Do what reaches for an address; whatever goes wrong there becomes an error for people."""
    try:
        return action()
    except SoftclipError:
        raise
    except ImportError as error:
        raise HostError(
            f"{shown(place)} needs a package that is not installed",
            str(error),
            "install it, for example: pip install s3fs",
        ) from error
    except ValueError as error:
        raise UsageError(f"{shown(place)} is no address that can be opened", str(error), "check its start") from error
    except Exception as error:  # each storage service has errors of its own
        raise DataError(
            f"{shown(place)} cannot be read",
            f"{type(error).__name__}: {error}",
            "check the address and the access to it",
        ) from error


def shown(place: str) -> str:
    """The place as it may be printed and stored: without the password or the signed query that an address may carry."""
    if not is_address(place):
        return place
    parts = urlsplit(place)
    if not parts.query and "@" not in parts.netloc:
        return place
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def file_name(place: str) -> str:
    """The last part of a place."""
    return PurePosixPath(shown(place).replace("\\", "/")).name
