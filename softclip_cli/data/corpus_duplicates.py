"""The duplicates in a prepared corpus, counted: from its signatures, or, in a small one that has none, from its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decisions import Decisions, Match, decide, evaluation_splits
from softclip_cli.data.duplicates import duplicates_within
from softclip_cli.data.ordered_map import ordered_map
from softclip_cli.data.signature import SIGNATURE_BYTES, Signatures, sign_all, stored_signatures
from softclip_cli.resources import usable_cores

if TYPE_CHECKING:
    import datasets

MOST_DECODED = 20_000  # images that are decoded for want of signatures
EXAMPLES = 24
CHUNK = 64

Progress = Callable[[int, int], None]


def corpus_duplicates(corpus: Corpus, progress: Progress | None = None) -> dict[str, Any]:
    """Count the duplicates of a corpus.

    Args:
        corpus: opened.
        progress: called with (images done, images).

    Returns:
        `images` compared; `exact` and `near`: images that duplicate an earlier one of their split, those for evaluation left out;
        `evaluation`: the same within those; `leaks`: by split, images outside them that duplicate one in them;
        `apart`: those that duplicate one of another split, neither for evaluation; `largest`: images in the largest set of
        duplicates; `examples`: rows of some pairs, the least alike last. Or `images` 0 and `why` nothing was compared.
    """
    held_out = evaluation_splits(corpus)
    splits = sorted(corpus.splits, key=lambda name: name not in held_out)
    data = {name: corpus.split(name) for name in splits}
    known = {name: stored_signatures(part) for name, part in data.items()}
    missing = [name for name, stored in known.items() if stored is None]
    if sum(len(data[name]) for name in missing) > MOST_DECODED:
        return {"images": 0, "why": "the corpus has no signatures: prepare it again to have its duplicates counted"}
    parts = [stored if stored is not None else _decoded(data[name], progress) for name, stored in known.items()]
    signatures = Signatures.join(parts)
    starts = np.cumsum([0, *(len(part) for part in parts)])
    split_of = np.repeat(np.arange(len(splits)), np.diff(starts))
    found = decide(duplicates_within(signatures, progress), split_of, [name in held_out for name in splits])
    return {
        "images": len(signatures),
        "exact": sum(match.exact for match in found.duplicates.values()),
        "near": sum(not match.exact for match in found.duplicates.values()),
        "evaluation": len(found.evaluation),
        "leaks": dict(Counter(splits[split_of[number]] for number in found.leaks)),
        "apart": len(found.apart),
        "largest": max(Counter(found.groups.values()).values(), default=0),
        "examples": _examples(found, splits, split_of, starts, data),
    }


def _decoded(data: datasets.Dataset, progress: Progress | None) -> Signatures:
    images = data.select_columns(["image"])
    total = len(data)

    def chunks() -> Iterator[list[bytes]]:
        for start in range(0, total, CHUNK):
            yield [image["bytes"] for image in images[start : start + CHUNK]["image"]]

    found: list[bytes] = []
    for _, signed in ordered_map(sign_all, chunks(), usable_cores() if total > 20 * CHUNK else 1, _unknown):
        found.append(signed)
        if progress and len(found) % CHUNK == 0:
            progress(len(found), total)
    return Signatures.of(found)


def _unknown(data: bytes) -> bytes:
    return bytes(SIGNATURE_BYTES)


def _examples(
    found: Decisions, splits: list[str], split_of: np.ndarray, starts: np.ndarray, data: dict[str, datasets.Dataset]
) -> list[dict[str, Any]]:
    """Leaks before duplicates; of each the least alike, where wrong pairs would be, and as many others."""
    examples = []
    for kind, matches in (
        ("leak", found.leaks),
        ("duplicate", {**found.duplicates, **found.evaluation, **found.apart}),
    ):
        ordered = sorted(matches.items(), key=lambda item: (-item[1].alike, item[0]))
        examples += [(kind, *item) for item in _ends(ordered, EXAMPLES // 2)]

    def place(number: int) -> tuple[str, int, str]:
        split = splits[split_of[number]]
        row = int(number - starts[split_of[number]])
        return split, row, data[split].select_columns(["key"])[row]["key"]

    rows = []
    for kind, number, match in examples:
        split, row, key = place(number)
        of_split, of_row, of_key = place(match.number)
        rows.append(
            {
                "kind": kind, "split": split, "row": row, "key": key, "of_split": of_split, "of_row": of_row, "of_key": of_key,
                "alike": round(match.alike, 3), "exact": match.exact,
            }
        )  # fmt: skip
    return rows


def _ends(ordered: list[tuple[int, Match]], count: int) -> list[tuple[int, Match]]:
    if len(ordered) <= count:
        return ordered
    return ordered[: count - count // 2] + ordered[-(count // 2) :]
