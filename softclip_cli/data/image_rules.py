"""Rules for images that decode: which are left out by choice, and what is kept but worth a note. Headers are enough."""

from __future__ import annotations

from pathlib import PurePosixPath

from PIL import ExifTags, Image

from softclip_cli.data.decode import TRANSPOSE, open_header

# What is kept and counted in corpus.json under "noted".
NOTES = {
    "animated": "only the first frame is seen; --animated drop leaves such images out",
    "rotated": "the EXIF orientation turns it; softclip applies it, open_clip's transform does not",
    "wrong-extension": "the content is of another format than the name says; the content counts",
}
ANIMATED_FORMATS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # a TIFF has pages, an MPO the views of one scene
SAME_FORMAT = {"MPO": "JPEG"}


def examine(
    data: bytes, name: str, min_side: int, max_aspect: float, animated: str
) -> tuple[tuple[str, str] | None, list[str]]:
    """Look at an image's header.

    Args:
        data: the encoded file.
        name: its file name, if it has one.
        min_side: the shorter side must have so many pixels.
        max_aspect: longer side / shorter side; 0 allows any.
        animated: "drop" leaves animated images out, "first" keeps them for their first frame.

    Returns:
        (reason, detail) if a rule leaves the image out, else None; and the names in `NOTES` that hold for it.

    Raises:
        ImageError: (a DataError) as `decode.open_header`.
    """
    header = open_header(data)
    width, height = header.size
    shorter, longer = sorted((width, height))
    if shorter < min_side:
        return ("image-too-small", f"{width}×{height} pixels"), []
    if max_aspect and longer > max_aspect * shorter:
        return ("extreme-aspect", f"{width}×{height} pixels, {longer / max(1, shorter):.1f} to 1"), []
    found = []
    if header.format in ANIMATED_FORMATS and _is_animated(header):
        if animated == "drop":
            return ("animated-image", f"{header.format} of several frames"), []
        found.append("animated")
    if _is_turned(header):
        found.append("rotated")
    if _is_misnamed(header, name):
        found.append("wrong-extension")
    return None, found


def _is_animated(header: Image.Image) -> bool:
    try:
        return bool(getattr(header, "is_animated", False))
    except Exception:  # a damaged second frame; whether the first is whole is found out by decoding
        return False


def _is_turned(header: Image.Image) -> bool:
    try:
        return header.getexif().get(ExifTags.Base.Orientation, 1) in TRANSPOSE
    except Exception:  # damaged metadata says nothing about the pixels
        return False


def _is_misnamed(header: Image.Image, name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    said = Image.registered_extensions().get(suffix)
    holds = str(header.format)
    return said is not None and SAME_FORMAT.get(said, said) != SAME_FORMAT.get(holds, holds)
