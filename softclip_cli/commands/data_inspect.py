"""`softclip data inspect`: what is in a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.console import guarded


@guarded
def inspect(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A folder that `softclip data prepare` made.")],
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one page with all of it and a contact sheet of random samples."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Show what is in a corpus: splits, captions and signs of noise in them, image sizes, duplicates, what was dropped.

    [bold]Example[/bold]

    softclip data inspect corpus --html corpus.html
    """
    from softclip_cli.data.corpus import Corpus
    from softclip_cli.data.inspection import inspect_corpus

    opened = Corpus.open(corpus)
    with console.counting("reading") as progress:
        found = inspect_corpus(opened, progress)
    if html is not None:
        from softclip_cli.data.contact_sheet import draw_doubles, draw_samples
        from softclip_cli.reports.corpus_page import write_corpus_page

        doubles = draw_doubles(opened, found["duplicates"].get("examples", []))
        write_corpus_page(html, found, draw_samples(opened), doubles)
        console.note(f"page: {html}")
    console.emit(found, as_json, lambda: _show_inspected(found))


def _show_inspected(found: dict[str, Any]) -> None:
    splits: dict[str, dict[str, Any]] = found["splits"]
    console.table(
        f"corpus {found['path']}",
        ["split", ">images", ">captions", ">captions an image", ">words a caption", ">repeated captions", ">classes"],
        [
            (
                name,
                f"{split['rows']:,}",
                f"{split['captions']:,}",
                _range(split["captions_per_image"]),
                _range(split["words_per_caption"]),
                f"{split['repeated_captions']['captions']:,}",
                split["classes"]["count"] if "classes" in split else "",
            )
            for name, split in splits.items()
        ],
    )
    console.table(
        "images (sampled)",
        ["split", ">sampled", "formats", ">width", ">height", ">bytes a file"],
        [
            (
                name,
                f"{split['images']['sampled']:,}",
                console.counts(split["images"]["formats"]),
                _range(split["images"]["width"]),
                _range(split["images"]["height"]),
                _range(split["images"]["bytes"]),
            )
            for name, split in splits.items()
        ],
    )
    for name, split in splits.items():
        frequent = [item for item in split["repeated_captions"]["most_frequent"] if item["count"] > 1]
        if frequent:
            console.table(
                f"most frequent captions in {name}",
                [">times", "caption"],
                [(i["count"], i["caption"]) for i in frequent],
            )
    _show_noise(found)
    dropped = found["dropped"]
    if dropped:
        lines = {"broken records": "reasons", "single captions": "captions", "left out by choice": "left_out"}
        for title, key in lines.items():
            if dropped[key]:
                console.out.print(f"{title}: {console.counts(dropped[key])}")
    for source in found["sources"]:
        console.out.print(f"from {source['path']} ({source['format']}: {source['reason']})")
    console.out.print("ranges are: smallest / median / largest")


def _show_noise(found: dict[str, Any]) -> None:
    from softclip_cli.reports.corpus_page import duplicate_rows, sign_rows

    splits = found["splits"]
    signs = sign_rows(splits)
    if signs:
        console.table(
            "signs of noise in the captions (counts, not a verdict)",
            ["captions", *(f">{name}" for name in splits)],
            [(label, *values) for label, values in signs],
        )
    if found["noise"]:
        console.out.print(f"known noise of the training pairs: {console.counts(found['noise'])}")
    duplicates = duplicate_rows(found["duplicates"])
    if duplicates:
        console.table(f"duplicates among {found['duplicates']['images']:,} images", ["images", ">number"], duplicates)
    else:
        console.out.print(f"duplicates: not counted, {found['duplicates']['why']}")


def _range(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    if values["min"] == values["max"]:
        return f"{values['min']:,}"
    return f"{values['min']:,} / {values['median']:,g} / {values['max']:,}"
