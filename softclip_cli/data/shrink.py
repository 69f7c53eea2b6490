"""Making the images of a corpus smaller: what `data prepare --short-side` stores."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from softclip_cli.data.decode import open_header, open_pixels

LONGEST_JPEG = 65_500  # pixels a side that the encoder takes


def shrink(data: bytes, short_side: int | None, quality: int) -> tuple[np.ndarray, bytes | None]:
    """Decode the image completely, and encode it anew if it is larger than wanted.

    Args:
        data: the encoded file.
        short_side: a shorter side that is longer becomes this many pixels, the other one in proportion; None keeps all.
        quality: of the JPEG, 1 to 100; its colours are stored at half the resolution, as cameras do.

    Returns:
        The upright RGB pixels that the corpus will hold (before the JPEG is made), uint8 (height, width, 3); and the new
        JPEG, the same bytes on every machine with these versions of the libraries, or None where the file stays as it
        is: small enough, or too long for a JPEG.

    Raises:
        ImageError: (a DataError) as `decode.open_pixels`.
    """
    header = open_header(data)
    if short_side is None or min(header.size) <= short_side:
        return open_pixels(data, header=header), None
    from softclip_cli.data.resize import resize  # imports torch

    pixels = open_pixels(data, min_side=short_side, header=header)
    height, width = pixels.shape[:2]
    factor = short_side / min(height, width)
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    if max(height, width) > LONGEST_JPEG:
        return open_pixels(data), None
    pixels = resize(pixels, height, width)
    stream = io.BytesIO()
    # Not simplejpeg, which is faster by 0.1 ms but computes with less exactness below a quality of 96.
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return pixels, stream.getvalue()
