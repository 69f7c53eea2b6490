"""What is known of tasks and metrics: how they are called, in which unit they are shown, which way is better."""

from __future__ import annotations

import re
from collections.abc import Sequence

TASKS = {
    "zeroshot": "Zero-shot classification",
    "shift": "Zero-shot under distribution shift",
    "robustness": "Robustness to natural shifts",
    "corruption": "Robustness to common corruptions",
    "probe": "Linear probe",
    "retrieval": "Retrieval",
    "composition": "Composition",
    "alignment": "Agreement with human ratings",
}
# name → (label, unit, whether higher is better; None: neither). What is not listed is a share of hits where its
# values lie in [0, 1].
METRICS: dict[str, tuple[str, str, bool | None]] = {
    "top1": ("top-1", "%", True),
    "top5": ("top-5", "%", True),
    "accuracy": ("accuracy", "%", True),
    "mean_per_class": ("mean per class", "%", True),
    "map11": ("mAP (11 points)", "%", True),
    "rsum": ("rsum", "points", True),
    "kendall_tau": ("Kendall τ", "", True),
    "spearman": ("Spearman ρ", "", True),
    "auroc": ("AUROC", "", True),
    "average_precision": ("average precision", "", True),
    "image_to_text_median_rank": ("image → text median rank", "", False),
    "text_to_image_median_rank": ("text → image median rank", "", False),
    "median_rank": ("median rank", "", False),
    "mean_rank": ("mean rank", "", False),
    "ece": ("calibration error", "%", False),
    "loss": ("loss", "", False),
    # A weak model loses little: a drop is told, not judged.
    "drop": ("drop against no shift", "%", None),
    "relative_drop": ("relative drop", "%", None),
    "reference_top1": ("top-1 without the shift", "%", True),
    "effective_robustness": ("effective robustness", "points", True),
    "relative_robustness": ("relative robustness", "points", True),
    "clean_top1": ("top-1 without corruption", "%", True),
    "relative_top1": ("top-1 as a share of that without corruption", "%", None),
    "text_score": ("text score", "%", True),
    "image_score": ("image score", "%", True),
    "group_score": ("group score", "%", True),
}
# What stands for an evaluation where not all of its metrics can be shown.
MAIN = ("top1", "map11", "accuracy", "group_score", "rsum", "kendall_tau")
VARIANTS = {
    "single_prompt_": "single prompt",
    "target_image_to_text_": "soft target image → text",
    "target_text_to_image_": "soft target text → image",
    "same_pairs_": "pairs with a target",
}
OUTCOMES = ("reference.top1",)  # stand in a protocol, but are measured, not set
RECALL = re.compile(r"(image_to_text|text_to_image)_r(\d+)")
SHOTS = re.compile(r"(\w+)_shots_(\d+)")
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def metric_facts(metric: str, values: Sequence[float], said: str = "") -> tuple[str, str, bool | None]:
    """What to know about a metric in order to show it.

    Args:
        metric: its name in the documents.
        values: those that will be shown.
        said: the unit that the documents give: `share`, `points`, `rank` or nothing.

    Returns:
        Label, unit (`%`, `points` or empty) and whether higher is better (None: neither).
    """
    for prefix, words in VARIANTS.items():
        if metric.startswith(prefix):
            label, unit, higher = metric_facts(metric.removeprefix(prefix), values, said)
            return f"{label}, {words}", unit, higher
    recall = RECALL.fullmatch(metric)
    shots, hits = SHOTS.fullmatch(metric), re.fullmatch(r"hit(\d+)", metric)
    if shots:
        label, unit, higher = metric_facts(shots[1], values, said)
        return f"{label}, {shots[2]} images a class", unit, higher
    if metric in METRICS:
        label, unit, higher = METRICS[metric]
    elif recall:
        label, unit, higher = f"{DIRECTIONS[recall[1]]} R@{recall[2]}", "%", True
    elif hits:
        label, unit, higher = f"hit@{hits[1]}", "%", True
    else:
        label = (
            metric.replace("image_to_text", "image → text").replace("text_to_image", "text → image").replace("_", " ")
        )
        share = bool(values) and all(0 <= value <= 1 for value in values)
        unit, higher = "%" if share else "", said != "rank"
    return label, {"share": "%", "points": "points", "rank": ""}.get(said, unit), higher
