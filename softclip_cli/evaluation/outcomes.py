"""Outcomes of single items, packed inside a result document, so that two documents can be compared item by item.

They stand in the document itself, not in a file beside it: `--json` stays one document, and what a comparison reads can
be neither lost nor mixed up. Each array takes the smallest type that holds it, is deflated and written in base64.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.ranks import Ranks

BITS = "bit"  # an array of booleans, eight a byte


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON: `dtype`, `shape` and `data` (base64 of zlib of its bytes in C order, little-endian).

    Booleans are stored as bits, non-negative integers in the smallest unsigned type, anything else as float32.
    """
    array = np.asarray(array)
    if array.dtype == bool:
        kind, content = BITS, np.packbits(array.ravel(), bitorder="little")
    elif np.issubdtype(array.dtype, np.integer):
        if array.size and array.min() < 0:
            raise ValueError("only non-negative integers are packed")
        highest = int(array.max()) if array.size else 0
        content = array.astype(next(f"<u{size}" for size in (1, 2, 4, 8) if highest < 256**size))
        kind = content.dtype.str
    else:
        content = array.astype("<f4")
        kind = content.dtype.str
    data = base64.b64encode(zlib.compress(content.tobytes(), 9)).decode("ascii")
    return {"dtype": kind, "shape": list(array.shape), "data": data}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """What `pack` was given: bool, int64 or float64, in its shape.

    Raises:
        ValueError: it is damaged.
    """
    shape = tuple(int(length) for length in packed["shape"])
    try:
        content = zlib.decompress(base64.b64decode(packed["data"], validate=True))
    except zlib.error as error:
        raise ValueError(str(error)) from None
    count = int(np.prod(shape))
    if packed["dtype"] == BITS:
        bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=count, bitorder="little")
        return bits.astype(bool).reshape(shape)
    kind = np.dtype(str(packed["dtype"]))
    found = np.frombuffer(content, dtype=kind).reshape(shape)
    return found.astype(np.int64 if kind.kind == "u" else np.float64)


def packed(arrays: Mapping[str, np.ndarray], **facts: Any) -> dict[str, Any]:
    """The `outcomes` of a document: packed arrays by name, and plain facts beside them."""
    return {"arrays": {name: pack(array) for name, array in arrays.items()}, **facts}


def arrays_of(document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The outcomes of a document by name; empty where it has none (written before there were any, or a task without).

    Raises:
        DataError: they are damaged.
    """
    stored = (document.get("outcomes") or {}).get("arrays") or {}
    try:
        return {name: unpack(packed) for name, packed in stored.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the outcomes in the result of {document.get('task')} are damaged", str(error), "make the evaluation again"
        ) from None


def classification(best: np.ndarray, labels: np.ndarray, prefix: str = "") -> dict[str, np.ndarray]:
    """Outcomes of a classification: `label`, `best` (the class that each image got) and, with k ≥ 5, `top5` (hit or not).

    Args:
        best: int (N, k), the best classes of each image, best first.
        labels: int (N,).
        prefix: stands before `best` and `top5`; `label` is left out then, being there already.
    """
    arrays = {} if prefix else {"label": labels}
    arrays[f"{prefix}best"] = best[:, 0]
    if best.shape[1] >= 5:
        arrays[f"{prefix}top5"] = (best[:, :5] == labels[:, None]).any(axis=1)
    return arrays


def retrieval(to_text: Ranks, to_image: Ranks, owner: np.ndarray) -> dict[str, np.ndarray]:
    """Outcomes of a retrieval: the ranks in both directions, and how many texts each image has.

    Args:
        to_text: of N images.
        to_image: of M texts, image by image.
        owner: int (M,), ascending: the image of each text.
    """
    return {
        "image_to_text_better": to_text.better,
        "image_to_text_equal": to_text.equal,
        "image_to_text_own": to_text.own,
        "text_to_image_better": to_image.better,
        "text_to_image_equal": to_image.equal,
        "texts": np.bincount(owner, minlength=len(to_text.better)),
    }


def composition(wins: np.ndarray, edits: np.ndarray) -> dict[str, Any]:
    """The whole `outcomes` of a composition: whether each true caption won, and the kind of its edit.

    Args:
        wins: bool (N,).
        edits: str (N,).
    """
    names, places = np.unique(edits, return_inverse=True)
    return packed({"wins": wins, "edit": places}, edits=[str(name) for name in names])
