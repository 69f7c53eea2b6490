"""The demo's page: models trained on the same pairs, side by side, with pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softclip_cli.errors import UsageError
from softclip_cli.reports import sections
from softclip_cli.reports.examples import RetrievalExample, TrainingPair, as_examples, as_pairs, by_query
from softclip_cli.reports.facts import corpus_facts, display_names, effective_batch, noise_text, number
from softclip_cli.reports.page import Page, run_parts
from softclip_cli.reports.tables import Document, main_rows
from softclip_cli.runs import Run


def write_demo_page(
    out: Path,
    runs: Sequence[Run],
    documents: Mapping[str, Sequence[Document]] | None = None,
    retrieval: Sequence[RetrievalExample | Mapping[str, Any]] = (),
    pairs: Sequence[TrainingPair | Mapping[str, Any]] = (),
    *,
    names: Sequence[str] | None = None,
    title: str = "",
    command: str = "",
    retrieval_note: str = "",
) -> Path:
    """Write one self-contained HTML page that sets several runs side by side.

    Args:
        out: the file to write.
        runs: the runs, the baseline first.
        documents: run name → its evaluation documents; left out: what lies in the runs' `evals/`.
        retrieval: examples (see `examples.RetrievalExample`), `model` being a name of `names`.
        pairs: sample training pairs (see `examples.TrainingPair`).
        names: how to call the runs; left out: by objective, where that tells them apart.
        title, command: heading, and the command that made the page.
        retrieval_note: how the examples were chosen, in a sentence.

    Returns:
        `out`.

    Raises:
        UsageError: no run was given.
        ModelError: a damaged file in a run folder.
    """
    if not runs:
        raise UsageError("no run to show", hint="name at least one: softclip runs list")
    names = list(names) if names is not None else display_names(runs)
    by_name = {
        name: list(run.evals if documents is None else documents.get(run.name, ()))
        for name, run in zip(names, runs, strict=True)
    }
    rows = sections.rows_for(names, by_name)
    main = main_rows(rows)
    groups = by_query(as_examples(retrieval))
    page = Page(
        title=title or side_by_side_title(names),
        lead=[text for text in (same_or_not(runs), sections.verdict(main, names)) if text],
        groups=sections.result_groups(main),
        all_groups=sections.result_groups(rows) if len(main) < len(rows) else (),
        shift=sections.shift_plot(names, by_name),
        training=sections.training_plots(names, runs),
        diagnostics=sections.diagnostic_plots(names, runs),
        text_queries=[group for group in groups if group[0].query_image is None],
        image_queries=[group for group in groups if group[0].query_image is not None],
        retrieval_note=retrieval_note,
        pairs=as_pairs(pairs),
        noise=next((noise for run in runs if (noise := noise_text(corpus_facts(run)))), ""),
        classes=sections.class_tables(names, by_name),
        command=re.sub(r"^\S*/(?=softclip(\s|$))", "", command),  # not where the script lies on this machine
        **run_parts(names, runs),
    )
    return page.write(out)


def side_by_side_title(names: Sequence[str]) -> str:
    """A heading that names the models."""
    if len(names) == 1:
        return str(names[0])
    return f"{', '.join(names[:-1])} and {names[-1]}, side by side"


def same_or_not(runs: Sequence[Run]) -> str:
    """In a sentence, what the runs share: data, steps, seed; and a warning where they do not."""
    first = runs[0]
    pairs = number(first.data.get("pairs", first.data.get("size")))
    of_pairs = f"{pairs} pairs of " if pairs else ""
    steps = number(first.status.get("step"))
    if len(runs) == 1:
        trained = f"Trained on {of_pairs}{_short_path(first.corpus)}" if first.corpus else "Trained"
        return f"{trained} for {steps} steps." if steps else f"{trained}."
    shared: list[str] = []
    different: list[str] = []
    checks = {
        "data": [run.data.get("fingerprint") for run in runs],
        "number of steps": [run.status.get("step") for run in runs],
        "batch size": [effective_batch(run) for run in runs],
        "seed": [run.setting("schedule.seed", "seed") for run in runs],
        "starting model": [run.model or None for run in runs],
    }
    for what, values in checks.items():
        if any(value is None for value in values):
            continue
        (shared if len(set(map(str, values))) == 1 else different).append(what)
    text = f"{len(runs)} models"
    if "data" in shared and first.corpus:
        text += f", trained on the same {of_pairs}{_short_path(first.corpus)}" + (
            f" for {steps} steps each" if steps and "number of steps" in shared else ""
        )
        rest = [what for what in shared if what not in ("data", "number of steps")]
    else:
        rest = shared
    text += f" with the same {_listed(rest)}." if rest else "."
    if different:
        text += f" They differ in {_listed(different)}, so not every difference below comes from the objective."
    return text


def _short_path(path: str) -> str:
    """A long path by its last two parts."""
    return "/".join(Path(path).parts[-2:]) if len(Path(path).parts) > 2 else path


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""
