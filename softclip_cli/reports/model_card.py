"""The model card of a run: its README.md as the Hugging Face Hub reads it, filled from the run's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softclip_cli import __version__
from softclip_cli.reports import facts
from softclip_cli.reports.differences import flatten
from softclip_cli.reports.metrics import TASKS
from softclip_cli.reports.page import template_environment, write_text
from softclip_cli.reports.run_diff import last_evaluations
from softclip_cli.reports.tables import MetricRow, main_rows, markdown_table, metric_rows, says_more
from softclip_cli.runs import Run

PUBLISHED_SCALE = 10_000_000  # pairs; the smallest corpora of published general-purpose models are about this large
TASK_TYPES = {"zeroshot": "zero-shot-image-classification", "shift": "zero-shot-image-classification"}


def write_model_card(run: Run, *, license_name: str | None = None) -> Path:
    """Write the run's README.md.

    Args:
        run: the run; what it has not done (evaluations, checkpoints) the card says so.
        license_name: an identifier of the Hub, such as `mit`; left out: `other`, named unknown.

    Returns:
        The file.

    Raises:
        ModelError: a damaged file in the run folder.
    """
    return write_text(run.path / "README.md", model_card(run, license_name=license_name))


def model_card(run: Run, *, license_name: str | None = None) -> str:
    """The text of the model card (see `write_model_card`)."""
    corpus = facts.corpus_facts(run)
    rows = main_rows(metric_rows({run.name: run.evals or last_evaluations(run)}))
    told = [fact for fact in facts.run_facts(run) if fact.label != "Known noise"]
    of_data = [(fact.label, fact.value) for fact in told if fact.section == "data"]
    of_training = [(fact.label, fact.value) for fact in told if fact.section != "data"]
    settings = [(f"`objective.{name}`", facts.text(value)) for name, value in _objective_settings(run).items()]
    template = template_environment(for_html=False).get_template("model_card.md.jinja")
    text = template.render(
        header=_header(run, rows, license_name),
        title=run.name,
        name=run.name,
        summary=_summary(run),
        facts_table=markdown_table(("", ""), of_data) if of_data else "The run folder does not say.",
        noise=facts.noise_text(corpus),
        objective=run.objective,
        settings_table=markdown_table(("setting", "value"), [*of_training, *settings])
        if of_training or settings
        else "",
        results_table=_results(rows),
        results_note=_results_note(rows, from_documents=bool(run.evals)),
        checkpoint=run.checkpoint("best").relative_to(run.path).as_posix() if run.steps else "",
        limitations=limitations(run, corpus),
        version=__version__,
    )
    return text.strip() + "\n"


def limitations(run: Run, corpus: dict[str, Any]) -> list[str]:
    """What a user of the model must know, each from a fact of the run."""
    found = []
    pairs = corpus.get("pairs")
    if isinstance(pairs, int) and pairs < PUBLISHED_SCALE:
        found.append(
            f"It was trained on {pairs:,} image-text pairs; published general-purpose CLIP models have seen hundreds "
            "of millions. Expect it to know little beyond its corpus and the weights that it started from."
        )
    generator = corpus.get("generator")
    if generator:
        found.append(
            "Its corpus was generated: drawn scenes with captions from a grammar. It is of no use on photographs."
        )
    noise = facts.noise_text(corpus)
    if noise:
        found.append(f"Part of its training captions is wrong or says little ({noise}).")
    else:
        found.append("How many of its training captions are wrong is not known.")
    if run.state != "finished":
        step, steps = run.status.get("step"), run.status.get("steps")
        found.append(f"Its training has not finished (state: {run.state}, step {step} of {steps}).")
    locked = run.setting("model.lock")
    if locked:
        towers = " and ".join(map(str, locked)) if isinstance(locked, list) else str(locked)
        found.append(
            f"Frozen while training: the {towers} trunk. What that part knows comes from its starting weights, and so "
            "do terms of use that may bind the whole."
        )
    found.append("It is one run with one seed: another seed gives other numbers.")
    if not run.evals:
        found.append("It has no evaluation documents: its numbers, if any, come from the checks made during training.")
    found.append(
        "It has not been examined for social bias, safety or fitness for any use; zero-shot classification gives an "
        "answer whatever the classes are."
    )
    return found


def _summary(run: Run) -> str:
    what = f"A CLIP-style image-text model (`{run.model}`)" if run.model else "A CLIP-style image-text model"
    objective = f" with the `{run.objective}` objective" if run.objective else ""
    corpus = f" on `{run.corpus}`" if run.corpus else ""
    return f"{what}, trained{objective}{corpus} by softclip."


def _objective_settings(run: Run) -> dict[str, Any]:
    section = run.config.get("objective")
    if not isinstance(section, dict):
        return {}
    return {name: value for name, value in flatten(section).items() if name != "name" and value not in (None, "", [])}


def _header(run: Run, rows: list[MetricRow], license_name: str | None) -> str:
    """The YAML header, by the Hub's own library."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=TASK_TYPES.get(
                row.task, "image-text-retrieval" if row.task == "retrieval" else row.task.replace(" ", "-")
            ),
            task_name=TASKS.get(row.task, row.task),
            dataset_type=row.dataset or "unknown",
            dataset_name=row.dataset or "unknown",
            dataset_split=row.split or None,
            metric_type=row.metric,
            metric_name=f"{row.label} (%)" if row.unit == "%" else row.label,
            metric_value=round(row.cells[0].value * row.scale, 4),
        )
        for row in rows
        if row.cells[0] is not None
    ]
    further: dict[str, Any] = {} if license_name else {"license_name": "unknown"}
    if run.model.startswith("hf-hub:"):
        further["base_model"] = run.model.removeprefix("hf-hub:")
    data = ModelCardData(
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        license=license_name or "other",
        tags=[tag for tag in ("softclip", "clip", "contrastive-learning", run.objective) if tag],
        model_name=run.name,
        eval_results=results or None,
        **further,
    )
    return data.to_yaml().strip()


def _results(rows: list[MetricRow]) -> str:
    if not rows:
        return ""
    lines = []
    for row in rows:
        dataset = row.dataset + (f", {row.split}" if says_more(row.split, row.dataset, row.task) else "")
        if row.variant:
            dataset += f", {row.variant}"
        size = f"{row.size:,}" if isinstance(row.size, int) else ""
        chance = f"{row.number(row.chance)}" if row.chance is not None else ""
        value = row.number(row.cells[0].value) if row.cells[0] else "–"
        lines.append((TASKS.get(row.task, row.task), dataset, size, row.label, value, row.interval(0), chance))
    header = ("task", "dataset", "n", "metric", "value", "95 % interval", "chance")
    return markdown_table(header, lines, right=(2, 4, 5, 6))


def _results_note(rows: list[MetricRow], *, from_documents: bool) -> str:
    note = "Shares in percent."
    if from_documents:
        return note + " `evals/` holds the whole documents: every metric, the protocol and the fingerprint of the data."
    return "From the last check during training, without intervals. " + note
