"""The data of a run, as its settings name them: the corpus, its training split, the views of its images, the order of its samples."""

from __future__ import annotations

from functools import partial
from typing import Any

from softclip_cli.data.altered import Alteration, alter, altered_split, caption_counts
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.decode import Augment, Preprocess, ResizeCrop
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.data.sharded.corpus import ShardedCorpus, ShardedSplit, names_shards
from softclip_cli.errors import DataError, UsageError
from softclip_cli.evaluation.cache import default_folder
from softclip_cli.evaluation.find import data_root
from softclip_cli.training.run_folder import Report
from softclip_cli.training.settings import DataSettings, TrainSettings


def show_progress(report: Report, what: str, done: int, total: int) -> None:
    """Report how far something is that takes a while before the first step."""
    report("progress", {"what": what, "done": done, "total": total})


def open_corpus(settings: TrainSettings, report: Report) -> Corpus | ShardedCorpus:
    """The corpus or the shards that the settings name, or the generated corpus, made where it is not there yet."""
    if settings.data.corpus and names_shards(settings.data.corpus):
        shards = ShardedCorpus.open(
            settings.data.corpus, default_folder() / "shards", partial(show_progress, report, "shards indexed")
        )
        for line in shards.notes:
            report("note", {"text": line})
        return shards
    if settings.data.corpus:
        return Corpus.open(settings.data.corpus)
    from softclip_cli.data.generated.generate import generate_corpus

    pairs, noise = settings.data.generated_pairs, settings.data.generated_noise
    out = data_root(None) / f"generated-{pairs}-{noise:g}"
    if (out / "corpus.json").is_file():
        report("note", {"text": f"corpus: {out} (generated earlier)"})
        return Corpus.open(out)
    report("note", {"text": f"corpus: generating {pairs} pairs with {noise:.0%} noise into {out}"})
    return generate_corpus(
        out, pairs=pairs, noise=noise, seed=0, progress=lambda done, total: show_progress(report, "scenes", done, total)
    )


def training_split(corpus: Corpus | ShardedCorpus, settings: TrainSettings) -> Any:
    """The rows to train on.

    Raises:
        DataError: the split is missing, empty, or has images without captions.
    """
    data = corpus.split(settings.data.split)
    if len(data) == 0:
        raise DataError(f"split {settings.data.split!r} of {corpus.path} is empty", hint="prepare the corpus again")
    if settings.data.limit:
        data = data.select(range(min(settings.data.limit, len(data))))
    if isinstance(data, ShardedSplit):
        return data  # what has no caption was left out by the index
    lengths = data.with_format("arrow")["captions"][:]
    empty = sum(1 for captions in lengths if not len(captions))
    if empty:
        raise DataError(
            f"{empty:,} of {len(data):,} images in {corpus.path} have no caption",
            "training needs at least one a picture",
            'make captions from class names: softclip data prepare ... --caption-template "a photo of a {}"',
        )
    return data


def alteration(data: Any, settings: TrainSettings) -> Alteration | None:
    """What the settings change of the split; None where it is trained on as it is.

    Raises:
        UsageError: the data are shards, or too few captions to exchange.
    """
    chosen = settings.data
    if chosen.share == 1 and not chosen.mismatched:
        return None
    return alter(
        caption_counts(data),
        share=chosen.share,
        mismatched=chosen.mismatched,
        drop=chosen.drop_mismatched,
        seed=settings.schedule.seed,
    )


def altered(data: Any, change: Alteration | None) -> Any:
    """The rows that are trained on."""
    return data if change is None else altered_split(data, change)


def training_view(chosen: DataSettings, spec: Preprocess) -> Augment | ResizeCrop | None:
    """The augmentation that the settings ask for; None for the plain evaluation view.

    Raises:
        UsageError: images resized to less than what is cropped from them.
    """
    if chosen.augment == "none":
        return None
    if chosen.augment == "crop":
        return Augment(chosen.crop_scale, flip=chosen.flip)
    resize = chosen.resize or round(spec.size * 8 / 7)
    if resize < spec.size:
        raise UsageError(
            f"data.resize ({resize}) is less than the {spec.size} pixels that the model takes",
            "a crop cannot be larger than the image",
            f"--set data.resize={round(spec.size * 8 / 7)}",
        )
    return ResizeCrop(resize, flip=chosen.flip)


def build_sampler(data: Any, settings: TrainSettings) -> EpochSampler:
    """Which samples a step sees: shuffled freely, or in windows where they are read best in stretches."""
    batch_size, seed = settings.data.batch_size, settings.schedule.seed
    if isinstance(data, ShardedSplit):
        return data.sampler(batch_size, seed, settings.data.shuffle_window << 20)
    return EpochSampler(len(data), batch_size, seed)


def data_facts(corpus: Corpus | ShardedCorpus, settings: TrainSettings, rows: int) -> dict[str, Any]:
    """What data.json says."""
    return {
        "corpus": str(corpus.path),
        "fingerprint": corpus.fingerprint,
        "split": settings.data.split,
        "pairs": rows,
        "splits": corpus.info["splits"],
        **{key: corpus.info[key] for key in ("generator", "noise", "sources") if key in corpus.info},
    }
