"""What a run was, as labelled facts: for pages, model cards, `softclip runs show` and `softclip runs diff`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softclip_cli.reports.differences import flatten
from softclip_cli.reports.metrics import metric_facts
from softclip_cli.reports.tables import Document
from softclip_cli.runs import Run

# The metric that stands for an evaluation in one number: the first of these that it has.
HEADLINES = ("rsum", "top1", "accuracy", "mean_per_class", "text_to_image_r1", "image_to_text_r1")
LINE_KEYS = ("step", "eval", "epoch", "samples", "seconds", "time")  # of a metrics line, that are no metrics


@dataclass(frozen=True)
class Fact:
    """One labelled fact of a run, as text; `section` groups them."""

    section: str
    label: str
    value: str


def run_facts(run: Run) -> list[Fact]:
    """What was run, in the order in which one asks: model, data, settings, machine. Unknown facts are left out."""
    state = run.state
    if run.silent_for is not None:
        state = f"{state}, but silent for {duration(run.silent_for)}"
    step, steps = run.status.get("step"), run.status.get("steps")
    progress = f"{step:,} of {steps:,}" if isinstance(step, int) and isinstance(steps, int) and step != steps else None
    pairs = lookup(run, "data.pairs", "data.size", "data.rows", "data.samples")
    facts = [
        ("run", "Objective", run.objective),
        ("run", "Model", run.model),
        ("run", "Teacher", teacher(run)),
        ("run", "State", f"{state}: {run.status['message']}" if run.status.get("message") else state),
        ("run", "Steps", progress or number(step if step is not None else steps)),
        ("run", "Training time", duration(run.status.get("seconds"))),
        ("data", "Corpus", run.corpus),
        ("data", "Training pairs", number(pairs)),
        ("data", "Known noise", noise_text(corpus_facts(run))),
        ("data", "Fingerprint", short_hash(lookup(run, "data.fingerprint"))),
        ("settings", "Batch size", number(effective_batch(run))),
        ("settings", "Seed", text(run.setting("schedule.seed", "seed"))),
        ("settings", "Learning rate", text(run.setting("optimizer.lr"))),
        ("settings", "Precision", precision(run)),
        ("machine", "Device", device(run)),
        ("machine", "Machine", text(machine(run))),
        ("machine", "softclip", text(versions(run).get("softclip"))),
        ("machine", "torch", text(versions(run).get("torch"))),
    ]
    return [Fact(section, label, value) for section, label, value in facts if value]


def teacher(run: Run) -> str:
    """The frozen teacher by its reference, with the beginning of its fingerprint and how it was asked; empty where none."""
    record = run.data.get("teacher")
    if not isinstance(record, Mapping) or not record.get("reference"):
        return ""
    marks = [str(record.get("features") or ""), short_hash(record.get("fingerprint"))]
    return f"{record['reference']} ({', '.join(mark for mark in marks if mark)})"


def facts_side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Facts of several runs as rows: (label, one value a run, whether they differ)."""
    columns = [{fact.label: fact.value for fact in run_facts(run)} for run in runs]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = []
    for label in labels:
        values = [column.get(label, "–") for column in columns]
        rows.append((label, values, len(set(values)) > 1))
    return rows


def lookup(run: Run, *names: str) -> Any:
    """The first value that is there among dotted names such as `config.data.batch_size`, `env.device`, `data.pairs`."""
    sources = {"config": run.config, "env": run.env, "data": run.data, "status": run.status}
    for name in names:
        source, *keys = name.split(".")
        value: Any = sources[source]
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value != "":
            return value
    return None


def effective_batch(run: Run) -> int | None:
    """Pairs that one step of the optimiser sees, over all processes; None where the run does not say.

    The settings say it; for a run without settings, the chance loss does, which is the logarithm of this number.
    """
    from math import exp

    size = run.setting("data.batch_size")
    if isinstance(size, int):
        return size
    for line in reversed(run.training):
        if isinstance(line.get("chance"), int | float):
            return round(exp(line["chance"]))
    return None


def precision(run: Run) -> str:
    """The numeric precision that the run chose, else the one it was asked for; empty where unknown."""
    return text(lookup(run, "env.precision", "config.precision"))


def device(run: Run) -> str:
    """The device that the run trained on; empty where unknown."""
    device, processes = text(lookup(run, "env.device", "config.device")), lookup(run, "env.processes")
    return f"{processes} × {device}" if isinstance(processes, int) and processes > 1 else device


def machine(run: Run) -> str:
    """The processor with its number of cores; empty where unknown."""
    name, cores = text(lookup(run, "env.processor", "env.platform")), lookup(run, "env.cores")
    return f"{name}, {cores} {'core' if cores == 1 else 'cores'}" if name and isinstance(cores, int) else name


def versions(run: Run) -> dict[str, str]:
    """Package name → version."""
    found = run.env.get("versions")
    listed = {str(name): str(version) for name, version in found.items()} if isinstance(found, Mapping) else {}
    python = run.env.get("python")
    return {"python": python, **listed} if isinstance(python, str) else listed


def corpus_facts(run: Run) -> dict[str, Any]:
    """data.json, with what the corpus's own corpus.json adds where that corpus is still in its place, unchanged."""
    import json
    from pathlib import Path

    facts = dict(run.data)
    place = facts.get("corpus")
    if isinstance(place, str):
        try:
            info = json.loads((Path(place) / "corpus.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return facts
        if isinstance(info, dict) and info.get("fingerprint") == facts.get("fingerprint"):
            facts = {**info, **facts}
    return facts


def noise_text(data: Mapping[str, Any]) -> str:
    """What is known of the noise of a corpus, in words; empty where nothing is."""
    noise = data.get("noise")
    if isinstance(noise, Mapping):
        total = sum(value for value in noise.values() if isinstance(value, int | float))
        if total > 1:  # counts of pairs, the clean ones among them
            noise = {kind: value / total for kind, value in noise.items() if isinstance(value, int | float)}
        noise = {kind: value for kind, value in noise.items() if kind not in ("clean", "none")}
        parts = [f"{kind} {share(value)}" for kind, value in noise.items() if isinstance(value, int | float) and value]
        return ", ".join(parts)
    return share(noise) if isinstance(noise, int | float) else text(noise)


def headline(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The one metric of an evaluation line or document that stands for it: (name, value)."""
    numbers: dict[str, float] = {}
    for name, entry in metrics.items():
        value = entry.get("value") if isinstance(entry, Mapping) else entry
        if name not in LINE_KEYS and isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = float(value)
    for name in (*HEADLINES, *numbers):
        if name in numbers:
            return name, numbers[name]
    return None


def best_metric(run: Run) -> tuple[str, float] | None:
    """(name, value) of the metric that chose the best checkpoint; else of the first evaluation that is there."""
    best = run.best
    if isinstance(best.get("value"), int | float):
        return str(best.get("metric", "best")), float(best["value"])
    for evaluation, lines in run.evaluations.items():
        chosen = headline(lines[-1])
        if chosen:
            higher = metric_facts(chosen[0], [chosen[1]])[2]
            values = [float(line[chosen[0]]) for line in lines if isinstance(line.get(chosen[0]), int | float)]
            return f"{evaluation} {chosen[0]}", (min if higher is False else max)(values)
    for document in run.evals:
        chosen = headline(document["metrics"])
        if chosen:
            return f"{dataset_name(document)} {chosen[0]}", chosen[1]
    return None


def dataset_name(document: Document) -> str:
    """The evaluation's dataset, with its split where the name alone does not say it."""
    dataset = document.get("dataset") or {}
    name, split = str(dataset.get("name", "")), str(dataset.get("split") or "")
    return f"{name} ({split})" if split and split not in ("test", name) else name


def display_names(runs: Sequence[Run]) -> list[str]:
    """A short name a run for tables: its objective where that tells all runs apart, else the folder's name."""
    objectives = [run.objective for run in runs]
    if all(objectives) and len(set(objectives)) == len(runs):
        return objectives
    names = [run.name for run in runs]
    if len(set(names)) == len(runs):
        return names
    return [str(run.path) for run in runs]


def environment(run: Run) -> dict[str, str]:
    """Everything in env.json, as flat text."""
    return {name: text(value) for name, value in flatten(run.env).items() if value not in (None, "", {}, [])}


def duration(seconds: Any) -> str:
    """A time span for people: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 days`; empty where it is no number."""
    if not isinstance(seconds, int | float):
        return ""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def ago(seconds: float) -> str:
    """How long something is past, in one unit: `12 s`, `3 min`, `5 h`, `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{int(seconds // size)} {unit}"
    return f"{max(int(seconds), 0)} s"


def number(value: Any) -> str:
    """An integer with thousands separators; other values as they are; None as empty text."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else text(value)


def share(value: Any) -> str:
    """A share in [0, 1] as a percentage; a larger number is a count."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return f"{value * 100:.3g}\N{NO-BREAK SPACE}%"
    return number(value)


def short_hash(value: Any) -> str:
    """The beginning of a fingerprint, enough to tell two apart."""
    return str(value)[:12] if value else ""


def text(value: Any) -> str:
    """A value as short text; None as empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    return str(value)


def without_folders(text: str) -> str:
    """Without the folders of this machine: only the last part of an absolute path stays. What leaves the machine is for others."""
    return re.sub(r"(?<![\w.~-])~?/(?:[^\s/@+:]+/)*(?=[^\s/@+:]+)", "", text)
