"""How a release of a dataset lies on the disk, as data: what an entry of the catalogue tells the generic readers.

A place is a path below the dataset's folder; `PATH:NAME` takes one variable of a MATLAB file or one key of a pickle.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from softclip_cli.config import Section


class Lists(Section):
    """Lists of images with their classes, beside the folder of the images (`layout_lists.py`)."""

    lists: dict[str, str]
    """Split → its list: a text file, a JSON file (its strings count), `FILE.mat:VARIABLE`, or a pattern of image paths
    (with `*`), which stands for the paths that it matches."""
    line: str | dict[str, str] = ""
    """Regular expression of a line or path, with the groups `path` and `label` (and `name`: the class's name). MATLAB
    structures: left out, see `fields`."""
    fields: dict[str, str] = Field(default_factory=dict)
    """The fields of a MATLAB structure that are `path` and `label`."""
    image: str | dict[str, str] = "{path}"
    """Path of an image, with the groups and `{split}` in braces. This and `line` may differ between splits."""
    labels: str = ""
    """`FILE.mat:VARIABLE` with the labels of all images, where `path` is the image's number, counted from 1."""
    first: int | None = None
    """The number of the first class, where labels are numbers; left out: labels are words."""
    classes: str = ""
    """Place of the classes in label order, one a line (or a MATLAB variable); left out: the sorted words of all lists."""
    class_line: str = ""
    """Regular expression of a line of `classes`, with the group `label`."""
    names: str = ""
    """JSON file that maps the words of the labels to class names."""
    only: str = ""
    """JSON file whose keys are the names of the classes that count; images of other classes are left out."""
    skip: bool = False
    """Lines that `line` does not match are left out: a header, or a folder that is no class."""


class Arrays(Section):
    """Pixels in files of arrays (`layout_arrays.py`); each image is handed on as a PNG, which keeps the pixels exactly."""

    kind: Literal["idx", "raw", "pickle", "mat"]
    """idx: MNIST's format; raw: plain bytes; pickle: a dictionary of arrays; mat: a MATLAB file."""
    files: dict[str, list[str]]
    """Split → its files. idx and raw: the images' file, then the labels'; pickle and mat: files that hold both."""
    images: str = ""
    """Key of the images, in a pickle or MATLAB file."""
    labels: str = ""
    """Key of the labels."""
    axes: str = "nhw"
    """Order of the axes as stored: n images, h rows, w columns, c channels."""
    shape: list[int] = Field(default_factory=list)
    """Size of one image along the axes after n, where the file does not say it."""
    first: int = 0
    """The number of the first class."""
    zero_is: int | None = None
    """The number that stands for class 0, such as SVHN's 10."""
    classes: str = ""
    """Place of the class names in label order."""


class ClassLists(Section):
    """A list of images for each class with 1 (true), -1 (false) or 0 (does not count), as VOC has (`layout_multi.py`)."""

    lists: str
    """Path of a list, with `{name}` for the class and `{split}`."""
    image: str
    """Path of an image, with `{path}`."""


class LabelTable(Section):
    """A CSV table with a row for each label of an image, and one of the classes (`layout_multi.py`)."""

    tables: dict[str, str]
    """Split → its table."""
    image_column: str
    """Column of the image's identifier."""
    label_column: str
    """Column of the label's identifier."""
    true_column: str = ""
    """Column that says whether the label is true (1) or not; left out: every row is true."""
    image: str
    """Path of an image, with `{path}` for the identifier and `{split}`."""
    classes: str = ""
    """CSV of label identifiers and names, in label order, with or without a header; left out: `ids` of the entry."""
