"""Recipes: named settings of whole runs, as TOML files beside this one, each with a table `[recipe]` that says what it is."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from softclip_cli.config import Section
from softclip_cli.errors import UsageError, nearest

FACTS = "recipe"  # the table that holds no settings


class RecipeFacts(Section):
    """What a recipe says of itself."""

    title: str
    """one line: objective, corpus, towers"""
    source: str
    """papers and code that the values come from"""
    data: str
    """what to train on and how to prepare it"""
    cost: str
    """how much work it is"""
    text_tower: str = ""
    """the kind (`model_type`) of its Hugging Face text tower, so that a smoke run can build one without a download"""
    notes: tuple[str, ...] = ()
    """what differs from the source, and why"""


def names() -> list[str]:
    """All recipes."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def text(name: str) -> str:
    """A recipe as it stands, with the comments that say where each value comes from.

    Raises:
        UsageError: no such recipe; the nearest are named.
    """
    if name not in names():
        raise UsageError(
            f"no recipe named {name!r}", "recipes: " + ", ".join(names() or ["none"]), nearest(name, names())
        )
    return (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")


def facts(name: str) -> RecipeFacts:
    """What a recipe says of itself.

    Raises:
        UsageError: no such recipe.
    """
    return RecipeFacts.model_validate(tomllib.loads(text(name))[FACTS])


def read(name: str) -> dict[str, Any]:
    """The settings of a recipe, nested by section.

    Raises:
        UsageError: no such recipe.
    """
    return settings_of(tomllib.loads(text(name)))


def settings_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document without the table `[recipe]`: a recipe that was copied to a file is a configuration file like any other."""
    return {key: value for key, value in document.items() if key != FACTS}
