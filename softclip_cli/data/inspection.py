"""What is in a prepared corpus: counts, caption lengths, signs of noise, image sizes, duplicates, what was dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from softclip_cli.data.caption_signs import caption_signs
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.corpus_duplicates import corpus_duplicates
from softclip_cli.data.decode import ImageError, open_header

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

IMAGE_SAMPLE = 1000  # images looked at in each split, spread evenly
TOP_CAPTIONS = 10


def inspect_corpus(corpus: Corpus, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Describe a corpus.

    Args:
        corpus: opened.
        progress: called with (done, in all), anew for each step.

    Returns:
        A JSON document: `path`, `fingerprint`, `sources`, `dropped`, `duplicates` (see `corpus_duplicates`), `noise` where the
        corpus knows it, and `splits`, where each split has `rows`, `captions`, `captions_per_image`, `words_per_caption`,
        `repeated_captions`, `signs` (see `caption_signs`), `classes`, `groups` and `images` (sampled).
        Ranges are objects with `min`, `median` and `max`; `counts` are [value, number] pairs.

    Raises:
        DataError: a split cannot be read.
    """
    splits = {}
    for number, name in enumerate(corpus.splits):
        if progress:
            progress(number, len(corpus.splits))
        splits[name] = _describe(corpus.split(name))
    if progress:
        progress(len(splits), len(splits))
    return {
        "path": str(corpus.path),
        "fingerprint": corpus.fingerprint,
        "sources": corpus.info.get("sources", []),
        "dropped": corpus.info.get("dropped"),
        "noise": corpus.info.get("noise"),
        "duplicates": corpus_duplicates(corpus, progress),
        "splits": splits,
    }


def _describe(split: datasets.Dataset) -> dict[str, Any]:
    import pyarrow.compute as pc

    lists = split.with_format("arrow").select_columns(["captions"])[:]["captions"]
    captions = lists.combine_chunks().flatten() if lists.num_chunks != 1 else lists.chunk(0).flatten()
    words = pc.list_value_length(pc.utf8_split_whitespace(captions)).to_numpy(False)
    found: dict[str, Any] = {
        "rows": len(split),
        "captions": len(captions),
        "captions_per_image": _range(pc.list_value_length(lists).to_numpy()),
        "words_per_caption": _range(words, counts=True),
        "repeated_captions": _repeated(captions),
        "signs": caption_signs(lists) if len(captions) else None,
        "images": _images(split),
    }
    if "label" in split.features:
        found["classes"] = _classes(split)
    if "group" in split.features:
        found["groups"] = _groups(split)
    return found


def _range(values: np.ndarray, counts: bool = False) -> dict[str, Any] | None:
    if not len(values):
        return None
    found: dict[str, Any] = {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
    if counts:
        numbers, times = np.unique(values, return_counts=True)
        found["counts"] = [[int(number), int(count)] for number, count in zip(numbers, times, strict=True)]
    return found


def _groups(split: datasets.Dataset) -> dict[str, int]:
    """Sets of images that are positives of each other."""
    sizes = Counter(
        name
        for name in split.with_format("arrow").select_columns(["group"])[:]["group"].to_pylist()
        if name is not None
    )
    several = [size for size in sizes.values() if size > 1]
    return {"groups": len(several), "images": sum(several), "largest": max(several, default=0)}


def _repeated(captions: pa.Array) -> dict[str, Any]:
    """Captions that occur more than once, letter for letter, and the commonest."""
    import pyarrow.compute as pc

    counts = pc.value_counts(captions)
    numbers = counts.field("counts").to_numpy()
    # By count, then by text: value_counts keeps the order of first appearance, which a stable sort keeps for ties.
    top = np.argsort(-numbers, kind="stable")[:TOP_CAPTIONS]
    return {
        "texts": int((numbers > 1).sum()),
        "captions": int(numbers[numbers > 1].sum()),
        "most_frequent": [
            {"caption": counts.field("values")[int(place)].as_py(), "count": int(numbers[place])} for place in top
        ],
    }


def _classes(split: datasets.Dataset) -> dict[str, Any]:
    labels = split.with_format("arrow").select_columns(["label"])[:]["label"].to_pylist()
    names = split.features["label"].names
    counts = Counter(labels)
    return {
        "count": len(names),
        "images": {name: counts.get(index, 0) for index, name in enumerate(names)},
        "unlabelled": counts.get(None, 0),
    }


def _images(split: datasets.Dataset) -> dict[str, Any]:
    """Sizes and formats of a sample, from the files' headers."""
    places = np.unique(np.linspace(0, len(split) - 1, min(IMAGE_SAMPLE, len(split))).round().astype(int))
    formats: Counter[str] = Counter()
    sizes, lengths = [], []
    images = split.select_columns(["image"])
    for place in places:
        data = images[int(place)]["image"]["bytes"]
        lengths.append(len(data))
        try:
            image = open_header(data)
        except ImageError as error:
            formats[error.kind] += 1
            continue
        formats[str(image.format)] += 1
        sizes.append(image.size)
    return {
        "sampled": len(places),
        "formats": dict(formats.most_common()),
        "shorter_side": _range(np.array([min(size) for size in sizes]), counts=True),
        "width": _range(np.array([width for width, _ in sizes])),
        "height": _range(np.array([height for _, height in sizes])),
        "bytes": _range(np.array(lengths)),
    }
