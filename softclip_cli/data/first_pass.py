"""Reading, checking and writing every record, with durable points from which a killed process goes on.

The source yields candidates in a fixed order, workers clean them, and this module takes their results in that order:
so the corpus is the same, byte for byte, whatever the number of workers. Every so many bytes or records, counted and never
timed, everything that waits is written and a durable point is made: a killed process goes on from the last one, and the
corpus is the same again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from softclip_cli.data.caption_journal import CaptionJournal
from softclip_cli.data.caption_rules import CaptionCounter, check_languages
from softclip_cli.data.clean import Cleaned, Rules, clean_all
from softclip_cli.data.corpus import CorpusBuilder, Record, features_for
from softclip_cli.data.dropped import DroppedLog, Noted
from softclip_cli.data.ordered_map import ordered_map
from softclip_cli.data.position import Position, unread
from softclip_cli.data.prepare_options import PrepareOptions, shaping_options
from softclip_cli.data.ray_map import ray_ordered_map
from softclip_cli.data.signature import COLUMN, signature_column
from softclip_cli.data.sources.base import Candidate, Dropped, Part, Source, split_name
from softclip_cli.data.split_writer import SplitWriter
from softclip_cli.data.splits import SplitAssigner
from softclip_cli.data.workplace import Workplace
from softclip_cli.errors import DataError
from softclip_cli.resources import usable_cores

CHUNK_BYTES = 8 << 20  # what travels to a worker at once
CHUNK_FILES = 16  # or so many image files, whose sizes are not known yet
CHUNK_ITEMS = 256
POINT_RECORDS = 8192  # a durable point at least every so many records
MAX_SPLITS = 64
STOP_AFTER = 500  # records to see before giving up, so that the error can name more than the first trouble
COUNTS = ("rows", "captions", "read", "resized", "renamed")
SPLIT_ORDER = ("train", "val", "test")  # the others follow in the order in which they appear


Progress = Callable[[int, int], None]


class Unusable(DataError):
    """The records of the source were read, and cannot be made a corpus of."""


class FirstPass:
    """One reading of a source: the loop, and what it counts."""

    def __init__(
        self, source: Source, options: PrepareOptions, place: Workplace, digest: str, progress: Progress | None
    ) -> None:
        self.source, self.options, self.place, self.digest, self.progress = source, options, place, digest, progress
        self.writer = CorpusBuilder(place.corpus)
        self.splits = SplitAssigner(source, options.split_lists, options.split_fractions, options.split)
        self.features = features_for(
            class_names=source.class_names, groups="group_column" in source.choices, extra=signature_column()
        )
        self.rules = Rules(
            needs_caption=source.has_captions and not options.caption_templates,
            encoding=options.encoding,
            short_side=options.short_side,
            quality=options.quality,
            min_side=options.min_side,
            max_aspect=options.max_aspect,
            animated=options.animated,
            characters=options.caption_characters,
            words=options.caption_words,
            languages=options.languages,
        )
        check_languages(options.languages)
        self.repeats = CaptionCounter(options.max_repeats)
        self.noted = Noted()
        self.rows: Counter[str] = Counter()
        self.captions: Counter[str] = Counter()
        self.keys: set[int] = set()
        self.open: dict[str, SplitWriter] = {}
        self.read = self.resized = self.renamed = 0
        self.start = Position()
        self.ahead: deque[Position] = deque()  # of the items that are with the workers
        self.point = 0  # records read at the last durable point
        self.stopped = False
        totals = [part.total for part in source.parts]
        self.total = 0 if None in totals or options.limit else sum(total or 0 for total in totals)

    def run(self, before: Mapping[str, Any] | None = None) -> None:
        """Read, clean and write everything.

        Args:
            before: the durable point to go on from.

        Raises:
            SourceChanged: what was read before is not what the source begins with.
        """
        self.log = DroppedLog(self.place.path / "dropped.arrow", before["log"] if before else None)
        self.counted = CaptionJournal(self.place.path / "captions.arrow", before["counted"] if before else 0)
        try:
            if before:
                self._restore(before)
            self._loop()
            if not self.options.limit:
                for item in self.splits.leftovers():
                    self.log.add(item)
            for item in self.splits.doubles:
                self.log.add(item)
            self._judge()
            self._finish()
        finally:
            self.log.abort()
            self.counted.abort()
            self.writer.abort()

    def _loop(self) -> None:
        for item, result in self._cleaned():
            position = self.ahead.popleft()
            if isinstance(result, Dropped):
                if not self._full(result.split):
                    self.read += 1
                    self.log.add(result)
            else:
                assert isinstance(item, Candidate)
                self._keep(item, result)
            if self.progress and self.read % 64 == 0:
                self.progress(self.read, self.total)
            # The share can only end above the limit: there is no need to read the rest.
            hopeless = self.log.broken > self.options.max_dropped * self.total > 0
            if hopeless and self.read >= STOP_AFTER:
                self.stopped = True
                break
            # Counted in records and bytes, never in seconds: so the batches that are written do not depend on the time.
            if self.writer.full or self.read - self.point >= POINT_RECORDS:
                self._save(position)
        else:
            self._save(Position(len(self.source.parts)))
        if self.progress:
            self.progress(self.read, max(self.read, self.total))

    def _cleaned(self) -> Iterator[tuple[Candidate | Dropped, Cleaned | Dropped]]:
        work = partial(clean_all, rules=self.rules)
        if self.options.engine == "ray":
            return ray_ordered_map(work, self._chunks(), self.options.workers, _crashed)
        workers = self.options.workers or usable_cores()
        preload = ["softclip_cli.data.resize"] if self.rules.short_side else []
        return ordered_map(work, self._chunks(), workers, _crashed, preload)

    def _save(self, position: Position) -> None:
        """Make a durable point: what was read up to the position is written, and on the disk."""
        self.point = self.read
        for store in (self.writer, self.log, self.counted):
            store.flush()
            store.sync()
        self.place.save(
            {
                "fingerprint": self.digest,
                "position": dataclasses.astuple(position),
                "splits": {name: writer.state() for name, writer in self.open.items()},
                "log": self.log.state(),
                "counted": self.counted.length,
                "noted": self.noted.state(),
                **{name: getattr(self, name) for name in COUNTS},
            }
        )

    def _restore(self, before: Mapping[str, Any]) -> None:
        """Be where the run that made the durable point was."""
        self.start = Position(*before["position"])
        self.open = self.writer.restore(self.features, before["splits"])
        for name in COUNTS:
            setattr(self, name, type(getattr(self, name))(before[name]))
        self.noted = Noted(before["noted"])
        self.repeats.count_again(self.counted.captions())
        self.point = self.read
        for split, writer in self.open.items():
            self.keys.update(_digest(split, key) for key in writer.written_keys())

    def _chunks(self) -> Iterator[list[Candidate | Dropped]]:
        chunk: list[Candidate | Dropped] = []
        size = 0
        for number, part in enumerate(self.source.parts):
            # Split lists must know which of their entries the source has, so all parts are read for them.
            if number < self.start.part and not self.splits.lists:
                continue
            for position, item in self._items(number, part):
                chunk.append(item)
                self.ahead.append(position)
                size += _weight(item)
                if size >= CHUNK_BYTES:
                    yield chunk
                    chunk, size = [], 0
        if chunk:
            yield chunk

    def _items(self, number: int, part: Part) -> Iterator[tuple[Position, Candidate | Dropped]]:
        only = self.splits.only_split(part)
        for position, item, fresh in unread(number, part, self.start):
            # Whether a split is full depends here on how far the workers are: that saves work, but `_keep` decides.
            if only and self._full(only):
                return
            if isinstance(item, Candidate):
                refused = self.splits.assign(item)
                if refused:
                    if fresh:
                        yield position, refused
                    continue
            else:
                item.split = only or (split_name(item.split) if item.split else "")
            if fresh and (not item.split or not self._full(item.split)):
                yield position, item

    def _full(self, split: str) -> bool:
        return self.options.limit is not None and self.rows[split] >= self.options.limit

    def _keep(self, item: Candidate, result: Cleaned) -> None:
        split = str(item.split)
        if self._full(split):
            return
        self.read += 1
        for caption in result.dropped:
            self.log.add(caption)
        captions, repeated = self.repeats.keep(result.captions)
        self.counted.add(captions)
        for text in repeated:
            detail = f"on {self.options.max_repeats:,} images already: {text[:80]!r}"
            self.log.add(Dropped(item.key, split, "repeated-caption", detail))
        if repeated and not captions and self.rules.needs_caption:
            self.log.add(Dropped(item.key, split, "captions-repeated", f"{item.where}: no other caption"))
            return
        if not captions and item.label is not None and self.source.class_names is not None:
            name = self.source.class_names[item.label].replace("_", " ")
            captions = [template.replace("{}", name) for template in self.options.caption_templates]
        if not captions and self.source.has_captions:
            self.log.add(
                Dropped(item.key, split, "no-caption", f"{item.where} has none, and no label to make one from")
            )
            return
        image = result.image if result.image is not None else item.image
        assert isinstance(image, bytes)
        record = Record(self._unique(split, item.key), image, captions, item.label, item.group)
        record.extra[COLUMN] = result.signature
        self._split_writer(split).write(record)
        self.rows[split] += 1
        self.captions[split] += len(captions)
        self.resized += result.resized
        self.noted.add(record.key, result.noted)

    def _unique(self, split: str, key: str) -> str:
        """The key, with #2, #3, ... where the split has it already."""
        number = 1
        name = key
        # 8 bytes a key: the keys of a large corpus would fill the memory.
        while (digest := _digest(split, name)) in self.keys:
            number += 1
            name = f"{key}#{number}"
        self.renamed += number > 1
        self.keys.add(digest)
        return name

    def _split_writer(self, split: str) -> SplitWriter:
        if split not in self.open:
            if len(self.open) >= MAX_SPLITS:
                raise Unusable(
                    f"{self.source.path} has more than {MAX_SPLITS} splits",
                    "such as " + ", ".join(list(self.open)[:5]),
                    "is the column of the splits the right one? choose another --split-column",
                )
            self.open[split] = self.writer.open_split(split, self.features)
        return self.open[split]

    def _judge(self) -> None:
        kept = sum(self.rows.values())
        share = self.log.share(kept)
        if kept == 0 and not self.stopped:
            why = self.log.explain() or self.log.explain("choice") or "it has no records"
            raise Unusable(
                f"no usable record in {self.source.path}", why, self.log.hint() or "check the path and the options"
            )
        if share > self.options.max_dropped:
            # A run that stopped early has not seen all that is broken.
            seen, limit = ("the first ", 1.0) if self.stopped else ("", _round_up(share))
            raise Unusable(
                f"{self.log.broken:,} of {seen}{kept + self.log.broken:,} records ({share:.1%}) of {self.source.path} "
                f"cannot be used, more than --max-dropped allows ({self.options.max_dropped:.1%})",
                self.log.explain(),
                f"{self.log.hint()}; or keep what is usable with --max-dropped {limit:g}",
            )

    def _finish(self) -> None:
        order = [name for name in SPLIT_ORDER if name in self.open]
        order += [name for name in self.open if name not in SPLIT_ORDER]
        info = self.writer.info
        for name in order:
            self.writer.close_split(name)
            info["splits"][name]["captions"] = self.captions[name]
        path = Path(self.source.path)
        info["sources"] = [
            {
                "path": str(path.resolve()) if path.exists() else self.source.path,
                "format": self.source.format,
                "reason": self.source.reason,
                "options": self.source.choices,
            }
        ]
        info["counts"] = {
            "read": self.read,
            "records": sum(self.rows.values()),
            "captions": sum(self.captions.values()),
            "resized": self.resized,
            "renamed_keys": self.renamed,
        }
        self.log.close(self.writer.folder / "dropped.parquet")
        info["dropped"] = self.log.report(sum(self.rows.values()))
        info["noted"] = self.noted.report()
        info["repeats"] = self.repeats.report()
        info["options"] = shaping_options(self.options)
        if self.source.class_names is not None:
            info["class_names"] = self.source.class_names
        self.writer.finish()


def _weight(item: Candidate | Dropped) -> int:
    """How much of a chunk an item takes: bytes that travel to a worker, or those that a file may come back with."""
    if isinstance(item, Candidate):
        return (
            CHUNK_BYTES // CHUNK_FILES if isinstance(item.image, Path) else CHUNK_BYTES // CHUNK_ITEMS + len(item.image)
        )
    return CHUNK_BYTES // CHUNK_ITEMS


def _digest(split: str, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{split}\0{key}".encode(), digest_size=8).digest(), "big")


def _crashed(item: Candidate | Dropped) -> Cleaned | Dropped:
    if isinstance(item, Dropped):
        return item
    return Dropped(item.key, item.split or "", "crashed-decoder", f"{item.where}: the process that decoded it died")


def _round_up(share: float) -> float:
    """A limit that lets the share pass, with two digits."""
    return min(1.0, math.ceil(share * 100 + 1e-9) / 100)
