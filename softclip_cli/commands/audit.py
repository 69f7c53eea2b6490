"""`softclip audit`: which pairs of a corpus are probably mismatched, and which it misses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluation_options import (
    BatchOption,
    CacheOption,
    DebugOption,
    DeviceOption,
    ModelOption,
    NoCacheOption,
    PrecisionOption,
    WorkersOption,
    embed_options,
    take_model,
)
from softclip_cli.console import guarded

if TYPE_CHECKING:
    from softclip_cli.audit.audit import Audit
    from softclip_cli.data.corpus import Corpus


@guarded
def audit(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A folder that `softclip data prepare` made.")],
    model: ModelOption = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which split to audit.")] = "train",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where tables and gallery go. [default: audit-CORPUS]")
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Pairs of each kind in the gallery.")] = 100,
    drop: Annotated[
        float | None,
        typer.Option(
            "--drop", metavar="SHARE", help="Write the corpus without this share of its captions, the worst: 0.1."
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="CORPUS", help="Where the cleaned corpus goes; with --drop.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cleaned corpus that is there.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of parts, random pairs and trainings.")] = 0,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
    debug: DebugOption = False,
) -> None:
    """Rank the pairs that are probably mismatched, and captions of other images that fit: two tables and a gallery.

    With a pair of pretrained towers (timm:NAME+hf:NAME) projections are trained in the process, and every pair is judged by some that
    have not seen it. A run or any other trained model judges as it is.

    Example: softclip audit corpus --model timm:resnet50+hf:sentence-transformers/all-MiniLM-L6-v2 --drop 0.1 --to cleaned
    """
    from softclip_cli.audit.audit import AuditOptions
    from softclip_cli.audit.audit import audit as find
    from softclip_cli.audit.tables import check_folder, write_tables
    from softclip_cli.data.corpus import Corpus, check_output

    check_drop(drop, to)
    opened = Corpus.open(corpus)
    opened.split(split)
    folder = out or Path(f"audit-{corpus.resolve().name}")
    check_folder(folder)
    if to is not None:
        check_output(to, overwrite)
    options = AuditOptions(
        split,
        seed,
        missed=max(1000, top),
        worst=top,
        embed=embed_options(batch_size, workers, precision, cache, no_cache),
    )
    taken = take_model(model, device)
    with console.counting("auditing") as progress:
        found = find(opened, taken, options, progress=lambda _, done, total: progress(done, total), note=console.note)
    write_tables(folder, found)
    page = write_gallery(folder / "gallery.html", opened, split, found, top)
    document = {**found.document, "out": str(folder), "gallery": str(page)}
    if drop is not None and to is not None:
        document["cleaned"] = clean(opened, to, split, found, drop, overwrite)
    console.emit(document, as_json, lambda: show(document, found, top))


def check_drop(drop: float | None, to: Path | None) -> None:
    """--drop and --to go together.

    Raises:
        UsageError: they do not, or the share is none.
    """
    from softclip_cli.errors import UsageError

    if (drop is None) != (to is None):
        raise UsageError(
            "--drop and --to go together",
            "--drop says what share of the captions goes, --to where the cleaned corpus is written",
            "--drop 0.1 --to CLEANED",
        )
    if drop is not None and not 0 < drop < 1:
        raise UsageError(
            f"--drop {drop:g} is no share", "it is a share of all captions, above 0 and below 1", "--drop 0.1"
        )


def clean(corpus: Corpus, to: Path, split: str, found: Audit, share: float, overwrite: bool) -> dict[str, Any]:
    """Write the corpus without the worst captions, and say what that made of it."""
    from softclip_cli.data.rewrite import without_captions

    marked = found.worst(share)
    note = {
        "split": split,
        "share": share,
        "model": found.document["model"],
        "mismatched_share": found.document["mismatched"]["share"],
    }
    with console.counting("writing the cleaned corpus") as progress:
        cleaned = without_captions(
            corpus, to, split, marked, found.odds.mismatched, note, overwrite=overwrite, progress=progress
        )
    return {
        "path": str(to),
        "fingerprint": cleaned.fingerprint,
        **cleaned.info["audit"],
        **cleaned.info["splits"][split],
    }


def write_gallery(path: Path, corpus: Corpus, split: str, found: Audit, top: int) -> Path:
    """The page, with the pictures of the pairs that it shows."""
    import numpy as np

    from softclip_cli.audit.tables import by_group
    from softclip_cli.reports.audit_page import MissedPair, SuspectPair, write_audit_page

    data = corpus.split(split)

    def image(number: int) -> bytes:
        return data[int(number)]["image"]["bytes"] or b""

    first = np.searchsorted(found.owner, np.arange(len(found.keys) + 1))
    ordered = {name: np.sort(values[np.isfinite(values)]) for name, values in found.evidence.items()}
    suspects = []
    for place, number in enumerate(found.order[:top].tolist()):
        own = int(found.owner[number])
        evidence = [
            (name, float(values[number]), float(np.searchsorted(ordered[name], values[number]) / len(ordered[name])))
            for name, values in found.evidence.items()
            if name != "seen" and np.isfinite(values[number])
        ]
        better = int(found.better[place])
        others = [found.captions[other] for other in range(first[own], first[own + 1]) if other != number]
        suspects.append(
            SuspectPair(
                image(own),
                found.keys[own],
                found.captions[number],
                others,
                float(found.odds.mismatched[number]),
                evidence,
                found.captions[better],
                found.keys[int(found.owner[better])],
            )
        )
    missed = []
    for one, caption, beats in zip(
        found.missed.image[:top].tolist(),
        found.missed.caption[:top].tolist(),
        found.missed_beats[:top].tolist(),
        strict=True,
    ):
        other = int(found.owner[caption])
        own_caption = found.captions[int(first[one])] if first[one] < first[one + 1] else "none"
        keys = found.keys[one], found.keys[other]
        missed.append(
            MissedPair(image(one), keys[0], found.captions[caption], own_caption, image(other), keys[1], beats)
        )
    name, groups = by_group(found, data)
    return write_audit_page(path, found.document, suspects, missed, found.odds.mismatched.tolist(), groups, name)


def show(document: dict[str, Any], found: Audit, top: int) -> None:
    """The share, the worst pairs and what was written."""
    share, counts = document["mismatched"]["share"], document["corpus"]
    console.out.print(
        f"about {share:.1%} of {counts['captions']:,} captions are probably on the wrong image; "
        f"{document['mismatched']['over_half']:,} of them with a probability above one half",
        markup=False,
    )
    rows = [
        (f"{found.odds.mismatched[number]:.0%}", found.keys[int(found.owner[number])], found.captions[number])
        for number in found.order[: min(top, 10)].tolist()
    ]
    console.table("", (">mismatched", "image", "caption"), rows)
    console.out.print(
        f"{document['missed']['found']:,} captions of other images fit as well as an image's own", markup=False
    )
    console.note(f"tables and gallery: {document['out']} (open {document['gallery']})")
    if "cleaned" in document:
        cleaned = document["cleaned"]
        console.note(
            f"cleaned corpus: {cleaned['path']}, without {cleaned['captions_dropped']:,} captions and "
            f"{cleaned['images_dropped']:,} images that had no other"
        )
