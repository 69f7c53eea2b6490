"""Encoded images → small pictures that stand inside a page as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache

SIDE = 192  # longest side in pixels of a picture on a page: sharp at 96 CSS pixels on a dense screen
AS_IT_IS = 24 << 10  # a file up to this many bytes and SIDE pixels is put in unchanged
BROWSER_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
UNREADABLE = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="96" height="96" viewBox="0 0 96 96">'
    b'<rect width="96" height="96" fill="#8884"/>'
    b'<path d="M28 28 68 68M68 28 28 68" stroke="#888" stroke-width="4"/></svg>'
)


@dataclass(frozen=True)
class Picture:
    """A picture for an `<img>`: data URI, size in pixels, and whether the bytes could be decoded."""

    uri: str
    width: int
    height: int
    readable: bool = True


@lru_cache(maxsize=4096)
def picture(encoded: bytes, side: int = SIDE) -> Picture:
    """A picture of at most `side` pixels a side. Bytes that are no image give a crossed-out square, not an error."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            kind, size = opened.format or "", opened.size
            upright = not opened.getexif().get(0x0112, 1) > 1
            if max(size) <= side and len(encoded) <= AS_IT_IS and kind in BROWSER_TYPES and upright:
                opened.load()
                return Picture(_uri(BROWSER_TYPES[kind], encoded), *size)
            opened.draft("RGB", (side, side))  # decodes a large JPEG at a fraction of its size
            small = ImageOps.exif_transpose(opened).convert("RGB")
            small.thumbnail((side, side))
    except Exception:  # Pillow raises many kinds for damaged files, decompression bombs among them
        return Picture(_uri("image/svg+xml", UNREADABLE), 96, 96, readable=False)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82, optimize=True)
    return Picture(_uri("image/jpeg", stream.getvalue()), *small.size)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
