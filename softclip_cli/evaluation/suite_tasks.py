"""Which datasets a suite is: a list that ships with softclip, the user's own TOML file, or names with commas."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from softclip_cli.config import Section
from softclip_cli.errors import DataError, UsageError, nearest
from softclip_cli.evaluation.catalogue import catalogue

PROTOCOLS = ("zeroshot", "probe", "retrieval")


class Suite(Section):
    """A list of datasets."""

    title: str = ""
    """One line of what it is."""
    source: str = ""
    """Where the list comes from."""
    datasets: list[str]
    """Names of the catalogue, or folders."""
    protocols: tuple[str, ...] = PROTOCOLS
    """What is made of each, where it can be: `zeroshot`, `probe`, `retrieval`."""


@dataclass(frozen=True)
class Tasks:
    """What is to be evaluated.

    Attributes:
        name: of the list, or what the user wrote.
        datasets: those that are known, in order.
        unknown: names of a shipped list that the catalogue does not have.
        protocols: of `PROTOCOLS`.
    """

    name: str
    datasets: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    protocols: tuple[str, ...] = PROTOCOLS


@cache
def suites() -> dict[str, Suite]:
    """The lists that ship with softclip, by name."""
    text = (resources.files("softclip_cli.evaluation") / "suites.toml").read_text(encoding="utf-8")
    return {name: Suite.model_validate(fields) for name, fields in tomllib.loads(text).items()}


def parse_tasks(text: str) -> Tasks:
    """What `--tasks` names: a list of `suites.toml`, a TOML file with `datasets = [...]`, or datasets with commas.

    Raises:
        UsageError: none of these, a damaged file, or a dataset that is neither in the catalogue nor a folder.
    """
    known = {name.lower(): name for name in catalogue()}
    if text in suites():
        suite = suites()[text]
        there = tuple(name for name in suite.datasets if name in known)
        return Tasks(text, there, tuple(name for name in suite.datasets if name not in known), suite.protocols)
    if text.endswith(".toml"):
        suite = _read(Path(text).expanduser())
        return Tasks(Path(text).stem, _named(suite.datasets), protocols=parse_protocols(",".join(suite.protocols)))
    return Tasks(text, _named([part.strip() for part in text.split(",") if part.strip()]))


def parse_protocols(text: str) -> tuple[str, ...]:
    """`zeroshot,probe`, in the order of `PROTOCOLS`.

    Raises:
        UsageError: one of them is unknown, or there is none.
    """
    given = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in given if name not in PROTOCOLS]
    if unknown or not given:
        raise UsageError(
            f"no protocol named {unknown[0]!r}" if unknown else "no protocol is named",
            "a suite has " + ", ".join(PROTOCOLS),
            (nearest(unknown[0], PROTOCOLS) if unknown else "") or "for example --protocol zeroshot,probe",
        )
    return tuple(name for name in PROTOCOLS if name in given)


def _read(path: Path) -> Suite:
    try:
        fields: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return Suite.model_validate(fields)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the list of tasks {path} cannot be read", str(error), 'it is TOML: datasets = ["cifar10"]'
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML", str(error), 'it is TOML: datasets = ["cifar10"]') from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{path}: {where}: {first['msg']}",
            "a list of tasks has datasets, protocols, title and source",
            'datasets = ["cifar10"]',
        ) from None


def _named(names: list[str]) -> tuple[str, ...]:
    from softclip_cli.evaluation.find import own_folder, parse_dataset

    found = []
    for name in names:
        if "/" in name or name.startswith((".", "~")):
            found.append(name)  # a folder that is not there is missing, as a dataset of the catalogue may be
            continue
        try:
            folder = own_folder(parse_dataset(name)[0])
        except DataError as error:
            raise UsageError(
                f"no suite or dataset named {name!r}",
                error.why,
                nearest(name, [*suites(), *catalogue()])
                or f"the suites are {', '.join(suites())}; softclip datasets list has the rest",
            ) from None
        found.append(name if folder is not None else {known.lower(): known for known in catalogue()}[name.lower()])
    if not found:
        raise UsageError("no dataset is named", hint=f"--tasks {', '.join(suites())}, or names with commas")
    return tuple(dict.fromkeys(found))
