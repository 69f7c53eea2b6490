"""What of a corpus is worth looking at: random samples with their captions, and pairs of duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decisions import evaluation_splits

TRAINING_SAMPLES, OTHER_SAMPLES = 36, 12
MOST_SPLITS = 6


@dataclass(frozen=True)
class Sample:
    """One image of a corpus with its captions; `remarks` are its class, its group, its known noise."""

    split: str
    key: str
    image: bytes
    captions: list[str]
    remarks: list[str]


def draw_samples(corpus: Corpus, seed: int = 0) -> list[Sample]:
    """Random samples of each split, more of those that are trained on, in the order of the splits; the same each time."""
    found = []
    held_out = evaluation_splits(corpus)
    for number, name in enumerate(corpus.splits[:MOST_SPLITS]):
        data = corpus.split(name)
        count = min(len(data), OTHER_SAMPLES if name in held_out else TRAINING_SAMPLES)
        for place in np.random.default_rng((seed, number)).choice(len(data), count, replace=False):
            row = data[int(place)]
            found.append(Sample(name, row["key"], row["image"]["bytes"], row["captions"], _remarks(row, data.features)))
    return found


def _remarks(row: dict[str, Any], features: Any) -> list[str]:
    remarks = []
    if row.get("label") is not None:
        remarks.append(f"class {features['label'].int2str(row['label'])}")
    if row.get("group") is not None:
        remarks.append(f"group {row['group']}")
    if row.get("noise"):
        remarks.append(f"noise: {row['noise']}")
    return remarks


@dataclass(frozen=True)
class Double:
    """Two images of a corpus that show the same picture."""

    first: Sample
    second: Sample
    alike: float
    exact: bool


def draw_doubles(corpus: Corpus, pairs: Sequence[dict[str, Any]]) -> list[Double]:
    """The pairs of `inspect_corpus`'s `duplicates["examples"]` with their images."""
    splits = {name: corpus.split(name) for pair in pairs for name in (pair["split"], pair["of_split"])}

    def sample(split: str, row_number: int) -> Sample:
        row = splits[split][row_number]
        return Sample(split, row["key"], row["image"]["bytes"], row["captions"], [])

    return [
        Double(
            sample(pair["of_split"], pair["of_row"]), sample(pair["split"], pair["row"]), pair["alike"], pair["exact"]
        )
        for pair in pairs
    ]
