"""`softclip train`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.console import guarded
from softclip_cli.errors import SoftclipError, UsageError

if TYPE_CHECKING:
    from softclip_cli.training.settings import TrainSettings
    from softclip_cli.training.start import Plan


@guarded
def train(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="REF",
            help="What to train: tiny, an open_clip architecture, ARCH@WEIGHTS, timm:A+hf:B, a run or folder. See: softclip models list.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="CORPUS", help="Prepared corpus to train on. Left out: the generated corpus."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", metavar="NAME", help="softclip, psd, clip, ... See: softclip objectives list."),
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", metavar="NAME", help="Start from a named recipe.")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of settings.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="One setting, for example objective.alpha_end=0.5. Repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder. Left out: a new one under runs/.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the data, where --steps is not given.")
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            "--max-time", metavar="T", help="Save and end after so long: 30m, 2h, 90s, 1:30:00. --resume goes on."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=2, help="Pairs a step, over all processes: the contrastive batch.")
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch", min=0, help="Encode this many at a time; the contrast stays that of the whole batch."
        ),
    ] = None,
    lock: Annotated[
        str | None, typer.Option("--lock", metavar="TOWERS", help="Freeze trunks: image, text, or image,text.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of weights, data order and augmentation.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Decoding processes. Left out: chosen.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", metavar="P", help="auto, fp32 or bf16.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="none|fsdp", help="fsdp: towers in parts on all processes, where they do not fit one."
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|PATH",
            help="auto: go on where --out already holds a run. PATH: go on with that run and its settings.",
        ),
    ] = "auto",
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="Try the settings: two steps on generated data with random towers, leaving nothing behind."
        ),
    ] = False,
    profile: Annotated[
        int,
        typer.Option(
            "--profile",
            metavar="N",
            min=0,
            help="Time N steps part by part, trace some more (profile/trace.json.gz in the run folder), show where the time goes, go on.",
        ),
    ] = 0,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Print what memory, disk and time the run will need, and stop. Nothing is trained."
        ),
    ] = False,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print all settings, as TOML, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Train a model with soft targets. Without options: a small model, the generated corpus, the softclip objective."""
    chosen: dict[str, Any] = {}
    for section, key, value in (
        ("model", "reference", model),
        ("model", "lock", lock),
        ("data", "corpus", data),
        ("data", "batch_size", batch_size),
        ("data", "micro_batch", micro_batch),
        ("data", "workers", workers),
        ("objective", "name", objective),
        ("optimizer", "lr", lr),
        ("schedule", "steps", steps),
        ("schedule", "epochs", epochs),
        ("schedule", "seed", seed),
        ("schedule", "max_time", max_time),
        ("", "device", device),
        ("", "precision", precision),
        ("", "shard", shard),
    ):
        if value is not None:
            (chosen.setdefault(section, {}) if section else chosen)[key] = value
    if epochs is not None and steps is None:
        chosen["schedule"]["steps"] = 0
    settings, folder, how = _settings(recipe, config, set_ or [], chosen, resume, out)
    if show_config:
        from softclip_cli.config import to_toml

        typer.echo(to_toml(settings), nl=False)
        return
    if sum((smoke, estimate, bool(profile))) > 1:
        raise UsageError(
            "--smoke, --estimate and --profile exclude each other", "each is a run of its own", "give one of them"
        )
    if estimate:
        from softclip_cli.commands.train_estimate import print_estimate

        print_estimate(settings, as_json)
        return
    if smoke:
        run_smoke(settings, recipe, folder, as_json)
        return
    from softclip_cli.training.start import Plan

    run_training(Plan(settings, folder, how, tuple(sys.argv), end=end_process, profile=profile), as_json)


def _settings(
    recipe: str | None,
    config: Path | None,
    assignments: list[str],
    chosen: dict[str, Any],
    resume: str,
    out: Path | None,
) -> tuple[Any, Path | None, str]:
    """Settings by their order of strength: default, recipe, file, --set, options. A resumed run's own come first."""
    from softclip_cli import recipes, runs
    from softclip_cli.config import build, parse_set, read_toml
    from softclip_cli.training.settings import TrainSettings

    if out is not None and resume not in ("auto", "never"):
        raise UsageError(
            "--resume PATH and --out exclude each other", "a resumed run goes on in its own folder", "leave --out away"
        )
    layers = []
    if resume not in ("auto", "never"):
        run = runs.find_run(resume)
        layers.append(read_toml(run.path / "config.toml"))
        out, resume = run.path, "auto"
    elif out is not None and resume == "auto" and (out / "config.toml").is_file():
        layers.append(read_toml(out / "config.toml"))
    if recipe:
        layers.append(recipes.read(recipe))
    if config:
        layers.append(recipes.settings_of(read_toml(config)))
    return build(TrainSettings, *layers, parse_set(assignments), chosen), out, resume


def run_smoke(settings: TrainSettings, recipe: str | None, folder: Path | None, as_json: bool) -> None:
    """Try the settings and print what was replaced and what came out."""
    from softclip_cli import recipes
    from softclip_cli.console_training import TrainingView
    from softclip_cli.training.smoke import smoke

    if folder is not None:
        raise UsageError(
            "--smoke goes with neither --out nor --resume PATH", "a smoke run leaves nothing behind", "leave them away"
        )
    kind = recipes.facts(recipe).text_tower if recipe else ""
    with TrainingView() as view:
        result = smoke(settings, view, text_kind=kind, command=tuple(sys.argv))
    if not result.steps:
        return  # under torchrun the first process speaks
    final = result.steps[-1]
    document = {"smoke": "passed", "recipe": recipe, **asdict(result)}

    def render() -> None:
        console.table(
            f"Smoke run of {recipe or 'these settings'}: passed",
            ("", ""),
            [
                ("steps", final["step"]),
                ("loss", f"{final['loss']:.3f} (chance {final['chance']:.3f})"),
                ("seconds", result.seconds),
                *((f"replaced {item.setting}", f"{item.was} → {item.now}") for item in result.replaced),
            ],
        )

    console.emit(document, as_json, render)


def end_process(error: SoftclipError) -> None:
    """End at once, from another thread: the main one waits in a library for a process that is gone."""
    console.fail(error)
    sys.stderr.flush()
    os._exit(error.exit_code)


def run_training(plan: Plan, as_json: bool) -> Path:
    """Train under the live view and print the summary; used by `softclip demo`, too."""
    from softclip_cli.console_training import TrainingView
    from softclip_cli.reports.model_card import renew_model_card
    from softclip_cli.runs import Run
    from softclip_cli.training.start import train as start

    with TrainingView() as view:
        path = start(plan, view)
    if int(os.environ.get("RANK", "0")):
        return path  # under torchrun the first process writes and speaks
    run = Run(path)
    left = renew_model_card(run)
    if left:
        console.warn(left)
    final = run.training[-1] if run.training else {}  # its time was up before the first line
    evaluations = {name: lines[-1] for name, lines in run.evaluations.items()}
    document = {
        "run": str(path),
        "status": run.status,
        "final": final,
        "evaluations": evaluations,
    }
    if view.profile is not None:
        document["profile"] = view.profile

    def render() -> None:
        done = f"{run.status['step']}" + (f" of {run.status['steps']}" if run.state != "finished" else "")
        rows = [("run", path), ("steps", done)]
        if final:
            rows.append(("loss", f"{final['loss']:.3f} (chance {final['chance']:.3f})"))
        for name, entry in evaluations.items():
            rows += [(f"{name} {key}", f"{value:.2f}") for key, value in entry.items() if isinstance(value, float)]
        console.table("", ("", ""), rows)

    console.emit(document, as_json, render)
    if not as_json and run.state != "finished":
        console.note(f"next: softclip train --resume {path}")
    elif not as_json:
        console.note(
            f"next: softclip retrieve --model {path}   ·   softclip eval zeroshot --model {path} --dataset CORPUS"
        )
    return path
