"""Releases that keep pixels in files of arrays: MNIST's idx files, plain bytes, CIFAR's pickles, MATLAB files.

Which files and keys is said by the entry of the catalogue (`shapes.Arrays`): nothing here knows a dataset.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.errors import DataError
from softclip_cli.evaluation.layout_lists import lines_of, place, read_mat
from softclip_cli.evaluation.layouts import Labelled, Layout, Wanted
from softclip_cli.evaluation.packed_images import ArrayImages
from softclip_cli.evaluation.shapes import Arrays

# What a pickle of arrays needs; any other name in it would run code of the file's author.
PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of arrays and lists, such as CIFAR's batches; nothing else in it is executed.

    Raises:
        DataError: missing, damaged, or it holds other objects.
    """
    try:
        found = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        return dict(found)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} cannot be read", f"{type(error).__name__}: {error}", "fetch the file again") from None


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes of an idx file (two zero bytes, 0x08, the number of axes, their lengths, the values), or .gz.

    Raises:
        DataError: missing, damaged, or of another type than bytes.
    """
    zipped = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())
        zero, kind, axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        if zero or kind != 8:
            raise ValueError("it does not begin as a file of bytes does")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"{path} cannot be read", str(error), "fetch the file again") from None


def _splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    if wanted.arrays is None or shallow:
        return None
    there = [split for split, files in wanted.arrays.files.items() if all(_file(folder, name) for name in files)]
    return there or None


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(folder: Path, shape: Arrays, split: str) -> tuple[np.ndarray, np.ndarray]:
    files = [folder / name for name in shape.files[split]]
    if shape.kind == "idx":
        return read_idx(files[0]), read_idx(files[1])
    if shape.kind == "raw":
        try:
            return np.memmap(files[0], np.uint8, "r"), np.fromfile(files[1], np.uint8)
        except (OSError, ValueError) as error:
            raise DataError(f"{files[0]} cannot be read", str(error), "fetch the file again") from None
    if shape.kind == "mat":
        parts = [(read_mat(path, shape.images), read_mat(path, shape.labels)) for path in files]
    else:
        batches = [(path, read_pickle(path)) for path in files]
        for path, batch in batches:
            if shape.images not in batch or shape.labels not in batch:
                raise DataError(f"{path} has no {shape.images!r} and {shape.labels!r}", f"it has {', '.join(batch)}")
        parts = [(np.asarray(batch[shape.images]), np.asarray(batch[shape.labels])) for _, batch in batches]
    axis = shape.axes.index("n")
    return np.concatenate([p for p, _ in parts], axis if shape.kind == "mat" else 0), np.concatenate(
        [y for _, y in parts]
    )


def _labelled(folder: Path, split: str, wanted: Wanted) -> Labelled:
    shape = wanted.arrays
    assert shape is not None
    pixels, values = _read(folder, shape, split)
    try:
        if shape.shape:
            pixels = pixels.reshape(-1, *shape.shape)
        pixels = np.transpose(pixels, [shape.axes.index(axis) for axis in "nhwc" if axis in shape.axes])
    except ValueError as error:
        raise DataError(
            f"{folder / shape.files[split][0]} does not hold images of the expected size", str(error), "fetch it again"
        ) from None
    labels = values.reshape(-1).astype(np.int64)
    if shape.zero_is is not None:
        labels[labels == shape.zero_is] = 0
    found = [path for path in (_file(folder, name) for name in shape.files[split]) if path is not None]
    names = _names(folder, shape.classes)
    return Labelled(ArrayImages(pixels, found), labels - shape.first, names, f"the release's {shape.classes}")


def _names(folder: Path, where: str) -> tuple[str, ...] | None:
    path, key = place(folder, where)
    if not where or not path.is_file():
        return None
    return (
        tuple(str(name) for name in read_pickle(path)[key]) if key else tuple(line.strip() for line in lines_of(path))
    )


def _details(wanted: Wanted) -> str:
    return (
        ", ".join(dict.fromkeys(name for files in wanted.arrays.files.values() for name in files))
        if wanted.arrays
        else ""
    )


ARRAYS = Layout(
    "arrays",
    "the release as its authors have it, with arrays of pixels",
    _splits,
    labelled=_labelled,
    details=_details,
)
