"""Cleaning: what one worker does with one candidate, and the reasons for which records and captions are left out.

Every rule has a name in `REASONS`; nothing is left out without one.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from softclip_cli.data.caption_rules import Range, judge_caption
from softclip_cli.data.decode import ImageError
from softclip_cli.data.image_rules import examine
from softclip_cli.data.shrink import shrink
from softclip_cli.data.signature import signature
from softclip_cli.data.sources.base import (
    CAPTION_KEYS,
    MAX_CAPTION_FILE_BYTES,
    MAX_IMAGE_BYTES,
    Candidate,
    Dropped,
    open_text,
    printable,
)
from softclip_cli.errors import DataError


@dataclass(frozen=True)
class Reason:
    """Why something was left out.

    Attributes:
        text: for people.
        hint: what to do about it when it is common.
        of: "record" for a record that is broken (these count against --max-dropped), "caption" for a single caption
            of a record, "choice" for a record that the user's own choices leave out.
    """

    text: str
    hint: str = ""
    of: str = "record"


REASONS: dict[str, Reason] = {
    "missing-image": Reason("the image file does not exist", "check --image-root, and that all images were copied"),
    "unreadable-image": Reason("the image file cannot be read", "check its permissions"),
    "no-image": Reason("the record names no image", "check --image-column"),
    "image-is-a-url": Reason(
        "the image is an address on the web", "download the images first: softclip data download LIST TARS"
    ),
    "empty-image": Reason("the image file is empty", "copy it again"),
    "not-an-image": Reason("the file is not an image of a kind that is read", "check --image-column"),
    "truncated-image": Reason("the image file ends too early", "copy or download it again"),
    "damaged-image": Reason("the image cannot be decoded", "copy or download it again"),
    "decompression-bomb": Reason("the image has absurdly many pixels", "resize it if it is meant to be that large"),
    "image-too-large": Reason(f"the image file is larger than {MAX_IMAGE_BYTES >> 20} MB", "is it an image at all?"),
    "crashed-decoder": Reason(
        "decoding the image killed the process", "the file is malicious, or needs too much memory"
    ),
    "no-caption-file": Reason("the image has no caption file", "it needs a .txt or .json of the same name"),
    "no-image-file": Reason("the caption file has no image", "it needs an image of the same name"),
    "refused-member": Reason("a tar has a link, a device, or a path that leads out of it", "who made this tar?"),
    "damaged-tar": Reason("a tar ends too early, or is damaged", "copy or download it again"),
    "unreadable-caption-file": Reason("the caption file cannot be read", "it should hold text, a caption a line"),
    "no-caption": Reason("no usable caption is left", "check --caption-column and --encoding"),
    "bad-row": Reason("the row cannot be read", "check quotes and delimiters, or convert the table to JSON lines"),
    "unknown-label": Reason("the label is none of the classes", "check --label-column and --class-names"),
    "no-label": Reason("a record of a labelled set has no label", "check --label-column"),
    "no-class-folder": Reason("the image lies in no class folder", "move it into one"),
    "listed-but-absent": Reason("a split list names it, but the source does not have it", "check --split-list"),
    "in-several-splits": Reason(
        "several split lists name it: kept in the one for evaluation", "take it out of one list", of="choice"
    ),
    "not-in-a-split-list": Reason("no split list names it", "check --split-list", of="choice"),
    "image-too-small": Reason("the image has too few pixels", "see --min-side", of="choice"),
    "extreme-aspect": Reason("the image is a strip", "see --max-aspect", of="choice"),
    "animated-image": Reason("the image moves", "--animated first keeps its first frame", of="choice"),
    "captions-ruled-out": Reason(
        "the rules for captions leave none", "see --caption-characters, --caption-words, --language", of="choice"
    ),
    "captions-repeated": Reason("all its captions stand on too many images", "see --max-repeats", of="choice"),
    "caption-too-short": Reason("a caption is too short", of="caption"),
    "caption-too-long": Reason("a caption is too long", of="caption"),
    "caption-in-another-language": Reason("a caption is in another language", of="caption"),
    "repeated-caption": Reason("a caption stands on too many images", of="caption"),
    "duplicate-image": Reason("an earlier image has the same pixels", "--dedup keep keeps it", of="choice"),
    "near-duplicate-image": Reason("an earlier image shows the same picture", "--dedup keep keeps it", of="choice"),
    "mismatched-caption": Reason("a caption probably belongs to another image", of="caption"),
    "mismatched-captions": Reason(
        "all its captions probably belong to other images", "see softclip audit", of="choice"
    ),
    "leaked-image": Reason("it shows the same picture as an image that models are evaluated on", of="choice"),
    "empty-caption": Reason("a caption is empty", of="caption"),
    "caption-not-text": Reason(
        "a caption is not valid text in its encoding",
        "try --encoding cp1252 (Western European) or what it was written in",
        of="caption",
    ),
}

CHARACTERS = Range(1, 10_000)  # a longer text is a document, and costs every epoch its tokenising
ANY_NUMBER = Range()
RULED_OUT = frozenset({"caption-too-short", "caption-too-long", "caption-in-another-language"})


@dataclass(frozen=True)
class Rules:
    """How records are cleaned.

    Attributes:
        needs_caption: a record without a usable caption is dropped.
        encoding: of caption files.
        short_side: images whose shorter side is longer than this are resized to it; None keeps all bytes as they are.
        quality: of the JPEGs that resizing makes.
        min_side: images whose shorter side has fewer pixels are left out.
        max_aspect: images whose sides differ by a larger factor are left out; 0 allows any.
        animated: "first" keeps animated images for their first frame, "drop" leaves them out.
        characters, words: how many a caption may have.
        languages: captions that are clearly in none of these (ISO 639 codes) are left out; empty for any language.
    """

    needs_caption: bool = True
    encoding: str = "utf-8"
    short_side: int | None = None
    quality: int = 90
    min_side: int = 8
    max_aspect: float = 20.0
    animated: str = "first"
    characters: Range = CHARACTERS
    words: Range = ANY_NUMBER
    languages: tuple[str, ...] = ()


@dataclass(slots=True)
class Cleaned:
    """A record that passed.

    Attributes:
        captions: clean ones.
        image: new bytes; None means those of the candidate.
        resized: whether the image was made smaller.
        dropped: captions that were left out.
        noted: what was kept but is worth a count, by the names in `image_rules.NOTES`.
        signature: of the pixels that are kept, for finding duplicates.
    """

    captions: list[str]
    image: bytes | None = None
    resized: bool = False
    dropped: list[Dropped] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)
    signature: bytes = b""


def clean_all(items: Sequence[Candidate | Dropped], rules: Rules) -> list[Cleaned | Dropped]:
    """Clean some candidates, and pass on what the source could not read: the function that the workers run."""
    return [item if isinstance(item, Dropped) else clean(item, rules) for item in items]


def clean(candidate: Candidate, rules: Rules) -> Cleaned | Dropped:
    """Read, check and clean one candidate; never raises for bad data."""
    try:
        captions, dropped = read_captions(candidate, rules)
        if rules.needs_caption and not captions:
            why = (
                "; ".join(sorted({f"{REASONS[item.reason].text}: {item.detail}" for item in dropped})) or "it has none"
            )
            ruled_out = any(item.reason in RULED_OUT for item in dropped)
            raise _Drop("captions-ruled-out" if ruled_out else "no-caption", f"{printable(candidate.where)}: {why}")
        data = candidate.image if isinstance(candidate.image, bytes) else read_image(candidate.image)
        noted = judge_image(data, candidate, rules)
        smaller, signed = check_image(data, rules)
    except _Drop as drop:
        return Dropped(candidate.key, candidate.split or "", drop.reason, drop.detail)
    read = data if isinstance(candidate.image, Path) else None
    return Cleaned(captions, smaller if smaller is not None else read, smaller is not None, dropped, noted, signed)


class _Drop(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, printable(detail)


def read_image(path: Path) -> bytes:
    """The bytes of an image file; only a regular file is opened, so that a pipe or device cannot hang the run."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _Drop("not-an-image", f"{path} is not a file")
        if status.st_size > MAX_IMAGE_BYTES:
            raise _Drop("image-too-large", f"{path} has {status.st_size >> 20} MB")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _Drop("missing-image", f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise _Drop("unreadable-image", f"{path}: {getattr(error, 'strerror', None) or error}") from None


def judge_image(data: bytes, candidate: Candidate, rules: Rules) -> list[str]:
    """See whether a rule leaves the image out; returns what is worth a note."""
    name = candidate.name or (candidate.image.name if isinstance(candidate.image, Path) else "")
    try:
        refused, noted = examine(data, name, rules.min_side, rules.max_aspect, rules.animated)
    except ImageError as error:
        raise _Drop(error.kind, error.why) from None
    if refused:
        raise _Drop(*refused)
    return noted


def check_image(data: bytes, rules: Rules) -> tuple[bytes | None, bytes]:
    """Decode the image; return it re-encoded as an upright JPEG if the rules want it smaller, else None; and its signature."""
    try:
        pixels, smaller = shrink(data, rules.short_side, rules.quality)
    except ImageError as error:
        raise _Drop(error.kind, error.why) from None
    return smaller, signature(pixels)


def read_captions(candidate: Candidate, rules: Rules) -> tuple[list[str], list[Dropped]]:
    """The clean captions of a candidate, and those that were left out."""
    raw = (
        candidate.captions
        if isinstance(candidate.captions, list)
        else read_caption_file(candidate.captions, rules.encoding)
    )
    captions, dropped = [], []
    for number, text in enumerate(raw, 1):
        clean_text, problem = clean_caption(text, rules.encoding)
        if problem:
            reason = "caption-not-text" if clean_text is None else "empty-caption"
            dropped.append(Dropped(candidate.key, candidate.split or "", reason, f"caption {number}: {problem}"))
        elif clean_text:
            refused = judge_caption(clean_text, rules.characters, rules.words, rules.languages)
            if refused:
                dropped.append(
                    Dropped(candidate.key, candidate.split or "", refused[0], f"caption {number}: {refused[1]}")
                )
            else:
                captions.append(clean_text)
    return captions, dropped


def clean_caption(text: str, encoding: str = "utf-8") -> tuple[str | None, str]:
    """A caption with each run of white space, control and zero-width characters as one space, and what is wrong.

    Returns:
        (text, "") for a good one, ("", problem) for an empty one, (None, problem) for what is not valid text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"half a character (U+{code:04X})"
        return None, f"{what} at position {error.start} is not valid {encoding}"
    clean_text = " ".join(text.translate(_BLANKS).split())
    return (clean_text, "") if clean_text else ("", "nothing but white space" if text else "empty")


# Control characters (NUL included), byte-order marks and zero-width spaces.
_BLANKS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x2060, 0xFEFF], " ")


def read_caption_file(path: Path, encoding: str) -> list[str]:
    """The captions of a file: each line of a text file, or what a JSON file has under a usual name."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CAPTION_FILE_BYTES:
            raise _Drop(
                "unreadable-caption-file", f"{path} is no text file of at most {MAX_CAPTION_FILE_BYTES >> 20} MB"
            )
        with open_text(path, encoding) as stream:
            text = stream.read()
    except (OSError, ValueError, DataError) as error:
        raise _Drop("unreadable-caption-file", f"{path}: {error}") from None
    if path.suffix.lower() == ".json":
        return _json_captions(path, text)
    lines = text.split("\n")
    # Blank lines between and after captions are layout; a file of nothing else is one empty caption.
    return [line for line in lines if line.strip()] or [text]


def _json_captions(path: Path, text: str) -> list[str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Drop("unreadable-caption-file", f"{path} is not JSON: {error}") from None
    if isinstance(document, dict):
        document = next((document[name] for name in CAPTION_KEYS if document.get(name)), None)
    found = [document] if isinstance(document, str) else document
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _Drop("unreadable-caption-file", f"{path} has no text under {', '.join(CAPTION_KEYS[:3])}, ...")
    return found
