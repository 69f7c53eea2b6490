"""The signature of an image: a digest of its pixels, and a tiny view of it by which near-duplicates are found.

It is made where the image is decoded anyhow, and stored beside it: whatever looks for duplicates later decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from PIL import Image

from softclip_cli.data.decode import ImageError, open_pixels

if TYPE_CHECKING:
    import datasets

COLUMN = "signature"  # of a prepared corpus
LUMA, CHROMA = 24, 8  # sides of the tiny view: brightness, and the two colour differences
DIGEST_BYTES = 16
LUMA_BYTES, CHROMA_BYTES = LUMA * LUMA, 2 * CHROMA * CHROMA
SIGNATURE_BYTES = DIGEST_BYTES + LUMA_BYTES + CHROMA_BYTES


def signature(image: Image.Image | np.ndarray) -> bytes:
    """The signature of an upright image: 16 bytes of digest, 24 × 24 of brightness, 2 × 8 × 8 of colour.

    Files with the same pixels have the same digest, whatever their format, metadata or EXIF orientation.

    Args:
        image: RGB, as an image or as uint8 (height, width, 3).
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    digest = xxhash.xxh3_128(f"{image.width}×{image.height}".encode())
    digest.update(_words(image).data)
    # A box filter takes most of the pixels away, the smooth one what is left: a third of the time, the same picture.
    tiny = image.resize((LUMA, LUMA), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("YCbCr")
    planes = np.asarray(tiny)
    share = LUMA // CHROMA
    colour = planes[..., 1:].reshape(CHROMA, share, CHROMA, share, 2).mean((1, 3)).round().astype(np.uint8)
    return digest.digest() + planes[..., 0].tobytes() + colour.transpose(2, 0, 1).tobytes()


def sign(data: bytes) -> bytes:
    """The signature of an encoded image; all zero where it cannot be decoded, which is like no image."""
    try:
        return signature(open_pixels(data))
    except ImageError:
        return bytes(SIGNATURE_BYTES)


def sign_all(files: Sequence[bytes]) -> list[bytes]:
    """The signatures of some encoded images: work for `ordered_map`."""
    return [sign(data) for data in files]


def _words(image: Image.Image) -> np.ndarray:
    """The pixels as one little-endian word each, the fourth byte zero: uint32 (height · width,)."""
    try:
        # Pillow keeps four bytes a pixel, and lends them out: `np.asarray` takes ten times as long to make three of four.
        import pyarrow as pa

        words = np.frombuffer(pa.array(image).buffers()[-1], "<u4", image.width * image.height)
    except Exception:  # an older Pillow, or an image that lies in several blocks of memory
        pixels = np.asarray(image)
        padded = np.zeros((*pixels.shape[:2], 4), np.uint8)
        padded[..., :3] = pixels
        return padded.view("<u4").ravel()
    return words & np.uint32(0xFFFFFF)


@dataclass(frozen=True)
class Views:
    """Signatures as arrays.

    Attributes:
        digest: (N, 16) uint8.
        luma: (N, 24, 24) uint8.
        chroma: (N, 2, 8, 8) uint8, 128 being grey.
    """

    digest: np.ndarray
    luma: np.ndarray
    chroma: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Views:
        """From signatures as (N, SIGNATURE_BYTES) uint8."""
        luma = rows[:, DIGEST_BYTES : DIGEST_BYTES + LUMA_BYTES].reshape(-1, LUMA, LUMA)
        return cls(rows[:, :DIGEST_BYTES], luma, rows[:, -CHROMA_BYTES:].reshape(-1, 2, CHROMA, CHROMA))


class Signatures:
    """The signatures of many images in pieces, which may be memory-mapped: nothing is copied before it is asked for.

    Args:
        pieces: arrays (n, SIGNATURE_BYTES) of uint8.
    """

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        self.pieces = [piece for piece in pieces if len(piece)]
        self.starts = np.cumsum([0, *(len(piece) for piece in self.pieces)])

    @classmethod
    def of(cls, signatures: Sequence[bytes]) -> Signatures:
        """From signatures in memory."""
        return cls([np.frombuffer(b"".join(signatures), np.uint8).reshape(-1, SIGNATURE_BYTES)])

    @classmethod
    def join(cls, parts: Sequence[Signatures]) -> Signatures:
        """Several one after another."""
        return cls([piece for part in parts for piece in part.pieces])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """(n, SIGNATURE_BYTES) uint8: those of the given numbers, in the order given."""
        found = np.empty((len(numbers), SIGNATURE_BYTES), np.uint8)
        of_piece = np.searchsorted(self.starts, numbers, side="right") - 1
        for piece in np.unique(of_piece):
            here = of_piece == piece
            found[here] = self.pieces[piece][numbers[here] - self.starts[piece]]
        return found

    def views(self, numbers: np.ndarray) -> Views:
        """Those of the given numbers, as arrays."""
        return Views.of(self.rows(numbers))

    def only(self, numbers: np.ndarray) -> Signatures:
        """Those of the given ascending numbers; without a copy where that is all of some pieces."""
        if len(numbers) == len(self):
            return self
        parts = []
        for start, piece in zip(self.starts[:-1], self.pieces, strict=True):
            inside = numbers[(numbers >= start) & (numbers < start + len(piece))] - start
            parts.append(piece if len(inside) == len(piece) else piece[inside])
        return Signatures(parts)

    def digests(self) -> np.ndarray:
        """(N, 2) uint64: all digests."""
        parts = [np.ascontiguousarray(piece[:, :DIGEST_BYTES]).view(np.uint64) for piece in self.pieces]
        return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


def signature_column() -> dict[str, Any]:
    """The column of a corpus that holds signatures, for `features_for(extra=...)`."""
    import datasets

    return {COLUMN: datasets.Value("binary")}


def stored_signatures(split: datasets.Dataset) -> Signatures | None:
    """The signatures that a split of a corpus holds, memory-mapped; None where it holds none."""
    if COLUMN not in split.column_names:
        return None
    column = split.with_format("arrow").select_columns([COLUMN])[:][COLUMN]
    pieces = []
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, offsets, values = chunk.buffers()
        if chunk.null_count or values.size < len(chunk) * SIGNATURE_BYTES:
            return None
        wide = 8 if str(chunk.type) == "large_binary" else 4
        start = int.from_bytes(memoryview(offsets)[chunk.offset * wide : (chunk.offset + 1) * wide], "little")
        flat = np.frombuffer(values, np.uint8)[start : start + len(chunk) * SIGNATURE_BYTES]
        pieces.append(flat.reshape(-1, SIGNATURE_BYTES))
    return Signatures(pieces)
