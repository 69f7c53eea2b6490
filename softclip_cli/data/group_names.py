"""Names for groups of positives: those that the source has, united where duplicates tie them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def group_names(
    duplicates: Mapping[int, int],
    own: Mapping[int, str],
    split_of: Sequence[int] | np.ndarray,
    key: Callable[[int], str],
) -> dict[int, str]:
    """The group of each image that has one. Groups do not reach over splits.

    Args:
        duplicates: images that are duplicates of others of their split, and the first of them.
        own: the groups that images have in the source.
        split_of: the split of each image.
        key: names the first of some duplicates, and so their group.
    """
    above: dict[tuple[int, str], tuple[int, str]] = {}

    def top(name: tuple[int, str]) -> tuple[int, str]:
        while name in above:
            name = above[name]
        return name

    found = {number: (int(split_of[number]), name) for number, name in own.items()}
    for number, first in duplicates.items():
        name = (int(split_of[first]), f"same as {key(first)}")
        if number in found:
            # The name that comes first in the alphabet stands for both, whatever the order of the images.
            one, other = sorted((top(name), top(found[number])))
            if one != other:
                above[other] = one
        found[number] = name
    return {number: top(name)[1] for number, name in found.items()}
