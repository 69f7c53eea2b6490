"""A prepared corpus as other tools read it: WebDataset tars, or Parquet in the layout of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from softclip_cli import __version__
from softclip_cli.data.beside import beside
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.export.parquet import write_parquet
from softclip_cli.data.export.tars import write_tars
from softclip_cli.data.signature import COLUMN
from softclip_cli.data.split_writer import write_json
from softclip_cli.errors import HostError, UsageError, nearest

FORMATS = ("webdataset", "parquet")
MADE_BY = "export.json"  # says what the folder is, and that it may be replaced

Progress = Callable[[int, int], None]


def export(
    corpus: Corpus,
    out: Path,
    to: str,
    *,
    splits: Sequence[str] = (),
    each_caption: bool = False,
    shard_bytes: int = 256 << 20,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a corpus in another form. The same corpus and options give the same bytes.

    Args:
        corpus: what to write.
        out: the folder to make; it appears when it is whole.
        to: one of FORMATS.
        splits: only these; all where none is named.
        each_caption: tars get a sample for each caption of an image, for trainers that read one caption a sample.
        shard_bytes: a file is ended before it would grow beyond this (a single sample may be larger).
        overwrite: replace an export that is there.
        progress: called with (samples done, samples in all).

    Returns:
        what `export.json` says: for each split rows, files and bytes, and what was changed on the way.

    Raises:
        UsageError: an unknown format, or options that do not fit.
        DataError: a split that is not there, or `out` is in the way.
        HostError: `out` cannot be written.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown format {to!r}", "known: " + ", ".join(FORMATS), nearest(to, FORMATS))
    if each_caption and to != "webdataset":
        raise UsageError(
            "--each-caption is for tars", "Parquet keeps all captions of an image in its row", "leave it out"
        )
    if shard_bytes < 1 << 20:
        raise UsageError(f"--shard-size {shard_bytes >> 20}: must be at least 1 MB")
    # Signatures of duplicates are for softclip alone, and made anew when an export is prepared.
    chosen = {name: corpus.split(name) for name in (splits or corpus.splits)}
    chosen = {name: data.remove_columns([COLUMN] * (COLUMN in data.column_names)) for name, data in chosen.items()}
    total, done = sum(len(data) for data in chosen.values()), 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, total)

    try:
        with beside(Path(out), overwrite, what="export", mark=MADE_BY) as folder:
            if to == "webdataset":
                facts = write_tars(chosen, folder, shard_bytes, each_caption, advance)
            else:
                facts = write_parquet(chosen, folder, shard_bytes, corpus.path.name, advance)
            document = {
                "softclip": __version__,
                "to": to,
                "corpus": {"name": corpus.path.name, "fingerprint": corpus.fingerprint},
                "splits": facts,
            }
            write_json(folder / MADE_BY, document)
    except OSError as error:
        raise HostError(f"{out} cannot be written", str(error), "check the disk, or choose another folder") from error
    return document
