"""Training data changed on purpose: a random part of the samples, captions exchanged, the exchanged ones left out again.

What a run sees is then a function of (seed, share, mismatched) and nothing else, the same for every objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from softclip_cli.data.mismatch import exchange_captions
from softclip_cli.data.sampler import generator
from softclip_cli.data.sharded.corpus import ShardedSplit
from softclip_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    import datasets

STREAM = 4  # keeps these random numbers apart from those of the order, of the captions and of the exchange


@dataclass(frozen=True)
class Alteration:
    """Which samples and captions of a split are trained on.

    Attributes:
        rows: int64 (n,), ascending: the samples that stay.
        first: int64 (n + 1,): the captions of the i-th of them have the places first[i] … first[i+1] − 1.
        source: int64 (places,): the number of the caption that stands there, among all captions of the whole split.
        mismatched: bool (places,): whether it is another image's.
    """

    rows: np.ndarray
    first: np.ndarray
    source: np.ndarray
    mismatched: np.ndarray


def alter(counts: np.ndarray, *, share: float, mismatched: float, drop: bool, seed: int) -> Alteration:
    """Choose samples, then exchange captions among those chosen.

    Args:
        counts: int64 (rows,), captions of each sample of the split.
        share: of the samples that stay, in (0, 1]; of two shares with one seed the smaller one's samples are among the larger one's.
        mismatched: share of their captions that are exchanged, each for another image's.
        drop: leave the exchanged captions out again, and samples that have no other.
        seed: decides which.

    Raises:
        UsageError: too few captions to exchange.
        DataError: nothing is left.
    """
    size = len(counts)
    kept = size if share >= 1 else max(1, round(share * size))
    rows = np.arange(size) if kept == size else np.sort(generator(seed, STREAM).permutation(size)[:kept])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    own = counts[rows]
    exchange = exchange_captions(own, mismatched, seed)
    # Numbers among the captions of the chosen samples → numbers among those of the whole split.
    numbers = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
    source, wrong = numbers[exchange.source], exchange.mismatched
    if drop and wrong.any():
        owner = np.repeat(np.arange(len(rows)), own)[~wrong]
        own = np.bincount(owner, minlength=len(rows))
        rows, own, source, wrong = rows[own > 0], own[own > 0], source[~wrong], wrong[~wrong]
    if not len(rows):
        raise DataError("no sample is left to train on", "every caption was exchanged and left out again")
    return Alteration(rows, np.concatenate([[0], np.cumsum(own)]).astype(np.int64), source, wrong)


def altered_split(data: datasets.Dataset, change: Alteration) -> datasets.Dataset:
    """The split as the alteration says: images are not copied, captions are written anew in memory."""
    captions = data["captions"][:]
    flat = [text for several in captions for text in several]
    said: list[list[str]] = [list(several) for several in captions]
    for place, row in enumerate(change.rows.tolist()):
        said[row] = [flat[number] for number in change.source[change.first[place] : change.first[place + 1]]]
    feature = data.features["captions"]
    return data.remove_columns("captions").add_column("captions", said, feature=feature).select(change.rows)


def caption_counts(data: datasets.Dataset | ShardedSplit) -> np.ndarray:
    """int64 (rows,): how many captions each sample has.

    Raises:
        UsageError: the data are shards, which are not read as a whole.
    """
    import pyarrow.compute as pc

    if isinstance(data, ShardedSplit):
        raise UsageError(
            "data.share and data.mismatched need a prepared corpus, and the data are shards",
            "which captions change places is decided over the whole split",
            "softclip data prepare SHARDS corpus",
        )
    return np.asarray(
        pc.list_value_length(data.with_format("arrow")["captions"][:]).to_numpy(zero_copy_only=False), dtype=np.int64
    )
