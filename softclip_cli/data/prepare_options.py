"""Everything that shapes a prepared corpus, checked, and as corpus.json keeps it."""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softclip_cli.data.caption_rules import Range
from softclip_cli.data.clean import Rules
from softclip_cli.data.settle import DEDUP
from softclip_cli.data.sources.base import SourceOptions
from softclip_cli.errors import UsageError

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class PrepareOptions(SourceOptions):
    """Everything that shapes a prepared corpus.

    Attributes:
        caption_templates: captions for a labelled set, with `{}` for the class name.
        split: for records for which the source has none.
        split_fractions: shares of the records that go to other splits than `split`, drawn by a hash of the key.
        short_side: images with a longer shorter side are resized to it and stored as JPEG; else bytes stay as they are.
        quality: of those JPEGs.
        limit: at most so many records a split.
        workers: processes; by default one a core. The result does not depend on it.
        engine: "local" cleans in processes of this machine, "ray" on a Ray cluster. The result does not depend on it.
        min_side, max_aspect, animated, caption_characters, caption_words, languages: as in `clean.Rules`.
        max_repeats: the same caption stands on at most so many images; later ones lose it. None for any number.
        dedup: "drop" leaves later duplicates out, "group" makes them positives of each other, "keep" does not look.
        max_dropped: the share of broken records from which on preparing fails.
        overwrite: replace a corpus that is there.
        resume: "auto" goes on where an earlier run of the same source and options was cut off, "never" starts anew.

    Raises:
        UsageError: values that make no sense, all named at once.
    """

    caption_templates: tuple[str, ...] = ()
    split: str = "train"
    split_fractions: Mapping[str, float] = field(default_factory=dict)
    short_side: int | None = None
    quality: int = 90
    limit: int | None = None
    workers: int | None = None
    engine: str = "local"
    min_side: int = Rules.min_side
    max_aspect: float = Rules.max_aspect
    animated: str = Rules.animated
    caption_characters: Range = Rules.characters
    caption_words: Range = Rules.words
    languages: tuple[str, ...] = ()
    max_repeats: int | None = None
    dedup: str = "keep"
    max_dropped: float = 0.05
    overwrite: bool = False
    resume: str = "auto"

    def __post_init__(self) -> None:
        problems = []
        if self.short_side is not None and not 8 <= self.short_side <= 65_500:
            problems.append(f"--short-side {self.short_side}: must be from 8 to 65500 pixels")
        if not 1 <= self.quality <= 100:
            problems.append(f"--quality {self.quality}: must be from 1 to 100")
        if self.limit is not None and self.limit < 1:
            problems.append(f"--limit {self.limit}: must be at least 1")
        if self.workers is not None and self.workers < 1:
            problems.append(f"--workers {self.workers}: must be at least 1")
        if self.engine not in ENGINES:
            problems.append(f"--engine {self.engine}: {' or '.join(ENGINES)}")
        if self.resume not in ("auto", "never"):
            problems.append(f"--resume {self.resume}: auto or never")
        if self.min_side < 0:
            problems.append(f"--min-side {self.min_side}: must not be negative")
        if self.max_aspect and not self.max_aspect >= 1:
            problems.append(f"--max-aspect {self.max_aspect:g}: at least 1, or 0 for any")
        if self.animated not in ("first", "drop"):
            problems.append(f"--animated {self.animated}: first or drop")
        if self.max_repeats is not None and self.max_repeats < 1:
            problems.append(f"--max-repeats {self.max_repeats}: must be at least 1")
        if self.dedup not in DEDUP:
            problems.append(f"--dedup {self.dedup}: {', '.join(DEDUP[:-1])} or {DEDUP[-1]}")
        if not 0 <= self.max_dropped <= 1:
            problems.append(f"--max-dropped {self.max_dropped}: a share from 0 to 1")
        if not all(0 < share < 1 for share in self.split_fractions.values()) or sum(self.split_fractions.values()) >= 1:
            given = ",".join(f"{name}={share:g}" for name, share in self.split_fractions.items())
            problems.append(f"--split-fraction {given}: shares between 0 and 1 that leave some for {self.split!r}")
        problems += [f"--caption-template {text!r}: has no {{}}" for text in self.caption_templates if "{}" not in text]
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            problems.append(f"--encoding {self.encoding}: no such text encoding")
        if problems:
            raise UsageError("unusable options", "\n       ".join(problems), "see softclip data prepare --help")


def shaping_options(options: PrepareOptions) -> dict[str, Any]:
    """The options that were given and shape the corpus, as JSON has them."""
    defaults = PrepareOptions()
    given = {}
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        if option.name in {"workers", "engine", "overwrite", "resume"} or value == getattr(defaults, option.name):
            continue
        if isinstance(value, Mapping):
            value = {name: str(entry) if isinstance(entry, Path) else entry for name, entry in value.items()}
        given[option.name] = str(value) if isinstance(value, (Path, Range)) else value
    return given
