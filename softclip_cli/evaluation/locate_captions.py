"""From what a user names to images with captions: retrieval, human ratings, true and false captions."""

from __future__ import annotations

from pathlib import Path

from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation.catalogue import find_entry
from softclip_cli.evaluation.corpus_sets import composition_task, find_task, retrieval_task
from softclip_cli.evaluation.find import corpus_at, data_root, find_set, own_folder, parse_dataset, require_task, wanted
from softclip_cli.evaluation.layouts import Captioned, Contrasted
from softclip_cli.evaluation.locate import located
from softclip_cli.evaluation.ratings import RatedSet, read_table
from softclip_cli.evaluation.sets import CompositionSet, PairedSet, RetrievalSet


def retrieval_set(reference: str, *, root: Path | None = None) -> RetrievalSet:
    """Open a retrieval set: a catalogue name, a corpus (`CORPUS` or `CORPUS:SPLIT`) or a folder with captions.

    Raises:
        DataError: not there, not in an accepted layout, or its gallery has another size than the catalogue states.
    """
    base, part = parse_dataset(reference)
    folder = own_folder(base)
    corpus = corpus_at(folder) if folder is not None else None
    if corpus is not None:
        return retrieval_task(corpus, part or None)
    place = located(base, "retrieval", part, root)
    found: Captioned = place.read("retrieval")
    captions, notes = found.captions, dict(found.notes)
    if place.size is not None and len(captions) != place.size:
        raise DataError(
            f"{place.name}: {len(captions):,} images where this test set has {place.size:,}",
            "recall depends on the size of the gallery, so the numbers would not be those of this test set: "
            "it is another split, or the copy is incomplete",
            f"to evaluate what is there under its own name, give the folder itself: --split {place.folder}",
        )
    count = place.entry.captions_per_image if place.entry else None
    if count:
        short = next((index for index, texts in enumerate(captions) if len(texts) < count), None)
        if short is not None:
            raise DataError(
                f"{place.name}: image {found.images.key(short)} has {len(captions[short])} captions, {count} are expected",
                hint="take the caption file of the original release",
            )
        left_out = sum(len(texts) - count for texts in captions)
        if left_out:
            notes["captions_left_out"] = f"{left_out:,} beyond the first {count} of their images"
        captions = [texts[:count] for texts in captions]
    return RetrievalSet(
        place.name, place.split or "all", found.images, captions, place.layout.name, str(place.folder), notes
    )


def rated_set(
    dataset: str, *, root: Path | None = None, images: Path | None = None, describes: float | None = None
) -> RatedSet:
    """Open rated pairs: a catalogue name, or the user's own table.

    Args:
        dataset: as the user wrote it.
        root: where catalogue datasets are; see `data_root`.
        images: the folder of a table's images; default: the table's own.
        describes: from which median rating on a text describes the image; default: the catalogue's, or the highest rating.

    Raises:
        DataError: not there, or it cannot be read.
        UsageError: `images` for a dataset of the catalogue.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        return read_table(path, images, describes)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"):
        raise DataError(f"no table of ratings at {dataset}", "the file does not exist")
    name, entry = find_entry(dataset)
    require_task(name, entry, "ratings")
    if images is not None:
        raise UsageError(
            f"--images does not go with {name}",
            "a dataset of the catalogue has its images beside it",
            "use --data-root DIR",
        )
    folder, layout, split = find_set(name, entry, data_root(root), None)
    found = layout.read("ratings", folder, split, wanted(entry))
    limit = entry.describes if describes is None else describes
    return RatedSet(name=name, split=split, **vars(found), describes=limit, kendall=entry.kendall, layout=layout.name)


def composition_set(dataset: str, *, split: str | None = None, root: Path | None = None) -> CompositionSet | PairedSet:
    """Open a set of captions that an edit made false (a catalogue name, a corpus, or a folder), or of pairs (Winoground).

    Args:
        dataset: as the user wrote it.
        split: by default the catalogue's, or the first one of a folder; SugarCrepe's are its kinds of edit.
        root: where catalogue datasets are; see `data_root`.

    Raises:
        DataError: not there, not in an accepted layout, or its files do not match its images.
    """
    base, part = parse_dataset(dataset)
    folder = own_folder(base)
    corpus = corpus_at(folder) if folder is not None else None
    if corpus is not None:
        task = find_task(corpus, "composition", split or part)
        if task is None:
            raise DataError(
                f"{folder} offers no composition",
                "its corpus.json lists none",
                "the generated corpus has hard negatives: softclip data generate OUT",
            )
        return composition_task(corpus, task)
    place = located(base, "composition", split or part, root, usual=lambda splits, folder: splits[0])
    found = place.read("composition")
    if isinstance(found, Contrasted):
        return CompositionSet(place.name, place.split, **vars(found), layout=place.layout.name)
    return PairedSet(place.name, place.split, **vars(found), layout=place.layout.name, expected_size=place.size)
