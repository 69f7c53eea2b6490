"""Labels: the values of a label column become class numbers with names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softclip_cli.data.sources.base import printable
from softclip_cli.data.sources.readers import BadRow, Reader
from softclip_cli.errors import DataError

MAX_CLASSES = 100_000


@dataclass
class Labels:
    """How the values of a label column become class numbers.

    Attributes:
        names: of the classes, in the order of their numbers.
        numbers: the values that are not numbers already.
        reason: where the names come from.
    """

    names: list[str]
    numbers: dict[str, int] | None
    reason: str

    def number(self, value: Any) -> int | None:
        """The class number; None for no label (empty, or negative, as the Hub marks unlabelled test sets).

        Raises:
            KeyError: the value is no known class.
        """
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return None
        if self.numbers is not None:
            return self.numbers[_label_text(value)]
        index = int(value)
        if index >= len(self.names) or index != float(value):
            raise KeyError(value)
        return index if index >= 0 else None


def _label_text(value: Any) -> str:
    return printable(str(int(value) if isinstance(value, float) and value.is_integer() else value).strip())


def number_labels(readers: Sequence[Reader], column: str, class_names: Sequence[str] | None) -> Labels:
    """Number the classes of a label column: by the given names, the names in the file, or one pass over the column.

    Raises:
        DataError: the column holds lists, or too many different values to be classes.
    """
    known = list(class_names) if class_names is not None else readers[0].class_names(column)
    reason = "--class-names" if class_names is not None else "named in the file"
    if known is not None and readers[0].kind(column) in {"class", "number"}:
        return Labels(known, None, reason)
    numeric = readers[0].kind(column) == "number"
    values: set[Any] = set()
    for reader in readers:
        for row in reader.rows([column]):
            if isinstance(row, BadRow) or row.values[0] in (None, ""):
                continue
            if isinstance(row.values[0], (list, dict)):
                raise DataError(
                    f"the label column {column!r} of {reader.name} holds lists",
                    "an image has one label here",
                    "choose another --label-column, or leave it out",
                )
            values.add(row.values[0] if numeric else _label_text(row.values[0]))
            if len(values) > MAX_CLASSES:
                raise DataError(
                    f"the label column {column!r} has more than {MAX_CLASSES:,} different values",
                    "these are hardly classes",
                    "choose another --label-column",
                )
    if numeric:
        count = int(max((value for value in values if value == value), default=-1)) + 1
        if count > MAX_CLASSES:
            raise DataError(
                f"the label column {column!r} has numbers up to {count - 1}", "these are hardly class numbers"
            )
        return Labels(
            [str(index) for index in range(count)], None, "numbers without names; --class-names gives them names"
        )
    if known is not None:
        if values and all(re.fullmatch(r"-?\d+", value) for value in values) and not values <= set(known):
            return Labels(known, None, reason)
        return Labels(known, {name: index for index, name in enumerate(known)}, reason)
    digits = all(value.isdecimal() for value in values)
    names = sorted(values, key=int) if digits else sorted(values)
    return Labels(names, {name: index for index, name in enumerate(names)}, f"the sorted values of {column!r}")
