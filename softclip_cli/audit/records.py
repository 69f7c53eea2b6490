"""What a run kept of its pairs while it trained (`log.alignments = true`), one value a pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from softclip_cli.objectives.alignments import COLUMNS
from softclip_cli.training.alignments import read_alignments


def run_records(run: Path, first: np.ndarray) -> dict[str, np.ndarray]:
    """The mean over the epochs that saw a pair, by caption.

    Args:
        run: the run folder.
        first: int64 (rows + 1,): the captions of row i have the numbers first[i] … first[i+1] − 1.

    Returns:
        float32 (captions,) under `seen_` and each of `objectives.alignments.COLUMNS`, NaN for a pair that no step saw, and
        `seen`, the number of times; nothing where the run kept no records, or where they are of other pairs.
    """
    total = np.zeros((first[-1], len(COLUMNS)))
    seen = np.zeros(first[-1], np.int64)
    for records in read_alignments(run):
        row, caption = records["row"].astype(np.int64), records["caption"].astype(np.int64)
        if len(row) and (row.max() >= len(first) - 1 or (caption >= np.diff(first)[row]).any()):
            return {}
        values = np.stack([records[name].astype(np.float64) for name in COLUMNS], axis=1)
        usable = np.isfinite(values).all(axis=1)  # a batch that was skipped has no values
        numbers = (first[row] + caption)[usable]
        np.add.at(total, numbers, values[usable])
        np.add.at(seen, numbers, 1)
    if not seen.any():
        return {}
    mean = np.where(seen[:, None] > 0, total / np.maximum(seen, 1)[:, None], np.nan).astype(np.float32)
    return {"seen": seen, **{f"seen_{name}": mean[:, place] for place, name in enumerate(COLUMNS)}}
