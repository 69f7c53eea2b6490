"""The second pass of preparing: duplicates and leaks, which only the whole corpus shows, are found, decided and written.

The first pass writes a corpus with a signature beside each image into a folder beside the output folder. This pass reads the
signatures alone, decides, and copies the rows that stay: no image is decoded twice, and nothing depends on how many workers
the first pass had. While it copies, the corpus needs its space on the disk twice.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.data.corpus import Corpus, CorpusBuilder, check_output, write_json
from softclip_cli.data.decisions import Decisions, Match, decide, evaluation_splits
from softclip_cli.data.dropped import DroppedLog
from softclip_cli.data.duplicates import duplicates_between, duplicates_within
from softclip_cli.data.group_names import group_names
from softclip_cli.data.leaks import (
    MOST_PICTURES,
    TABLE,
    Leak,
    Protected,
    protected_signatures,
    small_picture,
    write_leaks,
)
from softclip_cli.data.rewrite import COPY_ROWS, record_of, rows_of
from softclip_cli.data.signature import Signatures, stored_signatures
from softclip_cli.data.sources.base import Dropped
from softclip_cli.data.workplace import Workplace
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets

DEDUP = ("drop", "group", "keep")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settling:
    """How duplicates are treated.

    Attributes:
        dedup: one of DEDUP.
        against: evaluation sets whose images must not be trained on.
        workers: processes that decode those sets.
        overwrite: replace a corpus that is there.
    """

    dedup: str = "drop"
    against: tuple[Protected, ...] = ()
    workers: int = 1
    overwrite: bool = False


class Stage:
    """The corpus of the first pass, in a folder beside the output folder; a killed second pass finds it again.

    Args:
        out: the output folder.
        digest: of the source and of all that shaped the first pass.
    """

    def __init__(self, out: Path, digest: str) -> None:
        self.path, self.digest = out.with_name(f".{out.name}.first-pass"), digest
        self._mark = self.path / "first-pass.json"

    @property
    def whole(self) -> bool:
        """Whether the first pass of just this source and these options is there."""
        try:
            return json.loads(self._mark.read_text(encoding="utf-8")) == {"digest": self.digest}
        except (OSError, ValueError):
            return False

    def mark(self) -> None:
        """Say that it is whole."""
        write_json(self._mark, {"digest": self.digest})

    def remove(self) -> None:
        """Remove it, if it is there."""
        self._mark.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def settle(
    stage: Stage,
    out: Path,
    settings: Settling,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Corpus:
    """Write the corpus of the first pass anew without its duplicates and leaks, or with groups, and remove the first.

    Args:
        stage: the corpus of the first pass, with signatures.
        out: the folder to make.
        settings: how.
        progress: called with (done, in all), anew for each step.
        note: told of each step, in a line for people.

    Raises:
        DataError: no image is left; `out` is in the way; another process is preparing it.
    """
    say = note or (lambda text: None)
    try:
        run = _Settle(Corpus.open(stage.path), settings)
        for protected in settings.against:
            say(f"comparing with the {len(protected.images):,} images of {protected.name}")
            run.compare(protected, progress)
        if settings.dedup != "keep":
            say(f"looking for duplicates among {len(run.signatures):,} images")
            pairs = duplicates_within(run.signatures, progress)
            run.decisions = decide(pairs, run.split_of, run.protected.tolist(), run.leaked.keys())
        say("writing the corpus")
        place = Workplace(out)
        with place.locked():
            check_output(place.out, settings.overwrite)
            place.restart()
            writer = CorpusBuilder(place.corpus)
            try:
                run.write(writer, progress)
                writer.finish()
            except BaseException:
                writer.abort()
                place.remove()
                raise
            place.publish()
    except DataError:
        stage.remove()  # a verdict on the data is final; after anything else the same command goes on from the first pass
        raise
    stage.remove()
    return Corpus.open(out)


class _Settle:
    """One second pass. Images are numbered through all splits, those for evaluation first."""

    def __init__(self, staged: Corpus, settings: Settling) -> None:
        self.staged, self.settings = staged, settings
        held_out = evaluation_splits(staged)
        self.splits = sorted(staged.splits, key=lambda name: name not in held_out)
        self.protected = np.array([name in held_out for name in self.splits])
        self.data = {name: staged.split(name) for name in self.splits}
        signatures = []
        for name in self.splits:
            found = stored_signatures(self.data[name])
            if found is None:
                raise DataError(f"split {name!r} of {staged.path} has no signatures", hint="prepare the corpus again")
            signatures.append(found)
        self.signatures = Signatures.join(signatures)
        self.starts = np.cumsum([0, *(len(part) for part in signatures)])
        self.split_of = np.repeat(np.arange(len(self.splits)), np.diff(self.starts))
        self.decisions = Decisions()
        self.leaked: dict[int, tuple[Protected, Match]] = {}
        self.against: Counter[str] = Counter()

    def compare(self, protected: Protected, progress: Progress | None) -> None:
        """Find the training images that duplicate one of an evaluation set."""
        theirs = protected_signatures(protected, self.settings.workers, progress)
        mine = np.flatnonzero(~self.protected[self.split_of])
        pairs = duplicates_between(self.signatures.only(mine), theirs, progress)
        for one, other, alike, exact in zip(
            mine[pairs.one].tolist(), pairs.other.tolist(), pairs.alike.tolist(), pairs.exact.tolist(), strict=True
        ):
            before = self.leaked.get(one)
            if before is None or alike > before[1].alike:
                self.leaked[one] = (protected, Match(other, alike, exact))
        self.against[protected.name] += len(np.unique(pairs.one))

    def row(self, number: int, *columns: str) -> dict[str, Any]:
        """Some columns of an image's row."""
        split = self.split_of[number]
        return self._table(self.splits[split], columns)[int(number - self.starts[split])]

    def _table(self, split: str, columns: tuple[str, ...]) -> datasets.Dataset:
        return self.data[split].select_columns(list(columns))

    def name(self, number: int) -> str:
        """`split/key` of an image."""
        return f"{self.splits[self.split_of[number]]}/{self.row(number, 'key')['key']}"

    def gone(self) -> dict[int, tuple[str, str]]:
        """The images to leave out: reason and detail."""
        found: dict[int, tuple[str, str]] = {}
        if self.settings.dedup == "drop":
            for number, match in self.decisions.leaks.items():
                found[number] = ("leaked-image", f"{_how(match)} {self.name(match.number)}")
            for number, match in self.decisions.duplicates.items():
                reason = "duplicate-image" if match.exact else "near-duplicate-image"
                found[number] = (reason, f"{_how(match)} {self.name(match.number)}{self._conflict(number, match)}")
        for number, (protected, match) in self.leaked.items():
            detail = f"{_how(match)} {protected.images.key(match.number)} of {protected.name}"
            found[number] = ("leaked-image", detail)
        return found

    def _conflict(self, number: int, match: Match) -> str:
        if "label" not in self.data[self.splits[self.split_of[number]]].column_names:
            return ""
        labels = [self.row(one, "label")["label"] for one in (number, match.number)]
        return "" if labels[0] == labels[1] else ", with another label"

    def heirs(self, gone: dict[int, tuple[str, str]]) -> dict[int, list[str]]:
        """Captions that images which stay take over from copies of the same pixels that go."""
        found: dict[int, list[str]] = {}
        if self.settings.dedup == "drop":
            for number, match in self.decisions.duplicates.items():
                if match.exact and match.number not in gone and gone[number][0] == "duplicate-image":
                    own = found.setdefault(match.number, self.row(match.number, "captions")["captions"])
                    own += [text for text in self.row(number, "captions")["captions"] if text not in own]
        return found

    def write(self, writer: CorpusBuilder, progress: Progress | None) -> None:
        """Copy the rows that stay, log the others, and say in corpus.json what was found."""
        gone = self.gone()
        heirs, groups = self.heirs(gone), self.group_names()
        rows: Counter[str] = Counter()
        captions: Counter[str] = Counter()
        merged = done = 0
        for split in self.staged.splits:
            start = int(self.starts[self.splits.index(split)])
            part = writer.open_split(split, self.features(split))
            for row_number, row in enumerate(rows_of(self.data[split])):
                number = start + row_number
                done += 1
                if progress and done % COPY_ROWS == 0:
                    progress(done, len(self.signatures))
                if number in gone:
                    continue
                texts = heirs.get(number, row["captions"])
                merged += len(texts) - len(row["captions"])
                part.write(record_of(row, texts, groups.get(number, row.get("group"))))
                rows[split] += 1
                captions[split] += len(texts)
            writer.close_split(split)
            writer.info["splits"][split]["captions"] = captions[split]
        kept = sum(rows.values())
        if not kept:
            raise DataError(
                "no image is left", f"all {len(gone):,} are duplicates or leaks", "see --dedup keep, and --against"
            )
        before = self.staged.info
        log = self._log(writer.folder / "dropped.parquet", gone)
        leaks = self.leaks(gone)
        if leaks:
            write_leaks(leaks, writer.folder / TABLE)
        for name, value in before.items():
            writer.info.setdefault(name, value)
        counts = {"records": kept, "captions": sum(captions.values()), "merged_captions": merged}
        writer.info["counts"] = {**before["counts"], **counts}
        writer.info["dropped"] = log.report(kept)
        writer.info["duplicates"] = self.report(gone)

    def _log(self, path: Path, gone: dict[int, tuple[str, str]]) -> DroppedLog:
        import pyarrow.parquet as pq

        log = DroppedLog(path.parent.with_suffix(".dropped.arrow"))
        try:
            for batch in pq.ParquetFile(self.staged.path / "dropped.parquet").iter_batches():
                for row in batch.to_pylist():
                    log.add(Dropped(**row))
            for number in sorted(gone):
                split = self.splits[self.split_of[number]]
                log.add(Dropped(self.row(number, "key")["key"], split, *gone[number]))
            log.close(path)
        finally:
            log.abort()
        return log

    def features(self, split: str) -> datasets.Features:
        """The columns that the split is written with."""
        import datasets

        columns = dict(self.data[split].features)
        columns["image"] = datasets.Image()
        if self.settings.dedup == "group":
            columns.setdefault("group", datasets.Value("string"))
        return datasets.Features(columns)

    def group_names(self) -> dict[int, str]:
        """The group of each image that is one of several positives."""
        if self.settings.dedup != "group":
            return {}
        own: dict[int, str] = {}
        for split, start in zip(self.splits, self.starts[:-1].tolist(), strict=True):
            if "group" in self.data[split].column_names:
                names = self.data[split]["group"][:]
                own.update({start + place: name for place, name in enumerate(names) if name is not None})
        return group_names(self.decisions.groups, own, self.split_of, lambda number: self.row(number, "key")["key"])

    def leaks(self, gone: dict[int, tuple[str, str]]) -> list[Leak]:
        """All leaks, the likest first, with pictures of the first ones."""
        found: list[tuple[Leak, int, Protected | None, int]] = []
        for number, match in self.decisions.leaks.items():
            split, _, key = self.name(match.number).partition("/")
            found.append((self._leak(number, match, f"the {split} split", key, gone), number, None, match.number))
        for number, (protected, match) in self.leaked.items():
            leak = self._leak(number, match, protected.name, protected.images.key(match.number), gone)
            found.append((leak, number, protected, match.number))
        found.sort(key=lambda item: (-item[0].alike, item[1]))
        shown = [
            replace(
                leak,
                image=small_picture(self.row(number, "image")["image"]["bytes"]),
                of_image=small_picture(
                    protected.images[other] if protected else self.row(other, "image")["image"]["bytes"]
                ),
            )
            for leak, number, protected, other in found[:MOST_PICTURES]
        ]
        return [*shown, *(leak for leak, *_ in found[MOST_PICTURES:])]

    def _leak(self, number: int, match: Match, of_set: str, of_key: str, gone: dict[int, tuple[str, str]]) -> Leak:
        split = self.splits[self.split_of[number]]
        key = self.row(number, "key")["key"]
        return Leak(key, split, of_set, of_key, round(match.alike, 4), match.exact, number in gone)

    def report(self, gone: dict[int, tuple[str, str]]) -> dict[str, Any]:
        """What corpus.json says of duplicates."""
        made = self.decisions
        groups = set(made.groups.values())
        return {
            "dedup": self.settings.dedup,
            "exact": sum(match.exact for match in made.duplicates.values()),
            "near": sum(not match.exact for match in made.duplicates.values()),
            "groups": len(groups),
            "own_leaks": len(made.leaks),
            "within_evaluation_splits": len(made.evaluation),
            "between_other_splits": len(made.apart),
            "conflicting_labels": sum(detail.endswith("another label") for _, detail in gone.values()),
            "against": dict(self.against),
        }


def _how(match: Match) -> str:
    return "the same pixels as" if match.exact else f"the same picture (likeness {match.alike:.2f}) as"
