"""Nested settings as flat ones, and what differs between several of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {dotted name: value}; a list is one value."""
    if not isinstance(tree, Mapping):
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_settings(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted names whose values are not the same in all trees (an absent one differs from any value)."""
    flat = [flatten(tree) for tree in trees]
    names = dict.fromkeys(name for one in flat for name in one)
    return [name for name in names if len({canonical(one.get(name, "\0absent")) for one in flat}) > 1]


def describe_differences(trees: Sequence[Mapping[str, Any]]) -> str:
    """The differing settings as a phrase: `prompts (80 / 1), size (224 / 64)`; empty where all are the same."""
    flat = [flatten(tree) for tree in trees]
    return ", ".join(
        f"{name} ({' / '.join(short(one.get(name, '–')) for one in flat)})" for name in differing_settings(trees)
    )


def short(value: Any, most: int = 40) -> str:
    """A setting's value as text of at most `most` characters; a long list by its length."""
    if isinstance(value, list) and len(value) > 3:
        return f"{len(value)} values"
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def canonical(value: Any) -> str:
    """A value as JSON text that is the same for the same value."""
    return json.dumps(value, sort_keys=True, default=str)
