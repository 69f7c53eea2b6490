"""Class names and prompt templates: where they come from, in which order, and how files of them are read.

They are never typed into softclip. A source is one of

    dataset             what comes with the data: ClassLabel names, a dataset card, classnames.txt, folder names
    open_clip:NAME      a constant of the open_clip package
    timm:first-lemma    the first word that WordNet has for a class folder's id; timm:lemmas: all of them, joined by ",or "
    torchvision:CLASS   the class names that a dataset class of torchvision carries
    clip_benchmark:KEY  the lists that the clip-benchmark package carries, if it is installed
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from softclip_cli.errors import DataError
from softclip_cli.evaluation.catalogue import Entry
from softclip_cli.evaluation.sets import GENERIC_PROMPTS, GENERIC_SOURCE, check_prompts

WNID = re.compile(r"n\d{8}")
BENCHMARK_FILES = {"names": "en_classnames.json", "prompts": "en_zeroshot_classification_templates.json"}


def readable(name: str) -> str:
    """A class name as a caption would have it: underscores become spaces."""
    return " ".join(name.replace("_", " ").split())


def from_open_clip(name: str) -> tuple[str, ...]:
    """Class names or templates that open_clip ships; its templates are functions and become strings with `{}`."""
    import open_clip

    return tuple(entry("{}") if callable(entry) else entry for entry in getattr(open_clip, name))


def from_clip_benchmark(key: str, kind: str) -> tuple[str, ...] | None:
    """What clip-benchmark has under `key` ("names" or "prompts"), or None without it. Nothing of it is imported."""
    spec = importlib.util.find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "datasets" / BENCHMARK_FILES[kind]
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, json.JSONDecodeError):
        return None
    return tuple(str(entry).replace("{c}", "{}") for entry in found) if found else None


@cache
def timm_lines(name: str) -> tuple[str, ...]:
    """The lines of one of the lists of ImageNet's classes that timm ships, such as `imagenet_a_indices`."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "data" / "_info" / f"{name}.txt"
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])


def subset_of_reference(entry: Entry, folder: Path | None = None) -> tuple[int, ...] | None:
    """Indices of the reference's classes that a shifted set has, ascending.

    A shifted set's accuracy is compared with the reference's on these classes alone (Taori et al. 2020).

    Args:
        entry: of the shifted set.
        folder: where the set lies, for sets that come with the mapping themselves.

    Returns:
        The indices; None where it is all of them (`reference_subset` is empty) or where the mapping is not there.

    Raises:
        DataError: the set's own mapping names what is no class of the reference.
    """
    where, _, name = entry.reference_subset.partition(":")
    if where == "timm":
        return tuple(sorted(int(line) for line in timm_lines(name)))
    if where != "lemmas" or folder is None or not (folder / name).is_file():
        return None
    ids = {synset: index for index, synset in enumerate(timm_lines("imagenet_synsets"))}
    lemmas = (line.split("\t", 1) for line in timm_lines("imagenet_synset_to_lemma"))
    numbers = {words: ids[synset] for synset, words in lemmas if synset in ids}
    named = [words for value in json.loads((folder / name).read_text("utf-8")).values() for words in value.split("; ")]
    unknown = [words for words in named if words not in numbers]
    if unknown:
        raise DataError(
            f"{folder / name}: {len(unknown):,} of {len(named):,} classes are none of ImageNet's",
            f"first {unknown[0]!r}",
        )
    return tuple(sorted({numbers[words] for words in named}))


def from_lemmas(ids: Sequence[str], style: str) -> tuple[str, ...] | None:
    """Names of WordNet ids from timm's list of lemmas, or None where an id has none.

    Args:
        ids: such as `n01440764`.
        style: "first-lemma", or "lemmas": all of a synset, joined by ",or " (Cheng et al. 2021).
    """
    lemmas = dict(line.split("\t", 1) for line in timm_lines("imagenet_synset_to_lemma"))
    if not ids or any(name not in lemmas for name in ids):
        return None
    words = [lemmas[name].split(", ") for name in ids]
    return tuple(each[0] if style == "first-lemma" else ",or ".join(each) for each in words)


def _from(source: str, kind: str, ids: Sequence[str] = ()) -> tuple[str, ...] | None:
    where, _, name = source.partition(":")
    if where == "open_clip":
        return from_open_clip(name)
    if where == "torchvision":
        import torchvision.datasets

        return tuple(getattr(torchvision.datasets, name).classes)
    if where == "timm":
        return from_lemmas(ids, name)
    if where == "clip_benchmark":
        return from_clip_benchmark(name, kind)
    raise ValueError(f"the catalogue names an unknown source {source!r}")


def class_names(
    sources: Sequence[str],
    *,
    own: Sequence[str] | None,
    own_source: str,
    file: Path | None = None,
    ids: Sequence[str] = (),
    subset: Sequence[int] | None = None,
) -> tuple[tuple[str, ...] | None, str]:
    """Class names in label order, from the first source that has them.

    Args:
        sources: the catalogue's, such as `["dataset", "open_clip:IMAGENET_CLASSNAMES"]`.
        own: the names that came with the data, if any.
        own_source: where those came from, in words.
        file: `--classnames`, which wins over all.
        ids: the classes' own identifiers (folder names), for files that map them to names.
        subset: of the classes that a package names, those that this set has.

    Returns:
        The names, or None where there are none, and where they came from.
    """
    if file is not None:
        return read_class_names(file, ids), str(file.name)
    for source in sources:
        if source == "dataset":
            if own is not None:
                return tuple(readable(name) for name in own), own_source
            continue
        if source.startswith("clip_benchmark:") and own is not None and list(own) != sorted(own):
            continue  # its lists follow the sorted folder names of a release; these labels are in another order
        found = _from(source, "names", ids)
        if found is not None:
            subset = None if source.startswith("timm:") else subset  # these are named one by one
            return (tuple(found[index] for index in subset) if subset is not None else found), source
    return None, ""


def prompts(sources: Sequence[str], file: Path | None = None) -> tuple[tuple[str, ...], str]:
    """Prompt templates from the first source that has them; else the generic one, and the source says so."""
    if file is not None:
        return read_templates(file), str(file.name)
    for source in sources:
        found = _from(source, "prompts")
        if found is not None:
            return found, source
    missing = "generic prompt (clip-benchmark is not installed, which has prompts for this dataset)"
    return GENERIC_PROMPTS, missing if sources else GENERIC_SOURCE


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: the file is missing, empty or not UTF-8 text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(
            f"the file of {what} {path} cannot be read", str(error), f"give a text file with one of the {what} a line"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"the file of {what} {path} is not UTF-8 text", str(error)) from None
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"the file of {what} {path} is empty", hint=f"write one of the {what} a line")
    return lines


def read_class_names(path: Path, ids: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names from a file: one a line in label order, or `FOLDER<TAB>NAME` lines in any order.

    Raises:
        DataError: unreadable, or the second form does not name every folder.
    """
    lines = read_lines(path, "class names")
    if not all("\t" in line for line in lines):
        return tuple(lines)
    by_id = dict(line.split("\t", 1) for line in lines)
    missing = [name for name in ids if name not in by_id]
    if missing or not ids:
        raise DataError(
            f"{path} maps folders to class names, but not those of this dataset",
            f"no line for {', '.join(missing[:5])}" if ids else "the dataset has no class folders",
            "write one name a line, in label order",
        )
    return tuple(by_id[name].strip() for name in ids)


def read_templates(path: Path) -> tuple[str, ...]:
    """Prompt templates from a file, one a line, with `{}` (or `{c}`) where the class name goes."""
    templates = tuple(line.replace("{c}", "{}") for line in read_lines(path, "templates"))
    check_prompts(templates, str(path))
    return templates


def single_prompt(templates: Sequence[str]) -> str:
    """The one prompt that stands for "without an ensemble": the generic one where it is among them, else the first."""
    return GENERIC_PROMPTS[0] if GENERIC_PROMPTS[0] in templates else templates[0]
