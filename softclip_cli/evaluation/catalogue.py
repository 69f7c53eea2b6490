"""The catalogue: datasets that softclip knows by name. The facts stand in `catalogue/*.toml`, read and checked here.

An entry is data only: no code asks for a dataset's name. Class names and prompts are never typed there: they are read
from where an entry says.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field

from softclip_cli.config import Section
from softclip_cli.errors import DataError, nearest
from softclip_cli.evaluation.shapes import Arrays, ClassLists, LabelTable, Lists


class Entry(Section):
    """One dataset."""

    title: str
    """One line for a table."""
    task: Literal["classification", "multi-label", "retrieval", "ratings"]
    """What it is used for."""
    hub: str = ""
    """Name on the Hugging Face Hub."""
    hub_revision: str = ""
    """Revision on the Hub that holds Parquet, where the main one does not."""
    site: str = ""
    """Its authors' page."""
    folders: list[str]
    """Names of the folder below the data root, the recommended one first."""
    layouts: list[str]
    """Accepted layouts, by their name in `layouts.py`."""
    example: str
    """One file as it lies in the first of the layouts."""
    ids: list[str] = Field(default_factory=list)
    """Sources of the class folders' names in label order, one list after the other: `timm:FILE`; left out: their own order."""
    lists: Lists | None = None
    """The authors' release, where it lists its images."""
    arrays: Arrays | None = None
    """The authors' release, where it has arrays of pixels."""
    class_lists: ClassLists | None = None
    """The authors' release, where it has a list for each class."""
    table: LabelTable | None = None
    """The authors' release, where it has a table of labels."""
    folder_names: Literal["words", "wnid"] = "words"
    """What the class folders are called: class names, or WordNet ids, whose sorted order is the label order."""
    image_column: str | None = None
    """Column of the images in Parquet; left out: found by its type."""
    label_column: str | None = None
    """Column of the labels in Parquet; left out: `label`, or the only one that can be."""
    split_column: str | None = None
    """Column of a Parquet file that tells the splits apart, where the files themselves do not."""
    classes: int | None = None
    """Number of classes."""
    captions_per_image: int | None = None
    """How many captions of each image count (the first ones); left out: all."""
    split: str
    """The split that results are reported on."""
    whole: str = ""
    """The name of the split that a copy without split folders is; left out: such a copy is not taken."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """What some copies call a split → its name here, where it is not just another usual name such as `valid`."""
    train: str | None = None
    """The split that a probe is fitted on; left out: there is none."""
    validation: str | None = None
    """The official validation split, where there is one beside train and test."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Number of images of each split."""
    class_names: list[str] = Field(default_factory=lambda: ["dataset"])
    """Sources of the class names, the first that has them is taken (see `names.py`)."""
    prompts: list[str] = Field(default_factory=list)
    """Sources of the prompt templates; without any, the generic prompt is used and the result says so."""
    empty_classes: bool = False
    """Classes without images are usual: there are many more classes than the test images show."""
    reference: str | None = None
    """The set without the shift, for a natural-shift set: its accuracy is the one that this set's is compared with."""
    reference_subset: str = ""
    """Which of the reference's classes this set has: `timm:FILE` (indices that timm ships), or `lemmas:FILE` (a JSON file of
    the set whose values are lemmas of ImageNet's classes); empty: all."""
    rating_columns: tuple[int, ...] = ()
    """Columns of a file of ratings that are ratings, counted from 0."""
    leave_out_own: bool = False
    """Leave out the ratings of captions that were written for the very image, as papers do."""
    describes: float = 1.0
    """A caption describes an image if the median of its ratings is at least this."""
    kendall: Literal["b", "c"] = "b"
    """Which of Kendall's coefficients papers report on these ratings."""
    metric: Literal["top1", "mean_per_class", "map11", "hit_at_k", "recall", "kendall_tau"]
    """The number that papers report."""
    licence: str = ""
    """Terms of use."""
    citation: str = ""
    """What to cite."""

    def download(self, folder: str) -> str:
        """The command that fetches it from the Hub into `folder`, or an empty string."""
        if not self.hub:
            return ""
        revision = f" --revision {self.hub_revision}" if self.hub_revision else ""
        return f"hf download {self.hub} --repo-type dataset{revision} --local-dir {folder}"


@cache
def catalogue() -> dict[str, Entry]:
    """All entries by name, in the order of the files' names and then as each file has them."""
    entries: dict[str, Entry] = {}
    folder = resources.files("softclip_cli.evaluation") / "catalogue"
    for path in sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=lambda path: path.name):
        for name, fields in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if name in entries:
                raise ValueError(f"{path.name}: a dataset {name!r} is in the catalogue already")
            entries[name] = Entry.model_validate(fields)
    return entries


def find_entry(name: str) -> tuple[str, Entry]:
    """The entry of this name (upper or lower case) and its proper name.

    Raises:
        DataError: there is none; names the nearest.
    """
    by_lower = {known.lower(): known for known in catalogue()}
    known = by_lower.get(name.lower())
    if known is None:
        raise DataError(
            f"no dataset named {name!r}",
            "it is neither in the catalogue nor a folder",
            nearest(name, catalogue()) or "softclip datasets list shows the catalogue; a folder of your own works too",
        )
    return known, catalogue()[known]
