"""`softclip datasets`: the catalogue of datasets that are known by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluation_options import DebugOption, JsonOption, RootOption
from softclip_cli.console import guarded

LABELLED = ("classification", "multi-label")  # tasks with class names and prompts
app = typer.Typer(
    no_args_is_help=True, help="The datasets that softclip evaluates by name, and how they must lie on the disk."
)


@app.command("list")
@guarded
def list_datasets(
    data_root: RootOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """All datasets of the catalogue, and which of them are on this machine."""
    from softclip_cli.evaluation.catalogue import catalogue
    from softclip_cli.evaluation.find import data_root as root_of
    from softclip_cli.evaluation.find import present

    root = root_of(data_root)
    rows = []
    for name, entry in catalogue().items():
        place = present(name, root)
        facts = {"name": name, "task": entry.task, "title": entry.title, "metric": entry.metric}
        rows.append({**facts, "present": str(place) if place else None})

    def render() -> None:
        for task in dict.fromkeys(str(row["task"]) for row in rows):
            # A title may say more than a table has room for; `show` has all of it.
            shown = [
                (row["name"], str(row["title"]).partition(":")[0], row["metric"], _below(row["present"], root))
                for row in rows
                if row["task"] == task
            ]
            console.table(task, ("name", "what", "metric", f"in {root}"), shown)
        here = sum(row["present"] is not None for row in rows)
        console.note(
            f"{here} of {len(rows)} are on this machine; softclip datasets show NAME tells where to get one; "
            "your own folders work too (docs/datasets.md)"
        )

    console.emit(rows, as_json, render)


def _below(place: object, root: Path) -> str:
    return Path(str(place)).relative_to(root).as_posix() if place else "not here"


@app.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A dataset of the catalogue.")],
    data_root: RootOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """One dataset: where to get it, which folder layouts are accepted, splits, prompts, terms and citation."""
    from softclip_cli.evaluation.catalogue import find_entry
    from softclip_cli.evaluation.find import data_root as root_of
    from softclip_cli.evaluation.find import present, wanted
    from softclip_cli.evaluation.layouts import all_layouts

    name, entry = find_entry(name)
    root = root_of(data_root)
    target: Path = root / entry.folders[0]
    place = present(name, root)
    facts: dict[str, Any] = {
        "name": name,
        **entry.model_dump(exclude_none=True),
        "present": str(place) if place else None,
        "download": entry.download(str(target)),
    }

    def render() -> None:
        layouts = all_layouts()
        rows = [
            ("what", entry.title),
            ("on this machine", place or f"no; looked in {root}"),
            ("get it", "\n".join(part for part in (facts["download"], entry.site) if part)),
            ("put it in", "\n".join(str(root / folder) for folder in entry.folders)),
            ("accepted layouts", "\n".join(layouts[layout].shape_of(wanted(entry)) for layout in entry.layouts)),
            ("example", target / entry.example),
            ("evaluated split", entry.split),
            ("probe is fitted on", entry.train or "no training split"),
            ("splits", ", ".join(f"{split} {size:,}" for split, size in entry.sizes.items())),
            ("classes", f"{entry.classes:,}" if entry.classes else ""),
            ("class names", " or ".join(entry.class_names) if entry.task in LABELLED else ""),
            ("prompts", (" or ".join(entry.prompts) or "generic prompt") if entry.task in LABELLED else ""),
            ("without the shift", entry.reference),
            ("metric", entry.metric),
            ("licence", entry.licence),
            ("cite", entry.citation),
        ]
        console.table("", ("dataset", name), [row for row in rows if row[1]])

    console.emit(facts, as_json, render)
