"""Evaluation sets as images that must not be trained on: what `softclip data prepare --against` compares with."""

from __future__ import annotations

import contextlib
from pathlib import Path

from softclip_cli.data.corpus import Corpus
from softclip_cli.data.leaks import Protected
from softclip_cli.data.signature import Signatures, stored_signatures
from softclip_cli.data.sources.walk import is_image_name, relative, walk
from softclip_cli.errors import DataError
from softclip_cli.evaluation.catalogue import find_entry
from softclip_cli.evaluation.find import corpus_at, data_root, find_set, own_folder, parse_dataset, wanted
from softclip_cli.evaluation.images import ArrowImages, FileImages, ImageSource
from softclip_cli.evaluation.layouts import Wanted, all_layouts, require_split


def protected_set(reference: str, root: Path | None = None) -> Protected:
    """The images of an evaluation set: a catalogue name, a corpus, or a folder; `:SPLIT` behind it takes one split.

    Without a split a catalogue name stands for the split that is reported, a corpus or folder for all its splits but train,
    and for everything where it has no others. A folder in no known layout stands for all images below it.

    Raises:
        DataError: not there, without images, or without that split.
    """
    base, part = parse_dataset(reference)
    folder = own_folder(base)
    if folder is None:
        name, entry = find_entry(base)
        place, layout, split = find_set(name, entry, data_root(root), part)
        return Protected(reference, layout.read(entry.task, place, split, wanted(entry)).images)
    corpus = corpus_at(folder)
    if corpus is not None:
        return _of_corpus(reference, corpus, part)
    sources = _of_folder(folder, part)
    images = sources[0] if len(sources) == 1 else _Joined(sources)
    if not len(images):
        raise DataError(f"no images in {folder}", hint="name the folder of an evaluation set")
    return Protected(reference, images)


def _chosen(splits: list[str], part: str, where: str) -> list[str]:
    if part:
        return [require_split(part, splits, where)]
    return [name for name in splits if name.lower() not in ("train", "training")] or splits


def _of_corpus(reference: str, corpus: Corpus, part: str) -> Protected:
    sources: list[ImageSource] = []
    signatures: list[Signatures | None] = []
    for name in _chosen(corpus.splits, part, str(corpus.path)):
        data = corpus.split(name)
        sources.append(ArrowImages(data, f"{corpus.fingerprint}/{name}", "image", "key"))
        signatures.append(stored_signatures(data))
    known = [found for found in signatures if found is not None]
    joined = Signatures.join(known) if len(known) == len(signatures) else None
    return Protected(reference, sources[0] if len(sources) == 1 else _Joined(sources), joined)


def _of_folder(folder: Path, part: str) -> list[ImageSource]:
    for layout in all_layouts().values():
        tasks = [task for task in ("classification", "retrieval", "multi-label") if layout.reads(task)]
        splits = layout.splits(folder, Wanted(), False)
        if splits and tasks:
            chosen = _chosen(splits, part, str(folder))
            for task in tasks[:-1]:
                with contextlib.suppress(DataError):  # tars and tables say only in their content which kind they are
                    return [layout.read(task, folder, name, Wanted()).images for name in chosen]
            return [layout.read(tasks[-1], folder, name, Wanted()).images for name in chosen]
    if part:
        raise DataError(f"{folder} has no splits", "it is in no layout that has some", f"leave out :{part}")
    names = [relative(place / name, folder) for place, files in walk(folder) for name in files if is_image_name(name)]
    return [FileImages(folder, names)]


class _Joined(ImageSource):
    """Several sources one after another."""

    def __init__(self, sources: list[ImageSource]) -> None:
        self.sources = sources

    def _find(self, index: int) -> tuple[ImageSource, int]:
        for source in self.sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError(index)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> bytes:
        source, inside = self._find(index)
        return source[inside]

    def key(self, index: int) -> str:
        source, inside = self._find(index)
        return source.key(inside)

    def signature(self) -> str:
        return "+".join(source.signature() for source in self.sources)
