"""Images that models are evaluated on, and must not be trained on: their signatures, and the table of what leaked."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from softclip_cli.data.decode import ImageError, open_image
from softclip_cli.data.ordered_map import ordered_map
from softclip_cli.data.signature import SIGNATURE_BYTES, Signatures, sign_all

TABLE = "leaks.parquet"  # in the corpus folder
MOST_PICTURES = 300  # pairs whose pictures are kept for the sheet
PICTURE_SIDE = 192
CHUNK = 32


class Images(Protocol):
    """Encoded images by number, with names: what `evaluation.images.ImageSource` is."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...

    def key(self, index: int) -> str:
        """What names the image in a message."""


@dataclass(frozen=True)
class Protected:
    """An evaluation set to keep out of training.

    Attributes:
        name: as the user wrote it.
        images: its images.
        signatures: of them, where they are known already.
    """

    name: str
    images: Images
    signatures: Signatures | None = None


@dataclass(frozen=True)
class Leak:
    """A training image that duplicates one of an evaluation set.

    Attributes:
        key, split: of the training image.
        of_set, of_key: the evaluation set (or the corpus's own split) and the image there.
        alike: 1 for the same pixels, else the correlation of details.
        exact: the same pixels.
        removed: whether the training image was left out.
        image, of_image: small JPEGs of both; None beyond the first MOST_PICTURES.
    """

    key: str
    split: str
    of_set: str
    of_key: str
    alike: float
    exact: bool
    removed: bool
    image: bytes | None = None
    of_image: bytes | None = None


def protected_signatures(
    protected: Protected, workers: int, progress: Callable[[int, int], None] | None = None
) -> Signatures:
    """The signatures of an evaluation set; an image that cannot be decoded is like no other."""
    if protected.signatures is not None:
        return protected.signatures
    total = len(protected.images)

    def chunks() -> Iterator[list[bytes]]:
        for start in range(0, total, CHUNK):
            yield [protected.images[number] for number in range(start, min(start + CHUNK, total))]

    found = []
    work = ordered_map(sign_all, chunks(), workers if total > 10 * CHUNK else 1, partial(_unknown))
    for done, (_, signed) in enumerate(work, 1):
        found.append(signed)
        if progress and (done % 64 == 0 or done == total):
            progress(done, total)
    return Signatures.of(found)


def _unknown(data: bytes) -> bytes:
    return bytes(SIGNATURE_BYTES)


def small_picture(data: bytes) -> bytes | None:
    """A JPEG of at most PICTURE_SIDE a side."""
    try:
        image = open_image(data, min_side=PICTURE_SIDE)
    except ImageError:
        return None
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82)
    return stream.getvalue()


def write_leaks(leaks: Sequence[Leak], path: Path) -> None:
    """Write the table, the likest pairs first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, flag = pa.string(), pa.bool_()
    schema = pa.schema(
        [
            ("key", text),
            ("split", text),
            ("of_set", text),
            ("of_key", text),
            ("alike", pa.float32()),
            ("exact", flag),
            ("removed", flag),
            ("image", pa.binary()),
            ("of_image", pa.binary()),
        ]
    )
    columns = {name: [getattr(leak, name) for leak in leaks] for name in schema.names}
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def read_leaks(folder: Path) -> list[Leak]:
    """What leaked, of a corpus folder; empty where nothing did, or nobody looked."""
    import pyarrow.parquet as pq

    path = folder / TABLE
    return [Leak(**row) for row in pq.read_table(path).to_pylist()] if path.is_file() else []
