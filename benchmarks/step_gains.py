"""What each thing that makes a training step fast is worth: the step without it, in turns with the step as it is.

    python benchmarks/step_gains.py [--quick] [--json FILE] [--models ViT-S-32-alt RN50] [--only NAME ...]
    python benchmarks/step_gains.py --cpu-time --threads 1      # on a machine that others use

The trainer's own step (towers, loss, backward, clipping, optimiser) runs on batches decoded beforehand: drawn scenes with their captions,
`clip`. For each row one thing is taken away or put back to what torch or open_clip do by themselves; the two take turns on the
same batches, each going first every other time, and the median of the ratios of the pairs counts. What is not in the step has its own
benchmark: decoding (data.py), kept memory (allocator.py), the loss at large batches (loss.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import ResidualAttentionBlock
from step_cost import make_trainer, seconds_of, work_folder
from torch import nn

from softclip_cli import blocks, towers
from softclip_cli.allocator import keep_freed_memory
from softclip_cli.data.batches import Batch
from softclip_cli.data.generated.generate import generate_corpus
from softclip_cli.objectives.embeddings import ObjectiveOutput
from softclip_cli.objectives.teacher import EmaTeacher
from softclip_cli.training.run_folder import processor_name
from softclip_cli.training.trainer import Trainer

BATCHES = 3


def change(trainer: Trainer, fast: type, stock: type) -> None:
    """Give modules open_clip's own class back."""
    for module in trainer.encoder.module.modules():
        if type(module) is fast:
            module.__class__ = stock


def without_bf16(trainer: Trainer) -> None:
    trainer.encoder.dtype = torch.float32  # type: ignore[union-attr]


def without_fused_adamw(trainer: Trainer) -> None:
    fused = trainer.stepper.optimizer
    trainer.stepper.optimizer = torch.optim.AdamW(
        [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in fused.param_groups],
        **{name: fused.defaults[name] for name in ("lr", "betas", "eps")},
    )


def without_channels_last(trainer: Trainer) -> None:
    trainer.model.net.to(memory_format=torch.contiguous_format)
    normalise = trainer.model.normalise
    trainer.model.normalise = lambda pixels: normalise(pixels).contiguous()  # type: ignore[method-assign]


def without_pooled_ends(trainer: Trainer) -> None:
    change(trainer, blocks.ClassBlock, ResidualAttentionBlock)
    change(trainer, blocks.AttentionPool, AttentionPool2d)


def without_blocks(trainer: Trainer) -> None:
    without_pooled_ends(trainer)
    change(trainer, blocks.Attention, nn.MultiheadAttention)


def without_one_product(trainer: Trainer) -> None:
    stock = open_clip.ClipLoss()

    def forward(embeddings: Any, taught: Any, scale: Any, progress: Any, **_: Any) -> ObjectiveOutput:
        return ObjectiveOutput(stock(embeddings.image, embeddings.text, scale), {})

    trainer.objective.forward = forward  # type: ignore[method-assign]


def without_foreach_average(trainer: Trainer) -> None:
    @torch.no_grad()
    def update(average: EmaTeacher, model: nn.Module) -> None:
        weight = 1 - average.current_decay()
        average.updates += 1
        for mine, theirs in zip(average.module.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, weight)

    assert trainer.ema is not None
    trainer.ema.update = partial(update, trainer.ema)  # type: ignore[method-assign]


def fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))


@dataclass(frozen=True)
class Gain:
    """One thing.

    Attributes:
        away: takes it away from a trainer, for good.
        around: a context in which the step does without it.
        full_texts: batches carry texts of the full context.
        objective: of both trainers.
    """

    away: Callable[[Trainer], None] = lambda trainer: None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    full_texts: bool = False
    objective: str = "clip"


GAINS = {
    "texts trimmed": Gain(full_texts=True),
    "real tokens alone": Gain(around=lambda: patch("torch.compiler.is_compiling", return_value=True)),
    "bf16": Gain(without_bf16),
    "attention in the open (bf16)": Gain(around=lambda: patch.object(blocks, "attention", fused_attention)),
    "last block at one position": Gain(
        without_pooled_ends, lambda: patch.object(towers, "poolable", lambda block: False)
    ),
    "all of blocks.py": Gain(without_blocks),
    "channels_last": Gain(without_channels_last),
    "fused AdamW": Gain(without_fused_adamw),
    "one N×N product": Gain(without_one_product),
    "moving average by foreach": Gain(without_foreach_average, objective="ema-kd"),
}


def padded(batch: Batch, length: int) -> Batch:
    """The batch with texts of the full context."""
    return replace(batch, text=F.pad(batch.text, (0, length - batch.text.shape[1])))


def measure(gain: Gain, corpus: Path, folder: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Median seconds with and without, and the median ratio of the pairs."""
    trainers = [make_trainer({"name": gain.objective}, corpus, folder / side, options) for side in ("with", "without")]
    batches = list(trainers[0].source(0, BATCHES))
    gain.away(trainers[1])
    length = trainers[0].model.text.context_length
    inputs = [batches, [padded(batch, length) for batch in batches] if gain.full_texts else batches]
    clock = time.process_time if options.cpu_time else time.perf_counter
    pairs = []
    for turn in range(options.repeats + 1):
        found = [0.0, 0.0]
        for side in (0, 1) if turn % 2 else (1, 0):
            with gain.around() if side else nullcontext():
                found[side] = seconds_of(trainers[side], inputs[side][turn % BATCHES], clock)
        if turn:
            pairs.append(found)
    fast, slow = (statistics.median(side) for side in zip(*pairs, strict=True))
    return fast, slow, statistics.median(without / with_ for with_, without in pairs)


def run(options: argparse.Namespace, corpus: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each model and thing."""
    for model in options.models:
        options.model = model
        for number, (name, gain) in enumerate(GAINS.items()):
            if options.only and name not in options.only:
                continue
            fast, slow, ratio = measure(gain, corpus, folder / f"{model}-{number}", options)
            yield {"model": model, "what": name, "seconds": fast, "seconds_without": slow, "ratio": ratio}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many computing threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, few repeats: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--models", nargs="+", help="default ViT-S-32-alt RN50")
    parser.add_argument("--only", nargs="+", choices=list(GAINS), help="these rows")
    parser.add_argument("--batch-size", type=int, help="pairs a step; default 32")
    parser.add_argument("--repeats", type=int, help="turns of each; default 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of a CPU")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds (with --threads 1), for a busy machine")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    options = parser.parse_args()
    options.models = options.models or (["tiny"] if options.quick else ["ViT-S-32-alt", "RN50"])
    options.batch_size = options.batch_size or 32
    options.repeats = options.repeats or (2 if options.quick else 5)
    keep_freed_memory()
    rows = []
    with work_folder() as folder, threads(options.threads):
        corpus = folder / "corpus"
        generate_corpus(corpus, pairs=max(10, BATCHES * options.batch_size), noise=0.3, seed=0, per_class=1)
        print(f"{options.batch_size} pairs a step, {options.device}, {options.precision}, {options.threads} threads")
        print(f"{'model':14} {'what':32} {'with ms':>9} {'without':>9} {'ratio':>7}")
        for row in run(options, corpus, folder):
            rows.append(row)
            numbers = f"{row['seconds'] * 1e3:9,.0f} {row['seconds_without'] * 1e3:9,.0f} {row['ratio']:7.3f}"
            print(f"{row['model']:14} {row['what']:32} {numbers}", flush=True)
    if options.json:
        document = {
            "benchmark": "step_gains",
            "batch_size": options.batch_size,
            "device": torch.cuda.get_device_name() if options.device == "cuda" else processor_name(),
            "threads": options.threads,
            "clock": "CPU seconds" if options.cpu_time else "seconds",
            "versions": {"torch": torch.__version__, "open_clip_torch": open_clip.__version__},
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
