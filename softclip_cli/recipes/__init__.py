"""Recipes: named settings of whole runs, as TOML files beside this one."""

from __future__ import annotations

from importlib import resources
from typing import Any

from softclip_cli.errors import UsageError, nearest


def names() -> list[str]:
    """All recipes."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read(name: str) -> dict[str, Any]:
    """The settings of a recipe, nested by section.

    Raises:
        UsageError: no such recipe; the nearest are named.
    """
    import tomllib

    if name not in names():
        raise UsageError(
            f"no recipe named {name!r}", "recipes: " + ", ".join(names() or ["none"]), nearest(name, names())
        )
    settings = tomllib.loads((resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))
    settings.pop("recipe", None)  # the recipe's own title, source and notes
    return settings
