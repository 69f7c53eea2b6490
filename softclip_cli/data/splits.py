"""Which split a record goes to: what split lists say, else the source, else a hash of its key, else the default."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from softclip_cli.data.sources.base import Candidate, Dropped, Part, Source, printable, split_name
from softclip_cli.errors import DataError, UsageError


class SplitAssigner:
    """Decides the split of each record.

    Args:
        source: opened; its own split lists hold unless others are given.
        lists: for each split, a text file with the keys or file names of its images.
        fractions: shares of the records that go to other splits than the default.
        default: for records for which nothing else tells the split.

    Raises:
        UsageError: fractions for a source that has splits.
        DataError: a list is missing or empty.
    """

    def __init__(self, source: Source, lists: Mapping[str, Path], fractions: Mapping[str, float], default: str) -> None:
        self.default, self.fractions, self.has_splits = split_name(default), fractions, source.has_splits
        lists = dict(lists) or source.split_lists
        self.members: dict[str, str] = {}
        self.seen: set[str] = set()
        self.doubles: list[Dropped] = []
        self.lists: dict[str, Path] = {}
        for given, path in lists.items():
            name = split_name(given)
            if name in self.lists:
                raise UsageError(
                    f"two split lists for {name!r}", f"{self.lists[name]} and {path}", "join them in one file"
                )
            self.lists[name] = path
            self._read(name, path)
        if self.fractions and (self.lists or source.has_splits):
            raise UsageError(
                "--split-fraction is for sources without splits", f"{source.path} has splits", "leave it out"
            )

    def _read(self, name: str, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
        except OSError as error:
            raise DataError(f"the split list {path} cannot be read", str(error), "check --split-list") from error
        for line in lines:
            entry = printable(line.strip())
            if not entry:
                continue
            before = self.members.get(entry)
            if before not in (None, name):
                # An image of an evaluation split in the training set would be a leak.
                keep, lose = (name, before) if before == "train" else (before, name)
                self.members[entry] = str(keep)
                self.doubles.append(Dropped(entry, str(lose), "in-several-splits", f"in {before} and in {name}"))
            else:
                self.members[entry] = name
        if not any(line.strip() for line in lines):
            raise DataError(f"the split list {path} is empty", hint="check --split-list")

    def assign(self, item: Candidate) -> Dropped | None:
        """Set the candidate's split; tells why it has none."""
        if self.lists:
            base = item.key.rsplit("/", 1)[-1]
            for entry in (item.key, base, base.rsplit(".", 1)[0]):
                if entry in self.members:
                    item.split = self.members[entry]
                    self.seen.add(entry)
                    return None
            return Dropped(item.key, "", "not-in-a-split-list", f"{item.where}: in none of " + ", ".join(self.lists))
        item.split = self._drawn(item) if item.split is None else split_name(item.split)
        return None

    def only_split(self, part: Part) -> str | None:
        """The split that all records of the part go to, if that is known beforehand."""
        if self.lists:
            return None
        if part.split:
            return split_name(part.split)
        return None if self.fractions or self.has_splits else self.default

    def _drawn(self, item: Candidate) -> str:
        if self.fractions:
            # Groups stay together: a near-duplicate in another split would be a leak.
            digest = hashlib.blake2b(f"split\0{item.group or item.key}".encode(), digest_size=8).digest()
            place = int.from_bytes(digest, "big") / 2**64
            for name, share in self.fractions.items():
                if place < share:
                    return split_name(name)
                place -= share
        return self.default

    def leftovers(self) -> Iterator[Dropped]:
        """Entries of the lists that the source does not have."""
        for entry in sorted(set(self.members) - self.seen):
            split = self.members[entry]
            yield Dropped(entry, split, "listed-but-absent", f"listed in {self.lists[split].name}")
