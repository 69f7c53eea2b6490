"""An audit from end to end: features, evidence, odds, missed positives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from softclip_cli import __version__, runs
from softclip_cli.audit.evidence import Competition, Neighbours, Pairs, Siblings, made_mismatches, pairs_of
from softclip_cli.audit.missed import Fits, Found
from softclip_cli.audit.odds import Odds, mismatch_odds, revised
from softclip_cli.audit.planted import planted_evidence
from softclip_cli.audit.records import run_records
from softclip_cli.config import build
from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import DataError, ModelError, UsageError
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.evaluation.result import run_folder
from softclip_cli.model import Model
from softclip_cli.registry import parse_reference
from softclip_cli.training.features import FeatureStore, trunk_features
from softclip_cli.training.projections import projection_state
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.student import build_model

MADE = 30_000  # random pairs wanted at least, to compare with
LEAST_IMAGES = 100
PASSES = 3  # over the agreement of an image's captions
CHUNK = 4096

Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True)
class AuditOptions:
    """How to audit.

    Attributes:
        split: of the corpus.
        seed: of the random pairs and the trainings.
        epochs, batch_size: of each training.
        missed: how many missed positives are looked for.
        worst: for how many of the worst pairs a better caption is looked for.
        embed: how to embed.
    """

    split: str = "train"
    seed: int = 0
    epochs: float = 12.0
    batch_size: int = 256
    missed: int = 1000
    worst: int = 1000
    embed: EmbedOptions = field(default_factory=EmbedOptions)


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found.

    Attributes:
        keys: of the images, in the corpus's order.
        captions: all of them, in the corpus's order.
        owner: int64 (M,), the image of each caption.
        number: int64 (M,), which of its image's captions it is, from 0.
        evidence: float32 (M,) each.
        odds: by caption.
        order: int64 (M,): the captions, the one that is most probably mismatched first.
        missed: captions of other images that fit.
        missed_beats: float64, for each of them the share of the corpus's own pairs that score lower.
        better: int64, for each of the first of `order` the caption of another image that fits its image best.
        document: the same in numbers, for `audit.json`.
    """

    keys: list[str]
    captions: list[str]
    owner: np.ndarray
    number: np.ndarray
    evidence: dict[str, np.ndarray]
    odds: Odds
    order: np.ndarray
    missed: Found
    missed_beats: np.ndarray
    better: np.ndarray
    document: dict[str, Any]

    def worst(self, share: float) -> np.ndarray:
        """bool (M,): this share of the captions, those most probably mismatched."""
        marked = np.zeros(len(self.owner), bool)
        marked[self.order[: round(share * len(self.owner))]] = True
        return marked


def audit(
    corpus: Corpus,
    model: Model,
    options: AuditOptions | None = None,
    *,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Audit:
    """Find the pairs of a corpus that are probably mismatched, and pairs that it misses.

    Where both towers are frozen and pretrained elsewhere (a pair `timm:…+hf:…`, or a run that locked both), projections are
    trained here, and what they say of each pair is collected over their training. Any other model judges as it is.

    Args:
        corpus: prepared.
        model: a trained model or a pair of towers, as `registry.open_model` gives it.
        options: how.
        progress: called with (what, done, in all).
        note: told of what was decided, in lines for people.

    Raises:
        UsageError: an untrained model.
        DataError: no such split, too few images, or images without captions only.
    """
    began, options = time.monotonic(), options or AuditOptions()
    report, say = progress or (lambda what, done, total: None), note or (lambda text: None)
    data = corpus.split(options.split)
    place = run_folder(model.reference)
    run = None if place is None else runs.Run(place)
    pair = frozen_pair(model.reference, run)
    if parse_reference(model.reference).kind == "architecture" and not parse_reference(model.reference).weights:
        raise UsageError(
            f"{model.reference} is untrained",
            "an untrained model cannot tell which pairs match",
            "name a run, published weights, or a pair of pretrained towers: --model timm:NAME+hf:NAME",
        )
    if len(data) < LEAST_IMAGES:
        raise DataError(
            f"split {options.split!r} of {corpus.path} has {len(data):,} images",
            f"an audit compares pairs with each other, and needs at least {LEAST_IMAGES}",
            "audit another split: --split NAME",
        )
    captions = data["captions"][:]
    first = np.cumsum([0, *(len(several) for several in captions)])
    if first[-1] == 0:
        raise DataError(f"split {options.split!r} of {corpus.path} has no captions", hint="there is nothing to audit")
    texts = [text for several in captions for text in several]
    owner = np.repeat(np.arange(len(data)), np.diff(first))
    # So that a small corpus has two steps an epoch.
    chosen = replace(options, batch_size=min(options.batch_size, len(data) // 2))
    settings = head_settings(pair or model.reference, chosen)
    judge = build_model(settings, model.device) if pair else model
    fingerprint = judge.fingerprint()  # before projections are trained
    store = trunk_features(judge, corpus, options.split, data, options=options.embed, progress=report)
    own = pairs_of(owner)
    if pair:
        say("both towers are frozen: projections are trained several times, each time among other planted mismatches")
        planted = planted_evidence(judge, projection_state(judge), store, settings, partial(report, "trainings"))
        of_own, made, of_made = dict(planted.own), planted.made, dict(planted.made_evidence)
        image, text, scale = planted.image, planted.text, planted.scale
    else:
        made = made_mismatches(owner, max(1, -(-MADE // len(owner))), np.random.default_rng(options.seed))
        image, text = projected(model, store)
        scale = float(model.logit_scale.detach())
        of_own, of_made = Competition(len(image), len(text), options.seed)(image, text, scale, own, made)
    odds = judged(of_own, of_made, own, made, store, options.seed)
    names = list(of_own)
    records = _records(run, corpus, options.split, first, say)
    if records:
        odds = revised(odds, records["seen_image_to_text"] + records["seen_text_to_image"])
    order = np.argsort(odds.ratio, kind="stable")

    report("missed positives", 0, 1)
    said = F.normalize(store.text, dim=-1)
    fits = Fits(image, text, scale, owner, options.seed)
    own_scores = np.sort(fits.own())
    least = float(np.median(own_scores))
    missed = fits.missed(store.group.numpy(), texts, said, options.missed, least)
    beats = np.searchsorted(own_scores, missed.score) / max(1, len(own_scores))
    better = fits.preferred(owner[order[: options.worst]])
    evidence = {**of_own, **records}
    expected = float(odds.share * len(owner))
    document = {
        "format": 1,
        "task": "audit",
        "corpus": {
            "path": str(corpus.path),
            "fingerprint": corpus.fingerprint,
            "split": options.split,
            "images": len(data),
            "captions": len(texts),
        },
        "model": {"reference": model.reference, "name": model.name, "fingerprint": fingerprint},
        "protocol": {
            "judged_by": "projections trained among planted mismatches" if pair else "the model as it is",
            "evidence": names,
            "random_pairs": len(made),
            "seed": options.seed,
            **({"epochs": options.epochs, "objective": settings.objective.name} if pair else {}),
            **options.embed.protocol(),
        },
        "mismatched": {
            "share": odds.share,
            "captions": round(expected),
            "over_half": int((odds.mismatched > 0.5).sum()),
        },
        "missed": {"found": len(missed.image), "least": least},
        "training_records": bool(records),
        "versions": {"softclip": __version__, "torch": torch.__version__},
        "seconds": round(time.monotonic() - began, 1),
    }
    number = np.arange(len(owner)) - first[owner]
    return Audit(data["key"][:], texts, owner, number, evidence, odds, order, missed, beats, better, document)


def frozen_pair(reference: str, run: runs.Run | None) -> str:
    """The pair of towers whose features can be taken as they are, since nothing was trained in them here; else empty."""
    if parse_reference(reference).kind == "pair":
        return reference
    chosen = run.config.get("model", {}) if run is not None else {}
    theirs = str(chosen.get("reference", ""))
    frozen = set(chosen.get("lock", ())) == {"image", "text"}
    return theirs if frozen and theirs and parse_reference(theirs).kind == "pair" else ""


def head_settings(reference: str, options: AuditOptions) -> TrainSettings:
    """The settings of the projections that are trained here."""
    return build(
        TrainSettings,
        {"model": {"reference": reference, "lock": "image,text"}, "data": {"batch_size": options.batch_size}},
        {"objective": {"name": "clip"}, "schedule": {"seed": options.seed, "epochs": options.epochs}},
    )


def projected(model: Model, store: FeatureStore) -> tuple[Tensor, Tensor]:
    """All images and captions through a model's own projections, L2-normalised, on the CPU."""
    model.net.eval()
    with torch.no_grad():
        image = torch.cat([model.image_head(part.to(model.device)).float().cpu() for part in store.image.split(CHUNK)])
        text = torch.cat([model.text_head(part.to(model.device)).float().cpu() for part in store.text.split(CHUNK)])
    broken = ~(torch.isfinite(image).all() & torch.isfinite(text).all())
    if bool(broken):
        raise ModelError(f"model {model.name} gives embeddings that are no numbers", hint="try an earlier checkpoint")
    return image, text


def judged(
    of_own: dict[str, np.ndarray],
    of_made: dict[str, np.ndarray],
    own: Pairs,
    made: Pairs,
    store: FeatureStore,
    seed: int = 0,
    *,
    neighbours: bool = True,
    siblings: bool = True,
) -> Odds:
    """Add the evidence of features that no training here has shaped, and tell the corpus's pairs from random ones.

    Where images have several captions, that is done a few times: an image's other captions count as far as they are trusted
    themselves.

    Args:
        of_own, of_made: what is known of both kinds of pairs; added to.
        own, made: the pairs.
        store: the features.
        seed: decides who the neighbours are in a large corpus.
        neighbours, siblings: whether to add this evidence.
    """
    if neighbours:
        around = Neighbours(store.image, store.text, own.image, seed)
        of_own.update(around(own))
        of_made.update(around(made))
    several = siblings and bool(np.bincount(own.image).max() > 1)
    trust, odds = np.ones(len(own), np.float32), None
    for _ in range(PASSES if several else 1):
        if several:
            beside = Siblings(store.text, own.image, trust)
            of_own["siblings"], of_made["siblings"] = beside(own), beside(made)
        table, table_made = (np.stack(list(values.values()), axis=1) for values in (of_own, of_made))
        odds = mismatch_odds(table, table_made, own.image, made.image)
        trust = (1 - odds.mismatched).astype(np.float32)
    assert odds is not None
    return odds


def _records(run: runs.Run | None, corpus: Corpus, split: str, first: np.ndarray, say: Note) -> dict[str, np.ndarray]:
    if run is None:
        return {}
    theirs, chosen = run.data.get("fingerprint"), run.config.get("data", {})
    altered = (
        chosen.get("share", 1) != 1 or chosen.get("mismatched", 0) != 0
    )  # then rows and captions are not the corpus's
    if theirs != corpus.fingerprint or run.data.get("split", split) != split or altered:
        say(
            f"run {run.name} was trained on other data than this: what it kept of its pairs while it trained is left out"
        )
        return {}
    found = run_records(run.path, first)
    if not found:
        say(f"run {run.name} kept no records of its pairs: train with --set log.alignments=true for them")
    return found
