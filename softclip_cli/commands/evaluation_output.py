"""How the evaluation commands save and show their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from softclip_cli import console


def finish(document: dict[str, Any], out: Path | None, as_json: bool, render: Callable[[dict[str, Any]], None]) -> None:
    """Save a result where it belongs, print it, and say where it is."""
    from softclip_cli.evaluation.result import save

    path = save(document, out)
    console.emit(document, as_json, lambda: render(document))
    tell(path)


def finish_all(
    documents: list[dict[str, Any]], out: Path | None, as_json: bool, render: Callable[[list[dict[str, Any]]], None]
) -> None:
    """As `finish`, for several results of one model and a folder `out`."""
    from softclip_cli.evaluation import result

    paths = [result.save(one, out / result.file_name(one) if out is not None else None) for one in documents]
    console.emit(documents, as_json, lambda: render(documents))
    tell(*paths)


def tell(*paths: Path | None) -> None:
    """Say where results were written, and bring the cards of the runs whose they are up to date."""
    written = [path for path in paths if path is not None]
    for path in written:
        console.note(f"result: {path}")
    renew_cards(written)


def renew_cards(paths: Iterable[Path]) -> None:
    """Bring the model cards of runs up to date after new results in their `evals/`."""
    from softclip_cli.reports.model_card import renew_model_card
    from softclip_cli.runs import Run, is_run

    for folder in dict.fromkeys(path.parent.parent for path in paths if path.parent.name == "evals"):
        left = renew_model_card(Run(folder)) if is_run(folder) else None
        if left:
            console.warn(left)


def shown(entry: dict[str, Any]) -> str:
    """A metric for a table: a share in percent, anything else as it is."""
    return f"{100 * entry['value']:.2f} %" if entry.get("unit") == "share" else f"{entry['value']:.1f}"


def interval(entry: dict[str, Any]) -> str:
    """Its 95 % interval for a table, empty where there is none."""
    if "low" not in entry:
        return ""
    factor, digits = (100, 2) if entry.get("unit") == "share" else (1, 1)
    return f"{factor * entry['low']:.{digits}f} to {factor * entry['high']:.{digits}f}"


def show_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table under a line of its own: as the table's title it would be folded to the table's width."""
    console.out.print(title, markup=False)
    console.table("", columns, rows)


def headline(document: dict[str, Any]) -> str:
    """The title of a result's table: model, dataset, split and size."""
    data = document["dataset"]
    size = data.get("gallery") or f"{data['size']:,} images, {data['classes']:,} classes"
    partly = f" (the whole split has {data['expected_size']:,})" if "expected_size" in data else ""
    return f"{document['model']['name']} on {data['name']}, split {data['split']}: {size}{partly}"
