"""`softclip datasets`: the catalogue of datasets that are known by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluate import DebugOption, JsonOption, RootOption
from softclip_cli.console import guarded

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
        rows.append({"name": name, "task": entry.task, "title": entry.title, "present": str(place) if place else None})

    def render() -> None:
        shown = [(row["name"], row["task"], row["title"], row["present"] or "not here") for row in rows]
        console.table("", ("name", "task", "what", f"in {root}"), shown)
        console.note(
            "softclip datasets show NAME tells where to get one; your own folders work too (docs/evaluation.md)"
        )

    console.emit(rows, as_json, render)


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
    from softclip_cli.evaluation.find import present
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
            ("accepted layouts", "\n".join(layouts[layout].shape for layout in entry.layouts)),
            ("example", target / entry.example),
            ("evaluated split", entry.split),
            ("probe is fitted on", entry.train or "no training split"),
            ("splits", ", ".join(f"{split} {size:,}" for split, size in entry.sizes.items())),
            ("class names", " or ".join(entry.class_names) if entry.task == "classification" else ""),
            ("prompts", (" or ".join(entry.prompts) or "generic prompt") if entry.task == "classification" else ""),
            ("metric", entry.metric),
            ("licence", entry.licence),
            ("cite", entry.citation),
        ]
        console.table("", ("dataset", name), [row for row in rows if row[1]])

    console.emit(facts, as_json, render)
