"""The generated corpus's writer: samples from worker processes, in order, into a prepared corpus."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.data.corpus import Corpus, CorpusWriter, Record, features_for
from softclip_cli.data.generated.captions import PHRASES
from softclip_cli.data.generated.noise import SHARES
from softclip_cli.data.generated.samples import SHIFT_SPLITS, Place, Plan, make_samples
from softclip_cli.data.generated.vocabulary import CLASS_NAMES, COLOUR_NAMES, KIND_NAMES
from softclip_cli.data.ordered_map import ordered_map
from softclip_cli.errors import HostError, UsageError
from softclip_cli.resources import usable_cores

if TYPE_CHECKING:
    import datasets

VERSION = 1  # of what is drawn and written; to be raised whenever the same seed no longer gives the same bytes
FEWEST_PAIRS, MOST_PAIRS = 10, 10_000_000
SMALLEST_IMAGE, LARGEST_IMAGE = 32, 512
MOST_PER_CLASS = 64
CHUNK = 64  # samples a task: a tenth of a second's work
WORTH_WORKERS = 2 * 1024  # below this many images, starting worker processes takes longer than drawing


def generate_corpus(
    out: Path,
    *,
    pairs: int,
    noise: float,
    seed: int,
    image_size: int = 64,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    per_class: int = 16,
) -> Corpus:
    """Draw a corpus of simple scenes with captions, noise of known truth and labelled evaluation splits.

    The same arguments give the same bytes, whatever the number of workers. docs/generated.md describes the splits.

    Args:
        out: the folder to make; it appears when it is whole, or not at all.
        pairs: images of the split `train`, each with five captions.
        noise: share of `train`'s pairs whose captions are mismatched, vague or partial.
        seed: of all randomness, at least 0.
        image_size: side of the pictures in pixels.
        workers: processes that draw; None: as many as there are cores, or none for a small corpus.
        overwrite: replace an existing corpus.
        progress: called with (images done, images in all).
        per_class: pictures of each kind × colour in `test`; the other evaluation splits follow. Fewer for a trial.

    Raises:
        UsageError: a value out of range; names all of them.
        DataError: `out` exists and may not be replaced.
        HostError: the folder cannot be written, or a worker process died.
    """
    _check(pairs=pairs, noise=noise, seed=seed, image_size=image_size, workers=workers, per_class=per_class)
    plan = Plan(pairs=pairs, noise=float(noise), seed=seed, image_size=image_size, per_class=per_class)
    total = sum(plan.sizes.values())
    try:
        with CorpusWriter(out, overwrite=overwrite) as writer:
            writer.info.update(describe(plan))
            if workers is None:
                workers = usable_cores() if total >= WORTH_WORKERS else 1
            samples = _drawn(plan, workers)
            done = 0
            try:
                for name, rows in plan.sizes.items():
                    with writer.split(name, features_of(name)) as split:
                        for _ in range(rows):
                            split.write(next(samples)[1])
                            done += 1
                            if progress is not None and (done % CHUNK == 0 or done == total):
                                progress(done, total)
            finally:
                samples.close()  # ends the workers before the writer tidies up
    except OSError as error:
        raise HostError(
            f"cannot write {out}",
            error.strerror or str(error),
            "check the folder's permissions and the space on its disk",
        ) from error
    return Corpus.open(out)


def features_of(split: str) -> datasets.Features:
    """The columns of a split (docs/generated.md lists them)."""
    import datasets

    text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
    truth = {"scene": text, "caption_facts": texts}
    if split == "composition":
        return features_for(extra={"hard_negatives": texts, "negative_facts": texts, "edit": text, **truth})
    if split in ("train", "val"):
        return features_for(extra={"noise": text, "source_key": text, **truth})
    labels = {
        "label_kind": datasets.ClassLabel(names=list(KIND_NAMES)),
        "label_colour": datasets.ClassLabel(names=list(COLOUR_NAMES)),
    }
    return features_for(class_names=list(CLASS_NAMES), extra={**labels, "source_key": text, **truth})


def describe(plan: Plan) -> dict[str, Any]:
    """What corpus.json tells of the generator, the classes, the prompts, the noise, and what each split is for."""
    labels = {"kind-colour": "label", "kind": "label_kind", "colour": "label_colour"}
    prompts = PHRASES["prompts"]
    zeroshot: dict[str, dict[str, Any]] = {
        classes: {"split": "test", "label": label, "classes": classes} for classes, label in labels.items()
    }
    # A colour is no noun: "a picture of one red" would be wrong where "a picture of one red shape" is meant.
    zeroshot["colour"]["prompts"] = prompts["colour"]
    return {
        "generator": {
            "name": "softclip drawn scenes",
            "version": VERSION,
            "seed": plan.seed,
            "pairs": plan.pairs,
            "noise": plan.noise,
            "noise_shares": SHARES,
            "image_size": plan.image_size,
            "per_class": plan.per_class,
        },
        "classes": {"kind-colour": list(CLASS_NAMES), "kind": list(KIND_NAMES), "colour": list(COLOUR_NAMES)},
        "prompts": prompts["general"],
        "noise": plan.noise_plan.counts(),
        "tasks": {
            "zeroshot": zeroshot,
            "probe": {
                classes: {"train": "probe", "test": "test", "label": label, "classes": classes}
                for classes, label in labels.items()
            },
            "retrieval": {"test": {"split": "test"}},
            "shift": {
                style: {"split": split, "label": "label", "classes": "kind-colour"}
                for split, style in SHIFT_SPLITS.items()
            },
            "composition": {"split": "composition"},
        },
    }


def _check(*, pairs: int, noise: float, seed: int, image_size: int, workers: int | None, per_class: int) -> None:
    problems = []
    if not FEWEST_PAIRS <= pairs <= MOST_PAIRS:
        problems.append(f"--pairs {pairs}: from {FEWEST_PAIRS} to {MOST_PAIRS:,}")
    if not (math.isfinite(noise) and 0 <= noise <= 1):
        problems.append(f"--noise {noise}: a share, from 0 to 1")
    if seed < 0:
        problems.append(f"--seed {seed}: 0 or more")
    if not SMALLEST_IMAGE <= image_size <= LARGEST_IMAGE:
        problems.append(f"--image-size {image_size}: from {SMALLEST_IMAGE} to {LARGEST_IMAGE} pixels")
    if workers is not None and workers < 1:
        problems.append(f"--workers {workers}: 1 or more")
    if not 1 <= per_class <= MOST_PER_CLASS:
        problems.append(f"per_class {per_class}: from 1 to {MOST_PER_CLASS}")
    if problems:
        what = "a value is out of range" if len(problems) == 1 else f"{len(problems)} values are out of range"
        raise UsageError(what, "\n       ".join(problems), "softclip data generate --help explains each option")


def _places(plan: Plan) -> Iterator[list[Place]]:
    """Every sample of every split in writing order, in chunks."""
    for split, rows in plan.sizes.items():
        for start in range(0, rows, CHUNK):
            yield [(split, index) for index in range(start, min(start + CHUNK, rows))]


def _drawn(plan: Plan, workers: int) -> Generator[tuple[Place, Record], None, None]:
    """All samples in order; closing it ends the worker processes."""
    yield from ordered_map(functools.partial(make_samples, plan), _places(plan), workers, _crashed)


def _crashed(place: Place) -> Record:
    raise HostError(
        f"a worker process died while drawing image {place[1]} of split {place[0]}",
        "it was killed, perhaps for want of memory",
        "try again with --workers 1",
    )
