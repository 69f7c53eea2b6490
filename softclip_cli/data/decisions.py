"""What becomes of duplicates: which images of which splits go, whose captions are kept, and who shares a group.

Splits for evaluation (`val`, `test`, `test_night`, and those of the tasks that a corpus names) are never changed. In every
other split the first of some duplicates stays. Between two such splits nothing is decided: softclip does not know what they
are for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.duplicates import Pairs, clusters

EVALUATION = re.compile(r"(val|test)([\W_\d].*)?", re.IGNORECASE)


def is_evaluation(split: str) -> bool:
    """Whether a split is for evaluation, by its name: val, test, and names that go on after one of them."""
    return EVALUATION.fullmatch(split) is not None


def evaluation_splits(corpus: Corpus) -> set[str]:
    """The splits of a corpus that are for evaluation: by their names, or because `tasks` in its corpus.json says so."""
    found = {name for name in corpus.splits if is_evaluation(name)}
    waiting: list[Any] = [corpus.info.get("tasks") or {}]
    while waiting:
        spec = waiting.pop()
        if isinstance(spec, dict):
            found |= {spec[name] for name in ("split", "test", "train") if isinstance(spec.get(name), str)}
            waiting += spec.values()
    return (found - {"train"}) & set(corpus.splits)


@dataclass(frozen=True)
class Match:
    """The image that another one duplicates.

    Attributes:
        number: of that image.
        alike: 1 for the same pixels, else the correlation of details.
        exact: the same pixels.
    """

    number: int
    alike: float
    exact: bool


@dataclass
class Decisions:
    """What becomes of each image that has duplicates, by its number.

    Attributes:
        duplicates: later ones of their split, and what they duplicate.
        leaks: images outside the evaluation splits that duplicate one of an evaluation split.
        evaluation: images of evaluation splits that duplicate an earlier one of the same split; they stay.
        apart: images that duplicate one of another split, where neither is for evaluation; they stay.
        groups: images that are positives of others of their split, and the first of them.
    """

    duplicates: dict[int, Match] = field(default_factory=dict)
    leaks: dict[int, Match] = field(default_factory=dict)
    evaluation: dict[int, Match] = field(default_factory=dict)
    apart: dict[int, Match] = field(default_factory=dict)
    groups: dict[int, int] = field(default_factory=dict)

    def leaves(self, number: int) -> bool:
        """Whether an image is a duplicate or a leak, which goes where duplicates are dropped."""
        return number in self.duplicates or number in self.leaks


def decide(
    pairs: Pairs, split_of: np.ndarray, protected: Sequence[bool], gone: Collection[int] = frozenset()
) -> Decisions:
    """Decide about the duplicates among the images of a corpus.

    An image is a duplicate of an earlier one that stays: what resembles only what went stays itself.

    Args:
        pairs: as `duplicates_within` finds them.
        split_of: int (N,): the number of each image's split.
        protected: for each split, whether it is for evaluation; these splits come first.
        gone: images that are left out already, for other reasons.
    """
    families = _Families(pairs, split_of)
    found = Decisions()
    for number in families.members():
        if number in gone:
            continue
        split = int(split_of[number])
        partners = families.partners(number)
        same_split = [match for match in partners if split_of[match.number] == split and match.number < number]
        if protected[split]:
            if same_split:
                found.evaluation[number] = _best(same_split)
            continue
        held_out = [match for match in partners if protected[split_of[match.number]]]
        if held_out:
            found.leaks[number] = _best(held_out)
            continue
        stay = [match for match in same_split if not found.leaves(match.number) and match.number not in gone]
        elsewhere = [m for m in partners if split_of[m.number] != split and m.number < number]
        if stay:
            found.duplicates[number] = _best(stay)
        elif elsewhere:
            found.apart[number] = _best(elsewhere)
    found.groups = families.groups([index for index, closed in enumerate(protected) if not closed], gone)
    return found


def _best(matches: list[Match]) -> Match:
    """The same pixels before all else, then the likest, then the first."""
    return min(matches, key=lambda match: (not match.exact, -match.alike, match.number))


class _Families:
    """Images of the same pixels form a family; families are near each other. For each split its first member stands for it."""

    def __init__(self, pairs: Pairs, split_of: np.ndarray) -> None:
        self.split_of = split_of
        self.count = len(split_of)
        self.root: dict[int, int] = {}
        self.family: dict[int, list[int]] = {}
        self.near: dict[int, dict[int, float]] = defaultdict(dict)
        for one, other in zip(pairs.one[pairs.exact].tolist(), pairs.other[pairs.exact].tolist(), strict=True):
            self.root[other] = one
            self.family.setdefault(one, [one]).append(other)
        others = ~pairs.exact
        for one, other, alike in zip(
            pairs.one[others].tolist(), pairs.other[others].tolist(), pairs.alike[others].tolist(), strict=True
        ):
            one, other = self.root.get(one, one), self.root.get(other, other)
            for a, b in ((one, other), (other, one)):
                self.near[a][b] = max(alike, self.near[a].get(b, 0.0))
                self.family.setdefault(a, [a])
        self.first = {name: self._first_of_splits(sorted(members)) for name, members in self.family.items()}

    def _first_of_splits(self, members: list[int]) -> dict[int, int]:
        first: dict[int, int] = {}
        for member in members:
            first.setdefault(int(self.split_of[member]), member)
        return first

    def members(self) -> list[int]:
        """All images that have duplicates, in order."""
        return sorted(member for members in self.family.values() for member in members)

    def partners(self, number: int) -> list[Match]:
        """What an image duplicates: of each family and split the first."""
        name = self.root.get(number, number)
        found = [Match(member, 1.0, True) for member in self.first[name].values() if member != number]
        for other, alike in self.near[name].items():
            found += [Match(member, alike, False) for member in self.first[other].values()]
        return found

    def groups(self, splits: list[int], gone: Collection[int]) -> dict[int, int]:
        """Sets of duplicates within each of some splits: each member and the first one."""
        one, other = [], []
        for name, members in self.family.items():
            for member in members:
                one.append(self.first[name][int(self.split_of[member])])
                other.append(member)
            for neighbour in self.near[name]:
                for split, member in self.first[name].items():
                    if split in self.first[neighbour]:
                        one.append(member)
                        other.append(self.first[neighbour][split])
        edges = np.array([one, other], np.int64).reshape(2, -1)
        root = clusters(self.count, Pairs(edges[0], edges[1], np.empty(0), np.empty(0)))
        here = np.isin(self.split_of, splits)
        here[list(gone)] = False
        wanted = here & (np.bincount(root[here], minlength=self.count)[root] > 1)
        return {int(number): int(root[number]) for number in np.flatnonzero(wanted)}
