"""`softclip data prepare`: from what you have to a checked and clean corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.termination import termination_as_interrupt
from softclip_cli.commands.values import parse_assignments, parse_class_names, parse_fractions, parse_range
from softclip_cli.console import guarded

if TYPE_CHECKING:
    from softclip_cli.data.leaks import Protected

COLUMNS, CLEANING, OUTPUT = "Tables: which column is what", "What is kept", "Output"


@guarded
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Where the images and captions are: a folder of x.jpg + x.txt, a CSV/TSV/JSON-lines/Parquet table, a "
            "folder with Flickr8k.token.txt, COCO or Karpathy JSON, WebDataset tars (a folder, 'x-{000..012}.tar', or an "
            "address such as s3://...), a `datasets` or Parquet folder, class folders, or a Hub name (org/name).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The corpus folder to make.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help="The form of SRC, instead of finding out: datasets, flickr, karpathy, coco, pairs, webdataset, table, "
            "parquet, classes or hub.",
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Holds image paths or bytes.", rich_help_panel=COLUMNS)
    ] = None,
    caption_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Holds captions; give it once for each column.", rich_help_panel=COLUMNS),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Holds class names or numbers.", rich_help_panel=COLUMNS)
    ] = None,
    group_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Rows with the same value here show the same thing, and are positives of each other.",
            rich_help_panel=COLUMNS,
        ),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Says train, val, test, ...", rich_help_panel=COLUMNS)
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Names each record; else the image's path does.", rich_help_panel=COLUMNS),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder that image paths in the table are relative to.", rich_help_panel=COLUMNS
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...|FILE",
            help="Names of the classes in the order of their numbers, or a file with one a line.",
            rich_help_panel=COLUMNS,
        ),
    ] = None,
    caption_template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Make captions for a labelled set from its class names, such as 'a photo of a {}'. Repeatable.",
            rich_help_panel=COLUMNS,
        ),
    ] = None,
    encoding: Annotated[
        str, typer.Option(metavar="NAME", help="Of text files; captions that are not valid in it are left out.")
    ] = "utf-8",
    split: Annotated[
        str, typer.Option(metavar="NAME", help="For records for which SRC has no split.", rich_help_panel=CLEANING)
    ] = "train",
    split_list: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A text file with the image names of a split, one a line. Repeatable; images in no list are left out.",
            rich_help_panel=CLEANING,
        ),
    ] = None,
    split_fraction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=X,...",
            help="Put shares of a source without splits aside, such as val=0.05,test=0.05. The same records each time.",
            rich_help_panel=CLEANING,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="At most so many records a split.", rich_help_panel=CLEANING)
    ] = None,
    min_side: Annotated[
        int,
        typer.Option(metavar="PX", help="Leave out images whose shorter side is smaller.", rich_help_panel=CLEANING),
    ] = 8,
    max_aspect: Annotated[
        float,
        typer.Option(
            metavar="X", help="Leave out images that are X times as long as wide; 0: none.", rich_help_panel=CLEANING
        ),
    ] = 20.0,
    animated: Annotated[
        str,
        typer.Option(
            metavar="first|drop",
            help="Animated images: keep them for their first frame, or leave them out.",
            rich_help_panel=CLEANING,
        ),
    ] = "first",
    caption_characters: Annotated[
        str,
        typer.Option(
            metavar="MIN:MAX", help="Leave out captions that are shorter or longer.", rich_help_panel=CLEANING
        ),
    ] = "1:10000",
    caption_words: Annotated[
        str,
        typer.Option(
            metavar="MIN:MAX",
            help="The same in words, for languages with spaces: 3: or 3:60.",
            rich_help_panel=CLEANING,
        ),
    ] = ":",
    max_repeats: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The same caption on at most N images; from the others it is taken away. Left out: only counted.",
            rich_help_panel=CLEANING,
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE",
            help="Leave out captions that are clearly in another language than en, de, ... Repeatable.",
            rich_help_panel=CLEANING,
        ),
    ] = None,
    dedup: Annotated[
        str,
        typer.Option(
            metavar="drop|group|keep",
            help="Duplicates and near-duplicates: leave later ones out, make them positives of each other (a group), or "
            "do not look for them.",
            rich_help_panel=CLEANING,
        ),
    ] = "keep",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="An evaluation set: training images that are near-duplicates of its images are left out, and shown in "
            "OUT/leaks.html. A name of `softclip datasets list`, a folder or a corpus, with :SPLIT behind it if need be. "
            "Repeatable.",
            rich_help_panel=CLEANING,
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder that holds the datasets named by --against. [default: $SOFTCLIP_DATA, else ./data]",
            rich_help_panel=CLEANING,
        ),
    ] = None,
    max_dropped: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Fail if more than this share of the records is broken; a smaller share is left out and listed.",
            rich_help_panel=CLEANING,
        ),
    ] = 0.05,
    short_side: Annotated[
        int | None,
        typer.Option(
            metavar="PX",
            help="Make larger images this small (shorter side), stored as JPEG. Left out: files stay as they are.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    quality: Annotated[
        int, typer.Option(metavar="Q", help="JPEG quality for --short-side.", rich_help_panel=OUTPUT)
    ] = 90,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", metavar="N", help="Processes; else one a core.", rich_help_panel=OUTPUT),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="local|ray",
            help="Where images are decoded: on this machine, or on the Ray cluster at RAY_ADDRESS. The result is the same.",
            rich_help_panel=OUTPUT,
        ),
    ] = "local",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a corpus that is there.", rich_help_panel=OUTPUT)
    ] = False,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never",
            help="auto: go on where the same command was killed or stopped before. never: start anew.",
            rich_help_panel=OUTPUT,
        ),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Turn images with captions, in nearly any form, into a clean corpus that softclip trains on.

    Every image is decoded, every caption checked.
    What cannot be used is left out and listed, with the reason, in OUT/dropped.parquet.
    Killed or stopped, the same command goes on where it was.

    [bold]Examples[/bold]

    softclip data prepare photos/ corpus            (a folder of x.jpg + x.txt)

    softclip data prepare pairs.csv corpus --image-column file --caption-column text

    softclip data prepare flickr8k/ corpus --short-side 256
    """
    from softclip_cli.data.prepare import PrepareOptions, prepare_source
    from softclip_cli.data.sources import open_source

    options = PrepareOptions(
        format=format_name,
        image_column=image_column,
        caption_columns=tuple(caption_column or ()),
        label_column=label_column,
        group_column=group_column,
        split_column=split_column,
        key_column=key_column,
        image_root=image_root,
        split_lists={name: Path(file) for name, file in parse_assignments("--split-list", split_list or [])},
        class_names=parse_class_names(class_names),
        encoding=encoding,
        caption_templates=tuple(caption_template or ()),
        split=split,
        split_fractions=parse_fractions(split_fraction),
        short_side=short_side,
        quality=quality,
        limit=limit,
        workers=workers,
        engine=engine,
        min_side=min_side,
        max_aspect=max_aspect,
        animated=animated,
        caption_characters=parse_range("--caption-characters", caption_characters),
        caption_words=parse_range("--caption-words", caption_words),
        max_repeats=max_repeats,
        languages=tuple(language or ()),
        dedup=dedup,
        max_dropped=max_dropped,
        overwrite=overwrite,
        resume=resume,
    )
    protected = _protected(against, data_root)
    with termination_as_interrupt():
        found = open_source(source, options)
        console.note(f"format {found.format}: {found.reason}")
        for line in found.notes:
            console.note(f"  {line}")
        with console.counting("preparing") as progress:
            corpus = prepare_source(found, out, options, progress, console.note, protected)
    _draw_leaks(corpus.path)
    console.emit({"corpus": str(corpus.path), **corpus.info}, as_json, lambda: _show_prepared(str(out), corpus.info))


def _protected(references: list[str] | None, root: Path | None) -> tuple[Protected, ...]:
    if not references:
        return ()
    from softclip_cli.evaluation.protected import protected_set

    return tuple(protected_set(reference, root) for reference in dict.fromkeys(references))


def _draw_leaks(corpus: Path) -> None:
    from softclip_cli.data.leaks import read_leaks

    leaks = read_leaks(corpus)
    if leaks:
        from softclip_cli.reports.leaks_page import write_leaks_page

        write_leaks_page(corpus / "leaks.html", str(corpus), leaks)


def _show_prepared(out: str, info: dict[str, Any]) -> None:
    splits = info["splits"]
    rows = [(name, f"{split['rows']:,}", f"{split['captions']:,}") for name, split in splits.items()]
    console.table(f"corpus {out}", ["split", ">images", ">captions"], rows)
    dropped = info["dropped"]
    if dropped["records"]:
        console.out.print(
            f"dropped: {dropped['records']:,} broken records ({dropped['share']:.2%}): {console.counts(dropped['reasons'])}"
        )
    if dropped["captions"]:
        console.out.print(f"dropped: single captions: {console.counts(dropped['captions'])}")
    if dropped["left_out"]:
        console.out.print(f"left out by choice or rule: {console.counts(dropped['left_out'])}")
    if dropped["records"] or dropped["captions"] or dropped["left_out"]:
        console.out.print(f"which and why: {out}/dropped.parquet")
    if info["noted"]:
        console.out.print(
            f"kept, but noted: {console.counts({name: note['images'] for name, note in info['noted'].items()})}"
        )
    if info["repeats"]["texts"]:
        console.out.print(_repeats(info["repeats"]))
    for line in _duplicates(out, info.get("duplicates")):
        console.out.print(line)
    if info["counts"]["renamed_keys"]:
        console.out.print(f"keys that occurred before, now with #2, #3, ...: {info['counts']['renamed_keys']:,}")
    if info["counts"]["resized"]:
        console.out.print(f"images made smaller: {info['counts']['resized']:,}")
    if not info["counts"]["captions"]:
        console.out.print("no captions: good for evaluation; --caption-template makes captions from the class names")
    console.out.print(f"next: softclip data inspect {out}")


def _repeats(repeats: dict[str, Any]) -> str:
    most = repeats["most_frequent"][0]
    return (
        f"captions on more than {repeats['on_more_than']} images: {repeats['texts']:,} texts, {repeats['captions']:,} captions; "
        f"the commonest, {most['images']:,} times: {most['caption'][:60]!r} (--max-repeats limits them)"
    )


def _duplicates(out: str, found: dict[str, Any] | None) -> list[str]:
    """What was found and done about duplicates, a line each."""
    if found is None:
        return []
    copies = f"{found['exact']:,} of the same pixels, {found['near']:,} near-duplicates"
    lines = {
        "drop": [f"duplicates left out: {copies}"],
        "group": [f"duplicates: {copies}; {found['groups']:,} groups of positives"],
        "keep": [],
    }[found["dedup"]]
    if found["own_leaks"]:
        done = "left out" if found["dedup"] == "drop" else "kept: --dedup drop leaves them out"
        lines.append(f"training images that are also in val or test: {found['own_leaks']:,}, {done}")
    lines += [f"training images of {name}: {number:,}, left out" for name, number in found["against"].items()]
    if found["own_leaks"] or any(found["against"].values()):
        lines.append(f"look at them: {out}/leaks.html")
    return lines
