"""Run folders, evaluation documents and pictures as training and evaluation write them, made without either."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import tomli_w
from PIL import Image, ImageDraw

from softclip_cli.runs import Run

COLOURS = {"red": "#c8322b", "blue": "#2b62c8", "green": "#2f9a4a", "yellow": "#e0b52a"}
KINDS = ("circle", "square", "star", "ring")


def wilson(share: float, n: int) -> tuple[float, float]:
    """The Wilson interval of a share of n."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def metric(share: float, n: int = 1000) -> dict[str, Any]:
    """A metric with its interval, as in an evaluation document."""
    low, high = wilson(share, n)
    return {"value": share, "low": low, "high": high, "n": n, "unit": "share", "interval": "Wilson 95 %"}


def document(task: str, dataset: str, metrics: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """An evaluation document."""
    return {
        "format": 1,
        "task": task,
        "dataset": {"name": dataset, "split": "test", "size": 1000, "fingerprint": "d" * 64, **parts.pop("data", {})},
        "protocol": {"prompts": 7, "normalise": True, **parts.pop("protocol", {})},
        "model": {"reference": "run:x", "name": "x", "fingerprint": "f" * 64},
        "metrics": metrics,
        "details": parts.pop("details", {}),
        "versions": {"softclip": "0.1.0", "torch": "2.14.0"},
        "seconds": 1.5,
        **parts,
    }


def evaluations(skill: float) -> list[dict[str, Any]]:
    """Documents of every task; `skill` in [0, 1] moves all of them."""
    kinds = {kind: min(0.2 + 0.8 * skill * (0.8 + 0.1 * place), 1.0) for place, kind in enumerate(KINDS)}
    per_kind = [{"class": kind, "n": 250, "accuracy": share} for kind, share in kinds.items()]
    recalls = {
        f"{direction}_r{k}": metric(min(0.3 * skill * k**0.5 + offset, 0.99))
        for direction, offset in (("image_to_text", 0.03), ("text_to_image", 0.0))
        for k in (1, 5, 10)
    }
    rsum = 100 * sum(recall["value"] for recall in recalls.values())
    return [
        document(
            "zeroshot",
            "generated:kind-colour",
            {
                "top1": metric(0.8 * skill),
                "top5": metric(0.4 + 0.55 * skill),
                "single_prompt_top1": metric(0.7 * skill),
            },
            details={"chance": 1 / 64},
        ),
        document(
            "zeroshot",
            "generated:kind",
            {"top1": metric(0.9 * skill)},
            details={"chance": 0.25, "per_class": per_kind},
        ),
        *(
            document(
                "shift",
                f"generated:{shift}",
                {"top1": metric(0.9 * skill * keeps), "drop": metric(0.9 * skill * (1 - keeps))},
                data={"split": f"shift_{shift}"},
                protocol={"reference": {"name": "generated:kind", "split": "test", "top1": 0.9 * skill}},
                details={"chance": 0.25, "per_class": per_kind},
            )
            for shift, keeps in (
                ("outline", 0.4),
                ("recoloured", 0.9),
                ("textured", 0.7),
                ("blur", 0.8),
                ("pixelated", 0.6),
            )
        ),
        document("probe", "generated:kind", {"accuracy": metric(0.5 + 0.4 * skill)}),
        document(
            "retrieval", "generated", {**recalls, "rsum": {"value": rsum, "low": rsum - 9, "high": rsum + 9, "n": 1000}}
        ),
        document("composition", "generated:swapped", {"accuracy": metric(0.5 + 0.1 * skill)}),
    ]


def make_run(
    folder: Path,
    name: str,
    *,
    objective: str = "psd",
    skill: float = 0.6,
    state: str = "finished",
    steps: int = 400,
    seed: int = 0,
    updated: str = "2026-11-22T20:19:10+00:00",
    checkpoints: tuple[int, ...] = (200, 400),
    **settings: Any,
) -> Run:
    """A whole run folder; `settings` are dotted names with `__` for the dot, such as `data__batch_size=64`."""
    path = folder / name
    (path / "evals").mkdir(parents=True)
    config: dict[str, Any] = {
        "model": {"reference": "tiny", "lock": []},
        "data": {"corpus": "data/generated", "batch_size": 128},
        "objective": {"name": objective},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"steps": steps, "seed": seed},
        "device": "auto",
        "precision": "auto",
    }
    for dotted, value in settings.items():
        section, _, key = dotted.partition("__")
        config[section][key] = value
    (path / "config.toml").write_text(tomli_w.dumps(config))
    write(path / "env.json", ENVIRONMENT)
    write(path / "data.json", DATA)
    step = steps if state == "finished" else steps // 2
    status = {"state": state, "step": step, "steps": steps, "started": "2026-11-22T20:15:00+00:00", "updated": updated}
    write(path / "status.json", {**status, "seconds": 250.4, "message": ""})
    write_metrics(path, config["data"]["batch_size"], step, skill, seed)
    for one in evaluations(skill):
        write(path / "evals" / f"{one['task']}-{one['dataset']['name'].replace(':', '-')}.json", one)
    for at in checkpoints:
        (path / "checkpoints" / f"step-{at:08d}").mkdir(parents=True)
        (path / "checkpoints" / f"step-{at:08d}" / "model.safetensors").write_bytes(b"weights")
    if checkpoints:
        write(path / "checkpoints" / "last.json", {"step": checkpoints[-1]})
        write(path / "checkpoints" / "best.json", {"step": checkpoints[0], "metric": "rsum", "value": 200 * skill})
    return Run(path)


ENVIRONMENT = {
    "python": "3.11.9",
    "platform": "Linux-6.1",
    "processor": "A Processor",
    "cores": 2,
    "device": "cpu",
    "precision": "bf16",
    "processes": 1,
    "versions": {"softclip": "0.1.0", "torch": "2.14.0", "open_clip_torch": "3.3.0"},
    "command": ["softclip", "train"],
}
DATA = {
    "corpus": "data/generated",
    "split": "train",
    "pairs": 10_000,
    "fingerprint": "0123456789abcdef" * 4,
    "noise": {"mismatched": 0.15, "vague": 0.1, "partial": 0.05},
}


def write_metrics(path: Path, batch: int, steps: int, skill: float, seed: int) -> None:
    """metrics.jsonl: a falling loss with its diagnostics, and an evaluation every quarter of the run."""
    chance, random_numbers = math.log(batch), random.Random(seed)
    with (path / "metrics.jsonl").open("w") as stream:
        for step in range(10, steps + 1, 10):
            done = step / steps
            loss = chance * (1 - 0.7 * skill * (1 - math.exp(-4 * done))) + random_numbers.gauss(0, 0.06)
            line = {"step": step, "epoch": done * 3, "samples": step * batch, "loss": loss, "lr": 1e-3 * (1 - done)}
            line |= {"logit_scale": 14.3 + 9 * done, "chance": chance, "samples_per_second": 812.0, "data_wait": 0.02}
            stream.write(json.dumps({**line, "soft_share": done, "target_entropy": 0.4 * done}) + "\n")
            if step % (steps // 4 // 10 * 10) == 0:
                values = {"top1": 0.8 * skill * done**0.5, "top5": 0.9 * done**0.3}
                stream.write(json.dumps({"step": step, "eval": "generated:kind-colour", **values}) + "\n")
                recalls = {"image_to_text_r1": 0.35 * skill * done, "text_to_image_r1": 0.3 * skill * done}
                recalls["rsum"] = 220 * skill * done**0.5
                stream.write(json.dumps({"step": step, "eval": "val", **recalls}) + "\n")


def write(path: Path, content: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(content))


def drawing(kind: str, colour: str, side: int = 96, form: str = "PNG") -> bytes:
    """A drawn shape as an encoded image."""
    image = Image.new("RGB", (side, side), "#f3efe6")
    pen, box = ImageDraw.Draw(image), (side * 0.2, side * 0.2, side * 0.8, side * 0.8)
    if kind == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif kind == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    elif kind == "ring":
        pen.ellipse(box, outline=COLOURS[colour], width=side // 8)
    else:
        points = [
            (side / 2 + r * side * math.sin(k * math.pi / 5), side / 2 - r * side * math.cos(k * math.pi / 5))
            for k in range(10)
            for r in [0.36 if k % 2 == 0 else 0.15]
        ]
        pen.polygon(points, fill=COLOURS[colour])
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def retrieval_examples(models: tuple[str, ...]) -> list[dict[str, Any]]:
    """Examples in both directions, as plain data."""
    scenes = [(kind, colour) for kind in KINDS for colour in COLOURS]
    examples = []
    for kind, colour in scenes[6:15:4]:
        for place, model in enumerate(models):
            near = [scene for scene in scenes if scene[1] == colour or scene[0] == kind]
            order = [*near[:place], (kind, colour), *near[place + 1 :]]
            results = [
                {
                    "image": drawing(*scene),
                    "caption": f"a {scene[1]} {scene[0]}",
                    "score": 0.41 - 0.03 * at,
                    "correct": at == place,
                }
                for at, scene in enumerate(order[:5])
            ]
            example = {"model": model, "query_text": f"a {colour} {kind} on paper", "results": results}
            examples.append({**example, "rank": place + 1, "gallery": 1000})
    for kind, colour in scenes[5:7]:
        for place, model in enumerate(models):
            captions = [
                f"one {colour} {kind}",
                f"a {kind}",
                f"there is something {colour}",
                "nice picture",
                "a green star",
            ]
            results = [
                {"caption": caption, "score": 0.5 - 0.04 * at, "correct": at < 3 - place}
                for at, caption in enumerate(captions)
            ]
            examples.append({"model": model, "query_image": drawing(kind, colour), "results": results})
    return examples


def training_pairs() -> list[dict[str, Any]]:
    """Training pairs of every noise type, as plain data."""
    return [
        {"image": drawing("star", "red"), "caption": "a red star", "noise": "clean"},
        {"image": drawing("circle", "blue"), "caption": "three yellow squares at the left", "noise": "mismatched"},
        {"image": drawing("square", "green"), "caption": "nice picture", "noise": "vague"},
        {"image": drawing("ring", "yellow"), "caption": "something yellow", "noise": "partial"},
    ]
