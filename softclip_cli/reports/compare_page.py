"""The demo's page: models trained on the same pairs, side by side, with pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softclip_cli.errors import UsageError
from softclip_cli.reports import sections
from softclip_cli.reports.comparison import BETTER, NOISE, PAIRED, WORSE, Comparison, compare
from softclip_cli.reports.comparison_table import remarks
from softclip_cli.reports.examples import RetrievalExample, TrainingPair, as_examples, as_pairs, by_query
from softclip_cli.reports.facts import corpus_facts, display_names, effective_batch, noise_text, number
from softclip_cli.reports.mistakes import mistakes
from softclip_cli.reports.page import Page, run_parts
from softclip_cli.reports.query_pictures import query_examples
from softclip_cli.reports.scatter import robustness_plots
from softclip_cli.reports.subjects import subjects_of
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
    queries: int = 0,
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
        queries: without `retrieval`, how many of the queries that the documents keep are shown in each direction.

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
    examples = as_examples(retrieval)
    if not examples and queries:
        examples, retrieval_note = query_examples(names, by_name, queries)
    groups = by_query(examples)
    comparison = compared(runs, names, by_name)
    page = Page(
        title=title or side_by_side_title(names),
        lead=[
            text for text in (same_or_not(runs), paired_verdict(comparison) or sections.verdict(main, names)) if text
        ],
        comparison=comparison.rows if comparison else (),
        remarks=[text for text in remarks(comparison) if not text.startswith("not comparable")] if comparison else (),
        groups=sections.result_groups(main),
        all_groups=sections.result_groups(rows) if len(main) < len(rows) else (),
        shift=sections.shift_plot(names, by_name),
        robustness=robustness_plots(names, by_name),
        training=sections.training_plots(names, runs),
        alignment=sections.alignment_plots(names, runs),
        ratings=sections.ratings_plots(names, by_name),
        diagnostics=sections.diagnostic_plots(names, runs),
        text_queries=[group for group in groups if group[0].query_image is None],
        image_queries=[group for group in groups if group[0].query_image is not None],
        retrieval_note=retrieval_note,
        pairs=as_pairs(pairs),
        noise=next((noise for run in runs if (noise := noise_text(corpus_facts(run)))), ""),
        classes=sections.class_tables(names, by_name),
        mistakes=mistakes(names, by_name),
        command=re.sub(r"^\S*/(?=softclip(\s|$))", "", command),  # not where the script lies on this machine
        **run_parts(names, runs),
    )
    return page.write(out)


def compared(
    runs: Sequence[Run], names: Sequence[str], documents: Mapping[str, Sequence[Document]]
) -> Comparison | None:
    """The paired comparison with the first model (seeds of one setting joined), or None where there is none to make."""
    subjects = subjects_of(runs, names, [documents[name] for name in names])
    if len(subjects) < 2:
        return None
    comparison = compare(subjects)
    return comparison if any(row.method == PAIRED for row in comparison.rows) else None


def paired_verdict(comparison: Comparison | None) -> str:
    """In a sentence or two, how many of the comparisons are more than noise; empty where none was paired."""
    if comparison is None:
        return ""
    tested = [row for row in comparison.rows if row.p is not None]
    counts = Counter((row.model, row.verdict) for row in tested)
    told = [
        f"{model.name} is {verdict} than {comparison.models[0].name} in {counts[model.name, verdict]}"
        for model in comparison.models[1:]
        for verdict in (BETTER, WORSE)
        if counts[model.name, verdict]
    ]
    noise = sum(row.verdict == NOISE for row in tested)
    if not told:
        return f"None of the {len(tested)} differences in the main numbers is more than noise (paired tests, corrected for their number)."
    rest = f"; {'the other one is' if noise == 1 else f'the other {noise} are'} noise" if noise else ""
    return f"Of {len(tested)} paired comparisons of main numbers, {' and '.join(told)}{rest}."


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
