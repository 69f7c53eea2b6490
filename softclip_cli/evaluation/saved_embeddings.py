"""A retrieval set's embeddings as files for other programs: NumPy arrays beside Parquet tables of what their rows are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softclip_cli.errors import HostError, UsageError
from softclip_cli.evaluation.retrieval import Embedded
from softclip_cli.evaluation.sets import RetrievalSet

ROWS = 65_536  # written at once


def require_free(folder: Path) -> None:
    """Check that nothing is lost by writing to `folder`.

    Raises:
        UsageError: it is there and holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there already",
            "embeddings are written into a folder of their own",
            "name another folder, or remove this one",
        )


def save_embeddings(embedded: Embedded, data: RetrievalSet, folder: Path, facts: dict[str, Any]) -> Path:
    """Write embeddings into a new folder, whole or not at all.

    `images.npy` (N, d) and `texts.npy` (M, d): float32, rows L2-normalised, in the set's order, a repeated text as often as it occurs;
    `numpy.load(..., mmap_mode="r")` reads them without loading them. `images.parquet` (row, key) and `texts.parquet` (row, text, image: the
    row of its image) say what a row is; `embeddings.json` says what made them.

    Args:
        embedded: of `data`.
        data: the images and captions.
        folder: new, or empty.
        facts: of model and dataset, for `embeddings.json`.

    Returns:
        The folder.

    Raises:
        UsageError: the folder holds something.
        HostError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_free(folder)
    whole = folder.resolve()
    part = whole.with_name(f".{whole.name}.partial")
    images, texts = embedded.features.projected, embedded.texts
    assert images is not None
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _write_rows(part / "images.npy", images, np.arange(len(images)))
        _write_rows(part / "texts.npy", texts, embedded.rows)
        keys = [data.images.key(row) for row in range(len(images))]
        pq.write_table(pa.table({"row": np.arange(len(keys)), "key": keys}), part / "images.parquet")
        columns = {"row": np.arange(len(data.texts)), "text": data.texts, "image": data.owner}
        pq.write_table(pa.table(columns), part / "texts.parquet")
        shape = {"images": len(images), "texts": len(data.texts), "width": images.shape[1], "normalised": True}
        (part / "embeddings.json").write_text(json.dumps(shape | facts, indent=2, ensure_ascii=False) + "\n")
        if whole.is_dir():
            whole.rmdir()
        part.rename(whole)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise HostError(
            f"the embeddings cannot be written to {folder}",
            str(error),
            "choose another folder with --save-embeddings DIR",
        ) from error
    return folder


def _write_rows(path: Path, rows: torch.Tensor, order: np.ndarray) -> None:
    """Rows in this order as a NumPy file, without a second copy of them in memory.

    Written, not mapped: on a full disk a mapped file ends the process without a word.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(order), rows.shape[1])}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(order), ROWS):
            block = rows[torch.from_numpy(order[start : start + ROWS])].numpy()
            stream.write(block.astype("<f4", copy=False).tobytes())
