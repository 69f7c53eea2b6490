"""Runs cells, one after another, in one process: where both towers are frozen on features that are loaded once."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from softclip_cli.data.corpus import Corpus
from softclip_cli.errors import DataError
from softclip_cli.evaluation.embed import EmbedOptions
from softclip_cli.registry import open_model, parse_reference
from softclip_cli.runs import Run
from softclip_cli.study.measure import Metrics, check, flat, measure, split_of
from softclip_cli.study.plan import Cell
from softclip_cli.study.store import Store
from softclip_cli.training.device import choose_device
from softclip_cli.training.encoder import ProjectionEncoder
from softclip_cli.training.features import default_options
from softclip_cli.training.heads import Heads, Trained, trains_heads_only
from softclip_cli.training.projections import Weights
from softclip_cli.training.run_data import open_corpus
from softclip_cli.training.run_folder import Report
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.start import Plan, train
from softclip_cli.training.trainer import unheard

CURVE = ("rsum", "image_to_text_r1", "text_to_image_r1")


class Bench:
    """What one process keeps between cells.

    Args:
        store: where results go.
        keep_runs: keep the checkpoints of whole runs.
        report: told of progress.
    """

    def __init__(self, store: Store, keep_runs: bool = False, report: Report = unheard) -> None:
        self.store, self.keep_runs, self.report = store, keep_runs, report
        self._heads: dict[str, Heads] = {}

    def ready(self, cells: list[Cell]) -> None:
        """See that what the cells need is there, and compute the features that are missing.

        Raises:
            UsageError, DataError: something cannot be measured.
        """
        for cell in cells:
            corpus = open_corpus(cell.settings, self.report)
            if cell.select[0] not in corpus.splits:
                there = "it has " + ", ".join(corpus.splits)
                raise DataError(
                    f"{corpus.path} has no split {cell.select[0]!r} to choose by",
                    there,
                    "select.split in the study file",
                )
            for entry in cell.evaluate:
                check(corpus, entry)
            if trains_heads_only(cell.settings):
                heads = self.heads(cell.settings)
                for split in self._splits(cell, heads.corpus):
                    heads.held_out(split)

    def _splits(self, cell: Cell, corpus: Any) -> list[str]:
        named = [split for entry in cell.evaluate if (split := split_of(entry, corpus))]
        return list(dict.fromkeys([cell.select[0], *named]))

    def heads(self, settings: TrainSettings) -> Heads:
        """The frozen towers of some settings."""
        data = settings.data
        # Of an untrained architecture the trunks, too, are the seed's.
        parsed = parse_reference(settings.model.reference)
        seed = settings.schedule.seed if parsed.kind == "architecture" and not parsed.weights else None
        shaping = [settings.model.model_dump(mode="json"), data.corpus, data.split, data.limit, settings.device, seed]
        key = json.dumps(shaping)
        if key not in self._heads:
            self._heads[key] = Heads(settings, self.report)
        return self._heads[key]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train and evaluate a cell.

        Returns:
            `metrics`: "last" and "best" → name → number; `steps`, `samples`, `pairs`, `seconds`, `cpu_seconds`, `best_epoch`, `curve`.

        Raises:
            SoftclipError: what `softclip train` or `softclip eval` would say.
        """
        return self._run_heads(cell) if trains_heads_only(cell.settings) else self._run_whole(cell)

    def _run_heads(self, cell: Cell) -> dict[str, Any]:
        heads = self.heads(cell.settings)
        split, metric = cell.select
        column = f"{split}/{metric}"

        def by_epoch(encoder: ProjectionEncoder) -> dict[str, float]:
            measured = heads.retrieval(split, encoder)
            return {f"{split}/{name}": measured[name] for name in dict.fromkeys((metric, *CURVE))}

        taught_by = load_file(self.store.weights(cell.teacher)) if cell.teacher else None
        trained = heads.train(cell.settings, measure=by_epoch if cell.curve else None, best=column, taught_by=taught_by)
        last = self._evaluate_heads(cell, heads, trained.last)
        best = last
        if trained.curve and trained.best_epoch != trained.curve[-1]["epoch"]:
            best = self._evaluate_heads(cell, heads, trained.best)
        if cell.keep:
            self.store.folder("heads")
            part = self.store.weights(cell.key).with_suffix(".partial")
            save_file(trained.last, part)
            part.replace(self.store.weights(cell.key))
        return _document(trained, last, best)

    def _evaluate_heads(self, cell: Cell, heads: Heads, weights: Weights) -> Metrics:
        encoder = heads.encoder(weights)
        found: Metrics = {}
        for split in self._splits(cell, heads.corpus):
            found |= {f"{split}/{name}": value for name, value in heads.retrieval(split, encoder).items()}
        for entry in cell.evaluate:
            if split_of(entry, heads.corpus) is None:
                heads.model.eval()
                found |= measure(heads.model, heads.corpus, entry, heads.options)
        return found

    def _run_whole(self, cell: Cell) -> dict[str, Any]:
        path = self.store.folder("runs") / cell.key
        settings = cell.settings
        corpus = open_corpus(settings, self.report)
        if cell.curve:
            steps = self._steps_per_epoch(cell, corpus)
            settings = settings.model_copy(
                update={"eval": settings.eval.model_copy(update={"every": steps, "split": cell.select[0]})}
            )
        cpu = time.process_time()
        train(Plan(settings, path), self.report)
        cpu = time.process_time() - cpu
        run = Run(path)
        options = default_options(None, settings.data.workers, "fp32")
        evaluate = partial(self._evaluate_run, cell, corpus, options, choose_device(settings.device))
        last = evaluate(run.checkpoint("last"))
        best_step = run.best.get("step") if cell.curve else None
        best = evaluate(run.checkpoint("best")) if best_step not in (None, run.steps[-1]) else last
        per_epoch = self._steps_per_epoch(cell, corpus)
        curve = [
            {
                "epoch": line["step"] / per_epoch,
                "step": line["step"],
                **{f"{cell.select[0]}/{name}": line[name] for name in CURVE if name in line},
            }
            for line in run.evaluations.get(cell.select[0], [])
            if cell.curve
        ]
        done = int(run.status["step"])
        trained = Trained(
            done, int(run.data["pairs"]), 0, float(run.status["seconds"]), cpu, curve,
            best_epoch=(best_step or done) / per_epoch,
        )  # fmt: skip
        if not self.keep_runs:
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
        return _document(trained, last, best)

    def _steps_per_epoch(self, cell: Cell, corpus: Any) -> int:
        from softclip_cli.training.run_data import alteration, altered, build_sampler, training_split

        data = training_split(corpus, cell.settings)
        return build_sampler(altered(data, alteration(data, cell.settings)), cell.settings).steps_per_epoch

    def _evaluate_run(
        self, cell: Cell, corpus: Any, options: EmbedOptions, device: torch.device, path: Path
    ) -> Metrics:
        from softclip_cli.evaluation.corpus_sets import retrieval_task
        from softclip_cli.evaluation.retrieval import retrieval

        model = open_model(str(path), device=device)
        found: Metrics = {}
        if isinstance(corpus, Corpus):
            data = retrieval_task(corpus, cell.select[0])
            found |= flat(cell.select[0], retrieval(model, data, options=options))
        for entry in cell.evaluate:
            if split_of(entry, corpus) != cell.select[0]:
                found |= measure(model, corpus, entry, options)
        return found


def _document(trained: Trained, last: Metrics, best: Metrics) -> dict[str, Any]:
    return {
        "metrics": {"last": last, "best": best},
        "best_epoch": trained.best_epoch,
        "steps": trained.steps,
        "samples": trained.samples,
        "pairs": trained.pairs,
        "seconds": round(trained.seconds, 3),
        "cpu_seconds": round(trained.cpu_seconds, 3),
        "curve": trained.curve,
    }
