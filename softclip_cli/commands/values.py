"""Values of options that are more than a word or a number, read from their text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from softclip_cli.errors import UsageError

if TYPE_CHECKING:
    from softclip_cli.data.caption_rules import Range


def parse_assignments(option: str, given: list[str]) -> list[tuple[str, str]]:
    """`NAME=VALUE` texts, split at the first equals sign."""
    wrong = [text for text in given if not all(part.strip() for part in text.partition("="))]
    if wrong:
        raise UsageError(f"unusable {option} {wrong[0]!r}", "expected NAME=VALUE", f"for example {option} test=...")
    pairs = [(name.strip(), value.strip()) for name, _, value in (text.partition("=") for text in given)]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise UsageError(f"{option} names a split twice", ", ".join(names), "give each split once")
    return pairs


def parse_counts(option: str, given: str) -> list[int]:
    """`1,2,4`: whole numbers from 1 on."""
    try:
        counts = [int(part) for part in given.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(
            f"unusable {option} {given!r}", "it takes whole numbers from 1 on", f"for example {option} 1,2,4"
        )
    return counts


def parse_range(option: str, given: str) -> Range:
    """`MIN:MAX`, either of which may be left out."""
    from softclip_cli.data.caption_rules import Range

    try:
        return Range.parse(given)
    except ValueError as error:
        raise UsageError(f"unusable {option} {given!r}", str(error), f"for example {option} 3:200") from None


def parse_fractions(given: str | None) -> dict[str, float]:
    """`val=0.05,test=0.05`."""
    if given is None:
        return {}
    pairs = parse_assignments("--split-fraction", [part for part in given.split(",") if part.strip()])
    try:
        return {name: float(value) for name, value in pairs}
    except ValueError as error:
        raise UsageError(f"unusable --split-fraction {given!r}", str(error), "for example val=0.05,test=0.05") from None


def parse_class_names(given: str | None) -> tuple[str, ...] | None:
    """`A,B,C`, or the lines of a file."""
    if given is None:
        return None
    path = Path(given)
    if "," not in given and path.is_file():
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip())
    elif "," in given:
        names = tuple(name.strip() for name in given.split(","))
    else:
        raise UsageError(
            f"unusable --class-names {given!r}", "there is no such file", "give A,B,C or a file with one name a line"
        )
    doubled = sorted({name for name in names if names.count(name) > 1 or not name})
    if doubled:
        raise UsageError(
            "--class-names has empty or double names", ", ".join(map(repr, doubled)), "each class needs its own name"
        )
    return names
