"""From any source to a prepared corpus: split, check, clean, write; every record that is left out is written down.

The source yields candidates in a fixed order, workers clean them, and this module takes their results in that order:
so the corpus is the same, byte for byte, whatever the number of workers. Every so many bytes or records, counted and never
timed, everything that waits is written and a durable point is made: a killed process goes on from the last one, and the
corpus is the same again.
"""

from __future__ import annotations

import codecs
import dataclasses
import errno
import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from softclip_cli.data.caption_journal import CaptionJournal
from softclip_cli.data.caption_rules import CaptionCounter, Range, check_languages
from softclip_cli.data.clean import Cleaned, Rules, clean_all
from softclip_cli.data.corpus import Corpus, CorpusBuilder, Record, check_output, features_for
from softclip_cli.data.dropped import DroppedLog, Noted
from softclip_cli.data.ordered_map import ordered_map
from softclip_cli.data.position import Position, SourceChanged, fingerprint, unread
from softclip_cli.data.ray_map import ray_ordered_map
from softclip_cli.data.settle import DEDUP, Protected, Settling, Stage, settle
from softclip_cli.data.signature import COLUMN, signature_column
from softclip_cli.data.sources import open_source
from softclip_cli.data.sources.base import Candidate, Dropped, Part, Source, SourceOptions, split_name
from softclip_cli.data.split_writer import SplitWriter
from softclip_cli.data.splits import SplitAssigner
from softclip_cli.data.workplace import Workplace
from softclip_cli.errors import DataError, HostError, Interrupted, UsageError
from softclip_cli.resources import usable_cores

CHUNK_BYTES = 8 << 20  # what travels to a worker at once
CHUNK_FILES = 16  # or so many image files, whose sizes are not known yet
CHUNK_ITEMS = 256
POINT_RECORDS = 8192  # a durable point at least every so many records
MAX_SPLITS = 64
STOP_AFTER = 500  # records to see before giving up, so that the error can name more than the first trouble
ENGINES = ("local", "ray")
COUNTS = ("rows", "captions", "read", "resized", "renamed")
SPLIT_ORDER = ("train", "val", "test")  # the others follow in the order in which they appear


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


Progress = Callable[[int, int], None]
Note = Callable[[str], None]


def prepare(
    source: Path | str,
    out: Path,
    options: PrepareOptions,
    progress: Progress | None = None,
    note: Note | None = None,
    against: Sequence[Protected] = (),
) -> Corpus:
    """Prepare a corpus, or go on with one that was cut off.

    Args:
        source: a path, or a name on the Hub.
        out: the folder to make; it appears when the corpus is whole, and never in part.
        options: how.
        progress: called with (records done, records in all; 0 where that is not known).
        note: told, in a line for people, whether the run goes on from an earlier one, and what is done after the reading.
        against: evaluation sets; training images that are near-duplicates of theirs are left out.

    Raises:
        UsageError: an option or column that does not fit the source.
        DataError: the source cannot be read, too many of its records are broken, or none is left; `out` is in the way.
        HostError: the disk is full, or `out` cannot be written.
        Interrupted: stopped by Ctrl-C; the same call goes on from there.
    """
    return prepare_source(open_source(str(source), options), out, options, progress, note, against)


def prepare_source(
    source: Source,
    out: Path,
    options: PrepareOptions,
    progress: Progress | None = None,
    note: Note | None = None,
    against: Sequence[Protected] = (),
) -> Corpus:
    """As `prepare`, from a source that is open already (a command prints its reason and notes first)."""
    out, say = Path(out), note or (lambda text: None)
    if options.dedup == "keep" and not against:
        return _first_pass(source, out, options, progress, say)
    check_output(out, options.overwrite)  # before hours of work
    _refuse_own_source(source, out)
    stage = Stage(out, fingerprint(source, _shaping_options(options)))
    if options.resume == "auto" and stage.whole:
        say("the records were read by an earlier run")
    else:
        stage.remove()
        _first_pass(source, stage.path, options, progress, say)
        stage.mark()
    settings = Settling(options.dedup, tuple(against), options.workers or usable_cores(), options.overwrite)
    return settle(stage, out, settings, progress, note)


def _first_pass(source: Source, out: Path, options: PrepareOptions, progress: Progress | None, say: Note) -> Corpus:
    _refuse_own_source(source, out)
    if options.caption_templates and source.class_names is None:
        raise UsageError("--caption-template needs class names", f"{source.path} has no labels", "see --label-column")
    place = Workplace(out)
    try:
        with place.locked():
            _prepare_in(place, source, options, progress, say)
    except KeyboardInterrupt:
        before = place.read()
        if before is None:
            raise
        raise Interrupted(
            f"stopped; the first {before['read']:,} records are safe",
            f"{place.path} holds them",
            "the same command goes on from there; with --resume never it starts anew",
        ) from None
    except OSError as error:
        again = "then the same command goes on where it stopped" if place.saved else "or choose another output folder"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            smaller = "" if place.saved else "; --short-side 256 makes it smaller"
            raise HostError(f"no space left for {out}", str(error), f"free some, {again}{smaller}") from error
        raise HostError(f"{out} cannot be written", str(error), f"check the disk, {again}") from error
    return Corpus.open(out)


def _prepare_in(
    place: Workplace, source: Source, options: PrepareOptions, progress: Progress | None, say: Note
) -> None:
    """Prepare in the workplace, which stays only where the same command can go on in it."""
    shaping = {name: value for name, value in _shaping_options(options).items() if name != "max_dropped"}
    digest = fingerprint(source, shaping)
    before = place.read() if options.resume == "auto" else None
    if before is not None and before.get("fingerprint") != digest:
        say("an earlier run was cut off, but the source or the options are others now: starting anew")
        before = None
    if before is not None and place.published:
        place.remove()
        return
    try:
        check_output(place.out, options.overwrite)
    except DataError:
        if not place.saved:
            place.remove()
        raise
    try:
        if before is not None:
            say(f"going on from record {before['read']:,}, where an earlier run was cut off")
            try:
                _Run(source, options, place, digest, progress).run(before)
            except SourceChanged:
                say("no: the source has changed since; starting anew")
                before = None
        if before is None:
            place.restart()
            _Run(source, options, place, digest, progress).run()
    except BaseException as error:
        # A full disk or a lost connection is no reason to begin from the start. A verdict on the data is final.
        if isinstance(error, _Unusable) or not place.saved:
            place.remove()
        raise
    place.publish()


class _Unusable(DataError):
    """The records of the source were read, and cannot be made a corpus of."""


def _refuse_own_source(source: Source, out: Path) -> None:
    place = Path(source.path)
    if place.exists() and (out.resolve() == place.resolve() or out.resolve() in place.resolve().parents):
        raise UsageError(f"{place} lies in the output folder {out}", hint="choose an output folder outside the source")


class _Run:
    """One preparation: the loop, and what it counts."""

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
                raise _Unusable(
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
            raise _Unusable(
                f"no usable record in {self.source.path}", why, self.log.hint() or "check the path and the options"
            )
        if share > self.options.max_dropped:
            # A run that stopped early has not seen all that is broken.
            seen, limit = ("the first ", 1.0) if self.stopped else ("", _round_up(share))
            raise _Unusable(
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
        info["options"] = _shaping_options(self.options)
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


def _shaping_options(options: PrepareOptions) -> dict[str, Any]:
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
