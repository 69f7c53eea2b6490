"""A smoke run: any settings for two steps on generated data with random towers, without a download and leaving nothing behind.

Objective, optimiser, schedule, augmentation, projections and precision stay as they are; towers are made from their architecture alone.
A Hugging Face text tower's architecture is known only after a download, so a small one of the same kind stands in for it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softclip_cli.config import build, merge_into
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.registry import parse_reference
from softclip_cli.runs import Run
from softclip_cli.training.distributed import joined
from softclip_cli.training.settings import ModelSettings, TrainSettings
from softclip_cli.training.start import Plan, prepare
from softclip_cli.training.trainer import Report, unheard

STEPS = 2
PAIRS = 4  # of a step, on each process: enough for every objective, and a large tower takes a second
CORPUS_PAIRS, EVALUATED = 32, 8
TEXT_LAYERS, TEXT_WIDTH, VOCABULARY = 2, 128, 1000
DEFAULT_KIND = "bert"


@dataclass(frozen=True)
class Replaced:
    """One setting that the smoke run changed."""

    setting: str
    was: str
    now: str
    why: str


@dataclass
class SmokeResult:
    """What a smoke run found.

    Attributes:
        replaced: what was changed, and why.
        steps: the metrics of each step.
        evaluations: the last metrics of each evaluation.
        seconds: all in all.
    """

    replaced: list[Replaced]
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


def smoke(
    settings: TrainSettings, report: Report, *, text_kind: str = "", command: tuple[str, ...] = ()
) -> SmokeResult:
    """Run settings for two steps in a temporary folder, which is removed afterwards: data, run and checkpoint.

    Args:
        settings: what is to be tried.
        report: as for `train`.
        text_kind: `model_type` of a Hugging Face text tower that is not on this machine; a recipe says it.
        command: the command line, for the record.

    Raises:
        SoftclipError: as `train` does; the settings cannot be trained with.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="softclip-smoke-") as name, joined(settings.device) as world:
        report = report if world.first else unheard
        folder = Path(name)
        made, replaced = smoke_settings(settings, folder, text_kind=text_kind, processes=world.size)
        for item in replaced:
            report("note", {"text": f"smoke: {item.setting} {item.was} → {item.now} ({item.why})"})
        trainer = prepare(Plan(made, folder / "run", "never", command, keep_features=False), world, report)
        trainer.run()
        result = SmokeResult(replaced)
        if world.first:
            run = Run(trainer.folder.path)
            result.steps = run.training
            result.evaluations = {name: lines[-1] for name, lines in run.evaluations.items()}
    result.seconds = round(time.perf_counter() - began, 2)
    return result


def smoke_settings(
    settings: TrainSettings, folder: Path, *, text_kind: str = "", processes: int = 1
) -> tuple[TrainSettings, list[Replaced]]:
    """The settings with small sizes, generated data and random towers, and what was changed.

    Args:
        settings: what is to be tried.
        folder: where the corpus and a text tower are written.
        text_kind: see `smoke`.
        processes: that share a step.
    """
    replaced: list[Replaced] = []
    over: dict[str, Any] = {}

    def change(section: str, key: str, value: Any, why: str, *, was: str = "", now: str = "") -> None:
        old = getattr(getattr(settings, section), key)
        if value != old:
            over.setdefault(section, {})[key] = value
            replaced.append(Replaced(f"{section}.{key}", was or f"{old}", now or f"{value}", why))

    size = min(settings.data.batch_size, PAIRS * processes)
    pairs = max(CORPUS_PAIRS, size)
    corpus = generate_corpus(folder / "corpus", pairs=pairs, noise=settings.data.generated_noise, seed=0, per_class=1)
    was = settings.data.corpus or "the generated corpus"
    change("data", "corpus", str(corpus.path), "a smoke run needs no data", was=was, now=f"{pairs} generated pairs")
    change("data", "split", "train", "the generated corpus's")
    change("data", "limit", 0, "the corpus is small")
    change("data", "workers", settings.data.workers or 0, "to start at once", was="chosen")
    change("data", "batch_size", size, "to be quick")
    if 0 < settings.data.micro_batch < settings.data.batch_size:
        change("data", "micro_batch", max(1, size // processes // 2), "to be quick")
    else:
        change("data", "micro_batch", 0, "as large as the batch")
    length = f"{settings.schedule.steps} steps" if settings.schedule.steps else f"{settings.schedule.epochs:g} epochs"
    change("schedule", "steps", STEPS, "to be quick", was=length, now=f"{STEPS} steps")
    change("log", "every", 1, "to see both steps")
    change("checkpoint", "every", 0, "once, at the end")
    change("eval", "every", STEPS, "once, at the end")
    change("eval", "split", "val", "the generated corpus's")
    change("eval", "limit", min(settings.eval.limit, EVALUATED), "to be quick")

    captions = [text for several in corpus.split("train")["captions"][:] for text in several]
    towers = RandomTowers(folder, settings.model, captions, text_kind)
    for section, key in (("model", "reference"), ("objective", "teacher_model")):
        old = getattr(getattr(settings, section), key)
        if old:
            new, shown = towers.reference(old)
            change(section, key, new, "random weights: nothing is downloaded", now=shown)
    merged = merge_into(settings.model_dump(mode="json", exclude_none=True), over)
    return build(TrainSettings, merged), replaced


@dataclass
class RandomTowers:
    """Model references whose weights would have to be fetched, turned into ones of the same architecture with random weights.

    Attributes:
        folder: where a text tower is written.
        model: projections and sizes of a pair.
        captions: the tokenizer of such a text tower is made from them.
        text_kind: its kind, where that is known.
    """

    folder: Path
    model: ModelSettings
    captions: list[str]
    text_kind: str = ""

    def reference(self, text: str) -> tuple[str, str]:
        """The reference to use, and how to say it to a person; a folder or run that is here already stays as it is."""
        parsed = parse_reference(text)
        if parsed.kind == "architecture":
            return parsed.name, parsed.name
        if parsed.kind == "hub":
            return "tiny", "tiny (its architecture is known only after a download)"
        if parsed.kind != "pair":
            return text, text
        image = f"timm:{parsed.name}@random"
        if parsed.text.startswith("pip:") or Path(parsed.text).expanduser().is_dir():
            made = f"{image}+hf:{parsed.text}@random"
            return made, made
        kind = self.text_kind or DEFAULT_KIND
        tower = self.folder / f"text-{kind}"
        width = self.model.embed_dim if self.model.text_projection == "none" else TEXT_WIDTH
        if not tower.is_dir():
            write_text_tower(tower, kind, width, self.model.context_length, self.captions)
        assumed = "" if self.text_kind else ", a guess"
        return f"{image}+hf:{tower}@random", f"{image}+hf:({kind}{assumed}, {TEXT_LAYERS} layers of {width})"


def write_text_tower(folder: Path, kind: str, width: int, context_length: int, captions: Iterable[str]) -> None:
    """Write the configuration of a small text tower and a WordPiece tokenizer of the captions' own words: no weights.

    Args:
        folder: is made.
        kind: `model_type` of a BERT-like encoder.
        width: of its features.
        context_length: longest text in tokens.
        captions: what the tokenizer is made from.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    names = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()}
    )
    wrapped.save_pretrained(str(folder))
    AutoConfig.for_model(
        kind,
        vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=next(heads for heads in (12, 8, 4, 2, 1) if width % heads == 0),
        max_position_embeddings=context_length + 2,  # a RoBERTa counts from behind its padding's index
    ).save_pretrained(str(folder))
