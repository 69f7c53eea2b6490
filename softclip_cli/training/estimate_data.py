"""What an estimate needs to know of the data: how much, how long its texts are, how large and how slow to decode its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from softclip_cli.data.decode import Augment, ImageError, open_header
from softclip_cli.data.rates import decode_rate, sample_images
from softclip_cli.data.sampler import generator
from softclip_cli.data.sharded.corpus import ShardedSplit
from softclip_cli.data.text import Tokenize
from softclip_cli.errors import DataError
from softclip_cli.evaluation.find import data_root
from softclip_cli.model import Model
from softclip_cli.training.frozen_teacher import count_captions
from softclip_cli.training.run_data import alteration, altered, open_corpus, training_split
from softclip_cli.training.run_folder import Report
from softclip_cli.training.settings import TrainSettings

TOKENISED = 1024  # captions at most, in whose longest a batch's longest is seen
IMAGES = 64
SECONDS = 0.4


@dataclass(frozen=True)
class DataFacts:
    """The data as an estimate sees it.

    Attributes:
        rows: samples of the split.
        captions: of the split in all.
        text_tokens: length of a batch's texts.
        teacher_tokens: the same by a frozen teacher's tokenizer; 0 where there is none.
        decoded_bytes: of a typical decoded image.
        decode_rate: training views a second on one core; 0: unknown.
        evaluated: images of the evaluation split, within its limit.
        data: the split itself, for a frozen teacher's choice; None where it is not there.
        note: what is assumed where the data is not there yet.
    """

    rows: int
    captions: int
    text_tokens: int
    teacher_tokens: int = 0
    decoded_bytes: int = 0
    decode_rate: float = 0.0
    evaluated: int = 0
    data: Any = None
    note: str = ""


def look_at(settings: TrainSettings, model: Model, teacher: Model | None, timed: bool, report: Report) -> DataFacts:
    """Look at the corpus that the settings name. The generated corpus is not made for it.

    Raises:
        DataError: the corpus cannot be trained on.
    """
    pairs, noise = settings.data.generated_pairs, settings.data.generated_noise
    generated = data_root(None) / f"generated-{pairs}-{noise:g}"
    if not settings.data.corpus and not (generated / "corpus.json").is_file():
        rows = min(settings.data.limit or pairs, pairs)
        note = f"the generated corpus is not there yet: {rows:,} pairs and texts as long as the model takes are assumed"
        read = teacher.text.context_length if teacher is not None else 0
        return DataFacts(
            rows, 5 * rows, model.text.context_length, read, evaluated=min(settings.eval.limit, 500), note=note
        )
    corpus = open_corpus(settings, report)
    data: Any = training_split(corpus, settings)
    data = altered(data, alteration(data, settings))
    count = min(len(data), TOKENISED)
    picked = generator(0, 0).permutation(len(data))[: max(count, 1)].tolist()
    texts = [captions[0] for captions in data.select_columns(["captions"])[picked]["captions"] if len(captions)]
    rows = len(data)
    captions = rows if settings.data.captions == "first" else count_captions(data)
    held = corpus.info["splits"].get(settings.eval.split)
    evaluated = min(settings.eval.limit, int(held["rows"])) if held else 0
    length = _length(texts, model.tokens, settings.data.batch_size)
    read = _length(texts, teacher.tokens, settings.data.batch_size) if teacher is not None else 0
    size, rate = 0, 0.0
    if not isinstance(data, ShardedSplit) and model.locked != {"image", "text"}:
        images = sample_images(data, IMAGES)
        size = _decoded(images)
        if timed and settings.data.augment != "none":
            rate = decode_rate(
                images, model.preprocess, Augment(settings.data.crop_scale, flip=settings.data.flip), SECONDS
            )
    return DataFacts(rows, captions, length, read, size, rate, evaluated, data)


def _length(texts: list[str], tokens: Tokenize, batch_size: int) -> int:
    """How long the texts of a batch are, mean over some batches."""
    size = min(batch_size, len(texts))
    found = [tokens(texts[start : start + size]).shape[1] for start in range(0, len(texts) - size + 1, size)]
    return round(sum(found) / len(found))


def _decoded(images: list[bytes]) -> int:
    """Bytes of a decoded image, mean; scaled decoding makes less of large ones."""
    sizes = []
    for data in images:
        try:
            width, height = open_header(data).size
        except (ImageError, DataError):
            continue
        sizes.append(width * height * 3)
    return sum(sizes) // max(1, len(sizes))
