"""Typed settings: layered from defaults, recipe, file, `--set` and options; every problem is reported at once.

The settings themselves stand beside the code that they configure, as subclasses of `Section`; this module only knows
how to merge, check and write them.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from softclip_cli.errors import UsageError, nearest

FIELDS_ONLY = "fields only"  # in pydantic's context: check each field by itself, not what goes together


@dataclass(frozen=True)
class Conflict:
    """Settings that do not go together although each is allowed.

    Attributes:
        names: the settings, dotted, as seen from the section that says so.
        text: one sentence.
    """

    names: tuple[str, ...]
    text: str


class Section(BaseModel):
    """A group of settings. The docstring under a field is its help text; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    def conflicts(self) -> list[Conflict]:
        """What does not go together; a section with something to check says so."""
        return []

    @model_validator(mode="after")
    def _goes_together(self, info: ValidationInfo) -> Self:
        found = [] if (info.context or {}).get(FIELDS_ONLY) else self.conflicts()
        if found:
            raise ValueError("; ".join(conflict.text for conflict in found))
        return self


Settings = TypeVar("Settings", bound=Section)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: the file is missing or not TOML; names the line.
    """
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        raise UsageError(f"no configuration file at {path}", hint="check the path, or use --recipe NAME") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML", str(error)) from None


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """Turn `["objective.alpha_end=0.5", "model.lock=['image']"]` into a nested dictionary.

    The value is read as TOML; what is no TOML value is taken as a string, so quotes are optional.

    Raises:
        UsageError: an assignment without `=` or with an empty name; all of them are named.
    """
    nested: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        keys = [key.strip() for key in name.split(".")]
        if not equals or not all(keys):
            problems.append(f"--set {assignment}: expected SECTION.KEY=VALUE")
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        merge_into(nested, {keys[0]: value} if len(keys) == 1 else _nest(keys, value))
    if problems:
        raise UsageError("unusable --set", "\n       ".join(problems), "example: --set objective.alpha_end=0.5")
    return nested


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def merge_into(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base` in place, section by section, and return it."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge_into(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value
    return base


def build(kind: type[Settings], *layers: Mapping[str, Any]) -> Settings:
    """Merge the layers, the later ones winning, and check the result.

    Raises:
        UsageError: lists every problem at once; an unknown key comes with the nearest known ones.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merge_into(merged, layer)
    settings, errors = _check_fields(kind, merged)
    lines = [_problem(kind, item) for item in errors]
    wrong = [_dotted(item["loc"]) for item in errors]
    for section, conflict in _conflicts(settings) if settings is not None else ():
        # What is said of a value that is wrong by itself would be said of its default here.
        if not any(_overlap(_dotted((section, name)), other) for name in conflict.names for other in wrong):
            lines.append(f"{section}: {conflict.text}" if section else conflict.text)
    if lines:
        count = f"{len(lines)} problems" if len(lines) > 1 else "a problem"
        raise UsageError(
            f"{count} in the configuration", "\n       ".join(lines), "softclip train --show-config lists every setting"
        )
    assert settings is not None
    return settings


def _check_fields(kind: type[Settings], merged: dict[str, Any]) -> tuple[Settings | None, list[Any]]:
    """The settings, with defaults in the place of values that are wrong, and what is wrong with those."""
    try:
        return kind.model_validate(merged, context={FIELDS_ONLY: True}), []
    except ValidationError as error:
        errors = error.errors()
    usable = copy.deepcopy(merged)
    for item in errors:
        _drop(usable, item["loc"])
    try:
        return kind.model_validate(usable, context={FIELDS_ONLY: True}), errors
    except ValidationError:  # a setting without a default
        return None, errors


def _drop(nested: dict[str, Any], path: tuple[Any, ...]) -> None:
    """Remove the value at a path, or the innermost one that a dictionary holds on the way there."""
    for depth, key in enumerate(path, start=1):
        below = nested.get(key)
        if not isinstance(below, dict) or depth == len(path):
            nested.pop(key, None)
            return
        nested = below


def _conflicts(section: Section, name: str = "") -> Iterator[tuple[str, Conflict]]:
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from _conflicts(value, _dotted((name, key)))
    for conflict in section.conflicts():
        yield name, conflict


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path if part != "")


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _problem(kind: type[Section], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "configuration"
    if item["type"] == "extra_forbidden":
        *parents, last = item["loc"]
        section: Any = kind
        for part in parents:
            section = section.model_fields[part].annotation if hasattr(section, "model_fields") else None
        known = list(section.model_fields) if section is not None and hasattr(section, "model_fields") else []
        hint = nearest(str(last), known)
        if not hint:
            hint = _elsewhere(kind, str(last)) or ("known: " + ", ".join(known) if known else "")
        return f"{where}: no such setting. {hint}".rstrip()
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] == "value_error" else f" (given: {item['input']!r})"
    return f"{where}: {message}{given}"


def _elsewhere(kind: type[Section], key: str) -> str:
    found = [name for name, _, _ in describe(kind) if name.rsplit(".", 1)[-1] == key]
    return "Did you mean " + ", ".join(repr(name) for name in found) + "?" if found else ""


def describe(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted name, default, help) for every setting."""
    for name, info in kind.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from describe(annotation, f"{prefix}{name}.")
        else:
            default = info.default_factory() if info.default_factory else info.default  # type: ignore[call-arg]
            yield f"{prefix}{name}", default, " ".join((info.description or "").split())


def to_toml(settings: Section) -> str:
    """The settings as TOML text that `read_toml` and `build` turn back into the same settings."""
    import tomli_w

    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))
