"""An audit on the disk: `pairs.parquet`, `missed.parquet` and `audit.json`; and by group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.audit.audit import Audit
from softclip_cli.data.corpus import check_output
from softclip_cli.data.split_writer import write_json
from softclip_cli.errors import HostError

if TYPE_CHECKING:
    import datasets

MARK = "audit.json"
MOST_GROUPS = 60  # a table of more is no overview


def check_folder(out: Path) -> None:
    """Refuse a folder that holds something else than an audit.

    Raises:
        DataError: it does.
    """
    check_output(out, True, what="audit", mark=MARK)


def write_tables(out: Path, found: Audit) -> None:
    """Write the tables and `audit.json` into a folder, which is made.

    `pairs.parquet` has a row a caption, the most suspicious first: `key`, `caption_number` (from 0), `caption`, `mismatched`
    (probability), `rank` (from 1), and the evidence. `missed.parquet` has `key`, `of_key`, `of_caption_number`, `caption`,
    `score`, `beats`.

    Raises:
        HostError: the disk is full or not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = found.order
    pairs: dict[str, Any] = {
        "rank": np.arange(1, len(order) + 1),
        "key": [found.keys[image] for image in found.owner[order]],
        "caption_number": found.number[order],
        "caption": [found.captions[number] for number in order],
        "mismatched": found.odds.mismatched[order],
        **{name: values[order] for name, values in found.evidence.items()},
    }
    missed = found.missed
    other = found.owner[missed.caption]
    extra: dict[str, Any] = {
        "key": [found.keys[image] for image in missed.image],
        "of_key": [found.keys[image] for image in other],
        "of_caption_number": found.number[missed.caption],
        "caption": [found.captions[number] for number in missed.caption],
        "score": missed.score,
        "beats": found.missed_beats,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, columns in (("pairs", pairs), ("missed", extra)):
            beside = out / f".{name}.partial"
            pq.write_table(pa.table(columns), beside, compression="zstd")
            beside.replace(out / f"{name}.parquet")
        write_json(out / MARK, found.document)
    except OSError as error:
        why = error.strerror or str(error)
        raise HostError(f"{out} cannot be written", why, "choose another folder: --out DIR") from error


def by_group(found: Audit, data: datasets.Dataset) -> tuple[str, list[tuple[str, int, float, int]]]:
    """What the groups are called, and (name, captions, mean probability, expected mismatches) of each, the worst first.

    The first of the columns `source`, `group` and `label` that has 2 to MOST_GROUPS different values; nothing where none has.
    """
    for column in ("source", "group", "label"):
        if column not in data.column_names:
            continue
        values = data[column][:]
        names = sorted({value for value in values if value is not None}, key=str)
        if not 2 <= len(names) <= MOST_GROUPS:
            continue
        shown = data.features[column].int2str if hasattr(data.features[column], "int2str") else str
        place = {name: number for number, name in enumerate(names)}
        of = np.array([place.get(value, -1) for value in values])[found.owner]
        rows = []
        for name, number in place.items():
            chosen = found.odds.mismatched[of == number]
            if len(chosen):
                rows.append((str(shown(name)), len(chosen), float(chosen.mean()), round(float(chosen.sum()))))
        return column, sorted(rows, key=lambda row: -row[2])
    return "", []
