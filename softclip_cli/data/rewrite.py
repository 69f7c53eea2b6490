"""A corpus written anew without some of its captions; an image that has none left goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.data.corpus import Corpus, CorpusWriter, Record
from softclip_cli.data.dropped import DroppedLog
from softclip_cli.data.sources.base import Dropped
from softclip_cli.errors import DataError

if TYPE_CHECKING:
    import datasets

COPY_ROWS = 256
USUAL = frozenset({"key", "image", "captions", "label", "group"})


def rows_of(data: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a split, read some at a time."""
    for start in range(0, len(data), COPY_ROWS):
        columns = data[start : start + COPY_ROWS]
        for place in range(len(columns["key"])):
            yield {name: column[place] for name, column in columns.items()}


def record_of(row: Mapping[str, Any], captions: list[str], group: str | None) -> Record:
    """A row as it is written again, with these captions and this group."""
    extra = {name: value for name, value in row.items() if name not in USUAL}
    return Record(row["key"], row["image"]["bytes"], captions, row.get("label"), group, extra)


def without_captions(
    corpus: Corpus,
    out: Path,
    split: str,
    unwanted: np.ndarray,
    why: np.ndarray,
    note: Mapping[str, Any],
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Write a corpus without some captions of one split; its other splits stay as they are, to the byte.

    Every caption that goes is in `dropped.parquet`, after what was there, with the reason `mismatched-caption`; an image that loses
    its last one has a line of its own, `mismatched-captions`.

    Args:
        corpus: stays as it is.
        out: the folder to make.
        split: whose captions.
        unwanted: bool (captions of the split,).
        why: float (captions of the split,), the probability that is written down for each.
        note: what `corpus.json` says of it, under `audit`.
        overwrite: replace a corpus that is there.
        progress: called with (images done, in all).

    Raises:
        DataError: no image is left, or `out` is in the way.
    """
    if out.resolve() == corpus.path.resolve():
        raise DataError(f"{out} is the corpus that is read", hint="name another folder for the cleaned one")
    total, done = sum(facts["rows"] for facts in corpus.info["splits"].values()), 0
    gone: list[Dropped] = []
    with CorpusWriter(out, overwrite=overwrite) as writer:
        for name in corpus.splits:
            data, captions, first = corpus.split(name), 0, 0
            import datasets

            features = datasets.Features({**data.features, "image": datasets.Image()})
            part = writer.open_split(name, features)
            for row in rows_of(data):
                done += 1
                if progress is not None and done % COPY_ROWS == 0:
                    progress(done, total)
                texts: list[str] = row["captions"]
                if name == split:
                    marked = unwanted[first : first + len(texts)].tolist()
                    for text, bad, value in zip(texts, marked, why[first : first + len(texts)].tolist(), strict=True):
                        if bad:
                            gone.append(
                                Dropped(row["key"], name, "mismatched-caption", f"probability {value:.3f}: {text}")
                            )
                    first += len(texts)
                    kept = [text for text, bad in zip(texts, marked, strict=True) if not bad]
                    if texts and not kept:
                        gone.append(Dropped(row["key"], name, "mismatched-captions", f"all {len(texts)} captions"))
                        continue
                    texts = kept
                part.write(record_of(row, texts, row.get("group")))
                captions += len(texts)
            if name == split and not part.rows:
                raise DataError(
                    f"no image of split {split!r} is left", "all captions were to go", "drop a smaller share"
                )
            writer.close_split(name)
            writer.info["splits"][name] = {**corpus.info["splits"][name], "rows": part.rows, "captions": captions}
        log = _log(corpus, writer.folder, gone)
        splits = writer.info["splits"].values()
        for key, value in corpus.info.items():
            writer.info.setdefault(key, value)
        counts = {"records": sum(s["rows"] for s in splits), "captions": sum(s["captions"] for s in splits)}
        writer.info["counts"] = {**corpus.info.get("counts", {}), **counts}
        writer.info["dropped"] = log.report(counts["records"])
        writer.info["audit"] = {
            **note,
            "of": corpus.fingerprint,
            "captions_dropped": int(unwanted.sum()),
            "images_dropped": sum(item.reason == "mismatched-captions" for item in gone),
        }
    return Corpus.open(out)


def _log(corpus: Corpus, folder: Path, gone: list[Dropped]) -> DroppedLog:
    import pyarrow.parquet as pq

    stream = folder / "dropped.arrow"
    log = DroppedLog(stream)
    try:
        before = corpus.path / "dropped.parquet"
        if before.is_file():
            for batch in pq.ParquetFile(before).iter_batches():
                for row in batch.to_pylist():
                    log.add(Dropped(**row))
        for item in gone:
            log.add(item)
        log.close(folder / "dropped.parquet")
    finally:
        log.abort()
        stream.unlink(missing_ok=True)
    return log
