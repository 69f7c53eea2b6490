"""Rules for captions that are valid text: their length, their language, and how often the same one may come back."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from softclip_cli.errors import HostError, UsageError

# Below this probability of all wanted languages together a caption is taken for another one. Short captions are hard to
# tell ("a dog" gets 2 % for English), so the rule leaves out only what it is sure of.
SURE = 0.01
FILTER_BITS = 1 << 29  # 64 MiB, of which only the touched pages take memory
PROBES = 4
MAX_REPEATED = 1 << 20
SHOWN_FROM = 10  # captions on more images than this are reported
SHOWN = 10
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included; None for no upper end."""

    low: int = 0
    high: int | None = None

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read `MIN:MAX`, where either may be left out.

        Raises:
            ValueError: it is not of this form.
        """
        low, colon, high = text.strip().partition(":")
        if not colon or not all(part.strip().isdecimal() or not part.strip() for part in (low, high)):
            raise ValueError("expected MIN:MAX, MIN: or :MAX")
        found = cls(int(low or 0), int(high) if high.strip() else None)
        if found.high is not None and found.high < found.low:
            raise ValueError("its end is smaller than its start")
        return found

    def __str__(self) -> str:
        return f"{self.low or ''}:{'' if self.high is None else self.high}"


def judge_caption(text: str, characters: Range, words: Range, languages: tuple[str, ...]) -> tuple[str, str] | None:
    """(reason, detail) if a rule leaves the caption out.

    Raises:
        HostError: the package that tells languages is not installed.
    """
    for count, allowed, unit in ((len(text), characters, "characters"), (len(text.split()), words, "words")):
        if count < allowed.low:
            return "caption-too-short", f"{count} {unit}: {text[:80]!r}"
        if allowed.high is not None and count > allowed.high:
            return "caption-too-long", f"{count:,} {unit}: {text[:80]!r}..."
        # A text of scripts without spaces is one word: --caption-characters is the rule for those.
    if languages:
        ranks = dict(_identifier().rank(text))
        if sum(ranks[name] for name in languages) < SURE:
            likeliest = max(ranks, key=ranks.__getitem__)
            return "caption-in-another-language", f"rather {likeliest!r} than {' or '.join(languages)}: {text[:80]!r}"
    return None


def check_languages(languages: tuple[str, ...]) -> None:
    """See that languages can be told, and that these are known.

    Raises:
        HostError: the package that tells languages is not installed.
        UsageError: an unknown language.
    """
    if not languages:
        return
    known = sorted(_identifier().labels)
    unknown = [name for name in languages if name not in known]
    if unknown:
        raise UsageError(
            f"unknown language {', '.join(map(repr, unknown))} (--language)",
            "known: " + " ".join(known),
            "use ISO 639 codes",
        )


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise HostError(
            "--language needs a package that tells languages",
            str(error),
            "install it: pip install 'softclip[language]'",
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class CaptionCounter:
    """Counts on how many images each caption stands, in bounded memory, and caps it.

    A caption met for the first time only sets a few bits of a filter; only those that come back are counted one by one. So a
    count may be one too high (never for less than ten million captions, in practice), and when more than a
    million captions come back, the rarest are forgotten.

    Args:
        limit: a caption stands on at most so many images; None for any number.
    """

    def __init__(self, limit: int | None = None, max_repeated: int = MAX_REPEATED) -> None:
        self.limit, self.max_repeated = limit, max_repeated
        self.counts: dict[int, int] = {}
        self.texts: dict[int, str] = {}
        self._seen = bytearray(FILTER_BITS // 8)

    def keep(self, captions: list[str]) -> tuple[list[str], list[str]]:
        """The captions of one image that may stay, and those that already stand on as many images as may have them."""
        kept: list[str] = []
        over: list[str] = []
        fresh: set[str] = set()  # an image that repeats its own caption counts once
        for text in captions:
            if text in fresh or self._count(text):
                fresh.add(text)
                kept.append(text)
            else:
                over.append(text)
        return kept, over

    def count_again(self, kept: Iterable[str]) -> None:
        """Count captions that another counter has kept, in the same order: this one then stands where that one did."""
        for text in kept:
            self._count(text)

    def _count(self, text: str) -> bool:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        key = int.from_bytes(digest[:8], "big")
        count = self.counts.get(key)
        if count is None:
            count = 1 if self._met(digest) else 0
        if self.limit is not None and count >= self.limit:
            return False
        if count:
            self.counts[key] = count + 1
            if count == SHOWN_FROM:
                self.texts[key] = text[:SHOWN_CHARACTERS]
            if len(self.counts) > self.max_repeated:
                self._forget()
        return True

    def _met(self, digest: bytes) -> bool:
        """Whether the filter has it; it has it from now on."""
        met = True
        for start in range(0, 4 * PROBES, 4):
            place = int.from_bytes(digest[start : start + 4], "big") % FILTER_BITS
            byte, bit = place >> 3, 1 << (place & 7)
            if not self._seen[byte] & bit:
                met = False
                self._seen[byte] |= bit
        return met

    def _forget(self) -> None:
        """Drop the rarest half."""
        middle = sorted(self.counts.values())[len(self.counts) // 2]
        self.counts = {key: count for key, count in self.counts.items() if count > middle}
        self.texts = {key: text for key, text in self.texts.items() if key in self.counts}

    def report(self) -> dict[str, Any]:
        """What corpus.json says of the captions that stand on more than ten images."""
        many = Counter({key: count for key, count in self.counts.items() if count > SHOWN_FROM})
        return {
            "on_more_than": SHOWN_FROM,
            "texts": len(many),
            "captions": many.total(),
            "most_frequent": [
                {"caption": self.texts.get(key, ""), "images": count}
                for key, count in sorted(many.items(), key=lambda item: (-item[1], self.texts.get(item[0], "")))[:SHOWN]
            ],
        }
