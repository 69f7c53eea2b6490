"""Image-text pairs that people have rated: a set of them, and the files in which such ratings come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.errors import DataError, nearest
from softclip_cli.evaluation.images import FileImages, ImageSource, as_images, digest
from softclip_cli.evaluation.layouts import Layout, Rated, Wanted

IMAGE, TEXT, AUTHOR = "image", "caption", "caption_image"  # columns of a table of ratings


@dataclass(frozen=True, eq=False)
class RatedSet:
    """Pairs of an image and a text, each rated by one or more people.

    Attributes:
        name, split, layout, notes: as for a `RetrievalSet`.
        images: N encoded images.
        texts: T texts.
        image, text: int64 (P,), the image and the text of each pair.
        ratings: float64 (P, R), higher for a better description; NaN where a rater gave none.
        author: int64 (T,), the image that a text was written for; -1 where that is not known.
        describes: a text describes an image if the median of its ratings is at least this.
        kendall: which of Kendall's coefficients papers report: "b", or "c" (for a scale of few steps).

    Raises:
        DataError: no pairs, or ratings that are all the same.
    """

    name: str
    split: str
    images: ImageSource
    texts: list[str]
    image: np.ndarray
    text: np.ndarray
    ratings: np.ndarray
    author: np.ndarray
    describes: float
    kendall: str = "b"
    layout: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", as_images(self.images))
        given = self.ratings[~np.isnan(self.ratings)]
        if len(np.unique(given)) < 2:
            raise DataError(
                f"{self.name} (split {self.split}): {len(self.image):,} pairs, with fewer than two different ratings",
                "without a difference there is nothing to agree with",
                "check the columns of the ratings",
            )
        if (unrated := np.isnan(self.ratings).all(axis=1)).any():
            raise DataError(
                f"{self.name} (split {self.split}): {int(unrated.sum()):,} pairs have no rating",
                f"first: {self.images.key(int(self.image[unrated][0]))}",
                "leave them out of the file",
            )

    @property
    def described(self) -> np.ndarray:
        """bool (P,): whether the text describes the image, by the median of the pair's ratings."""
        return np.nanmedian(self.ratings, axis=1) >= self.describes

    def content(self) -> str:
        """SHA-256 over texts, pairs and ratings: with the images' hash it identifies the set."""
        return digest(self.texts, self.image.tolist(), self.text.tolist(), self.ratings.tolist(), self.describes)


def read_table(path: Path, images: Path | None = None, describes: float | None = None) -> RatedSet:
    """A user's own ratings: CSV, TSV, JSONL or Parquet with the columns image, caption and one a rater.

    A column `caption_image`, where there is one, names the image that a caption was written for. All other columns that
    are numbers are ratings.

    Args:
        path: the table.
        images: the folder that its image names are relative to; default: its own.
        describes: see `RatedSet`; default: the highest rating there is.

    Raises:
        DataError: it cannot be read, lacks a column, or names an image that is not there.
    """
    table = _read(path)
    missing = [name for name in (IMAGE, TEXT) if name not in table.columns]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r}",
            "its columns: " + ", ".join(map(str, table.columns)),
            nearest(missing[0], [str(name) for name in table.columns])
            or "a table of ratings has the columns image, caption and one a rater",
        )
    raters = [name for name in table.columns if name not in (IMAGE, TEXT, AUTHOR) and table[name].dtype.kind in "fiub"]
    if not raters:
        raise DataError(
            f"{path} has no column of numbers beside {IMAGE} and {TEXT}",
            "its columns: " + ", ".join(map(str, table.columns)),
            "give each rater a column of numbers, higher for a better description",
        )
    ratings = table[raters].to_numpy(dtype=np.float64)
    root = images or path.parent
    pairs = [(str(i), str(t)) for i, t in zip(table[IMAGE], table[TEXT], strict=True)]
    authors = {} if AUTHOR not in table.columns else dict(zip(table[TEXT].map(str), table[AUTHOR], strict=True))
    names = list(dict.fromkeys([*(name for name, _ in pairs), *(str(a) for a in authors.values() if a)]))
    absent = [name for name in names if not (root / name).is_file()]
    if absent:
        raise DataError(
            f"{path.name} names {len(absent):,} of {len(names):,} images that are not in {root}",
            f"first {absent[0]}",
            "name the folder of the images: --images DIR",
        )
    texts = list(dict.fromkeys(text for _, text in pairs))
    top = float(np.nanmax(ratings)) if np.isfinite(ratings).any() else 0.0
    return RatedSet(
        name=path.stem,
        split="all",
        images=FileImages(root, names),
        texts=texts,
        author=_places([str(authors.get(text) or "") for text in texts], names),
        image=_places([name for name, _ in pairs], names),
        text=_places([text for _, text in pairs], texts),
        ratings=ratings,
        describes=describes if describes is not None else top,
        layout="table",
        notes={"rating_file": path.name, "raters": [str(name) for name in raters]},
    )


def _read(path: Path) -> Any:
    import pandas as pd

    readers = {
        ".csv": pd.read_csv,
        ".tsv": lambda file: pd.read_csv(file, sep="\t"),
        ".jsonl": lambda file: pd.read_json(file, lines=True),
        ".parquet": pd.read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path} is not a table of ratings",
            f"its name ends in {path.suffix!r}",
            "use .csv, .tsv, .jsonl or .parquet",
        )
    try:
        return readers[path.suffix.lower()](path)
    except Exception as error:  # pandas and Arrow raise many kinds
        raise DataError(f"{path} cannot be read", f"{type(error).__name__}: {error}") from error


def _places(wanted: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """The index of each in `known`, -1 for one that is not there."""
    index = {name: place for place, name in enumerate(known)}
    return np.array([index.get(name, -1) for name in wanted], dtype=np.int64)


# Flickr8k's ExpertAnnotations.txt and CrowdFlowerAnnotations.txt


def _flickr_splits(folder: Path, wanted: Wanted, shallow: bool) -> list[str] | None:
    from softclip_cli.evaluation.layout_captions import nearby, token_file

    found = sorted(folder.glob("*Annotations.txt")) if shallow else nearby(folder, "*Annotations.txt")
    return [path.stem for path in found] if found and token_file(folder, shallow) else None


def _flickr(folder: Path, split: str, wanted: Wanted) -> Rated:
    """Lines `name.jpg<TAB>other.jpg#k<TAB>NUMBER…`; the numbers of the wanted columns are ratings."""
    from softclip_cli.evaluation.layout_captions import locate, nearby, read_tokens, token_file

    path, token = nearby(folder, f"{split}.txt")[0], token_file(folder, shallow=False)
    assert token is not None
    captions = read_tokens(token)
    pairs, ratings = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        cells = line.split("\t")
        try:
            author, _, which = cells[1].rpartition("#")
            row = [float(cells[column]) for column in wanted.rating_columns]
            text = captions[author][int(which)]
        except (IndexError, ValueError, KeyError) as error:
            raise DataError(
                f"{path.name}, line {number}: expected an image, a caption of {token.name} and numbers",
                f"found {line[:120]!r} ({type(error).__name__}: {error})",
                "take both files from the same release of the dataset",
            ) from None
        if wanted.leave_out_own and author == cells[0]:
            continue
        pairs.append((cells[0], author, text))
        ratings.append(row)
    names = list(dict.fromkeys([*(image for image, _, _ in pairs), *(author for _, author, _ in pairs)]))
    # A caption is known by its image too: the same words may have been written for two.
    written = list(dict.fromkeys((author, text) for _, author, text in pairs))
    place = {key: index for index, key in enumerate(written)}
    return Rated(
        images=locate(folder, names, path),
        texts=[text for _, text in written],
        author=_places([author for author, _ in written], names),
        image=_places([image for image, _, _ in pairs], names),
        text=np.array([place[author, text] for _, author, text in pairs], dtype=np.int64),
        ratings=np.array(ratings, dtype=np.float64),
        notes={"rating_file": path.name, "caption_file": token.name},
    )


FLICKR_RATINGS = Layout(
    "flickr-ratings",
    "NAMEAnnotations.txt (lines name.jpg<TAB>other.jpg#0<TAB>ratings) beside NAME.token.txt and a folder of images",
    _flickr_splits,
    rated=_flickr,
)
