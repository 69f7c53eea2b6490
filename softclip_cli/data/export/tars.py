"""WebDataset tars as img2dataset writes them and open_clip reads them: `000000012.jpg`, `.json`, `.txt`, and `sizes.json`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.data.decode import ImageError, open_header, open_image
from softclip_cli.data.split_writer import write_json

if TYPE_CHECKING:
    import datasets

READ_ROWS = 64
# What open_clip's pipeline takes for an image; other kinds become PNG, which loses nothing.
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def write_tars(
    splits: Mapping[str, datasets.Dataset],
    folder: Path,
    shard_bytes: int,
    each_caption: bool,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Write `SPLIT/00000.tar`, ... and `SPLIT/sizes.json`, which tells open_clip how many samples there are.

    A sample is the image, `.json` (key, all captions, label, group and further columns), `.txt` (the first caption) and, in
    labelled sets, `.cls` (the number of the class). `classnames.txt` has the names of the classes.

    Args:
        splits: images undecoded.
        folder: an empty folder.
        shard_bytes: a tar is ended before it would grow beyond this.
        each_caption: a sample for each caption, with the image again.
        advance: told of rows that are done.

    Returns:
        for each split: rows, samples, files, bytes, converted (images that became PNG), without_caption.
    """
    facts = {
        name: _write_split(data, folder / name, shard_bytes, each_caption, advance) for name, data in splits.items()
    }
    names = {name: getattr(data.features.get("label"), "names", None) for name, data in splits.items()}
    places = {folder} if all(some == next(iter(names.values())) for some in names.values()) else set()
    for name, some in names.items():
        for place in places or {folder / name}:
            if some:
                (place / "classnames.txt").write_text("\n".join(some) + "\n", encoding="utf-8")
    return facts


def _write_split(
    data: datasets.Dataset, folder: Path, shard_bytes: int, each_caption: bool, advance: Callable[[int], None]
) -> dict[str, Any]:
    folder.mkdir(parents=True)
    label = data.features.get("label")
    names = getattr(label, "names", None)
    facts = {"rows": len(data), "samples": 0, "files": 0, "bytes": 0, "converted": 0, "without_caption": 0}
    tars = _Tars(folder, shard_bytes)
    with tars:
        for start in range(0, len(data), READ_ROWS):
            rows = data[start : start + READ_ROWS]
            count = len(rows["image"])
            for place in range(count):
                row = {name: values[place] for name, values in rows.items()}
                suffix, image = _image(row.pop("image")["bytes"])
                facts["converted"] += suffix == "png" and image is not rows["image"][place]["bytes"]
                facts["without_caption"] += not row["captions"]
                for described in _samples(row, names, each_caption):
                    tars.add(_members(suffix, image, described))
                    facts["samples"] += 1
            advance(count)
    write_json(folder / "sizes.json", tars.sizes)
    facts["files"], facts["bytes"] = len(tars.sizes), tars.bytes
    return facts


def _image(data: bytes) -> tuple[str, bytes]:
    """The suffix of an image, and its bytes; kinds that open_clip does not read are converted."""
    try:
        kind = open_header(data).format or ""
        if kind in SUFFIXES:
            return SUFFIXES[kind], data
        stream = io.BytesIO()
        open_image(data).save(stream, "PNG")
        return "png", stream.getvalue()
    except ImageError:
        return "jpg", data  # damaged since it was prepared: whoever reads it will see


def _samples(row: dict[str, Any], names: list[str] | None, each_caption: bool) -> Iterator[dict[str, Any]]:
    """What is said of an image: once, or once for each caption."""
    described = {name: value for name, value in row.items() if not isinstance(value, bytes)}
    if names and row.get("label") is not None:
        described["class"] = names[row["label"]]
    captions = row["captions"]
    for some in [[text] for text in captions] if each_caption and captions else [captions]:
        yield {**described, "captions": some, **({"caption": some[0]} if some else {})}


def _members(suffix: str, image: bytes, described: dict[str, Any]) -> list[tuple[str, bytes]]:
    members = [(suffix, image), ("json", json.dumps(described, ensure_ascii=False).encode())]
    if described.get("label") is not None:
        members.insert(0, ("cls", str(described["label"]).encode()))
    if "caption" in described:
        members.append(("txt", described["caption"].encode()))
    return members


class _Tars:
    """Writes samples into numbered tars of bounded size, without times and owners."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.sizes: dict[str, int] = {}
        self.bytes = self._number = 0
        self._tar: tarfile.TarFile | None = None
        self._name = ""

    def __enter__(self) -> _Tars:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _open(self) -> None:
        self._name = f"{len(self.sizes):05d}.tar"
        self._tar = tarfile.open(self.folder / self._name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  closed below
        self.sizes[self._name] = 0

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self.bytes += (self.folder / self._name).stat().st_size
            self._tar = None

    def add(self, members: list[tuple[str, bytes]]) -> None:
        """Add one sample."""
        assert self._tar is not None
        size = sum(tarfile.BLOCKSIZE + len(data) + -len(data) % tarfile.BLOCKSIZE for _, data in members)
        if self.sizes[self._name] and self._tar.offset + size + 2 * tarfile.BLOCKSIZE > self.shard_bytes:
            self._close()
            self._open()
        for suffix, data in members:
            # A number, not the key: keys may hold dots, which end a WebDataset key, and are in the .json.
            info = tarfile.TarInfo(f"{self._number:09d}.{suffix}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self._tar.members = []  # type: ignore[attr-defined]  # all members so far, which nobody needs
        self.sizes[self._name] += 1
        self._number += 1
