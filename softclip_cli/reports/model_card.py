"""The model card of a run: its README.md as the Hugging Face Hub reads it, filled from the run's own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softclip_cli import __version__
from softclip_cli.errors import UsageError
from softclip_cli.objectives.settings import MARKS, Preset, find_preset
from softclip_cli.reports import facts
from softclip_cli.reports.card_file import EditedByHand, write_card
from softclip_cli.reports.differences import flatten
from softclip_cli.reports.metrics import TASKS
from softclip_cli.reports.page import template_environment
from softclip_cli.reports.run_diff import last_evaluations
from softclip_cli.reports.tables import MetricRow, main_rows, markdown_table, metric_rows, says_more
from softclip_cli.runs import Run

PUBLISHED_SCALE = 10_000_000  # pairs; the smallest corpora of published general-purpose models are about this large
TASK_TYPES = {"zeroshot": "zero-shot-image-classification", "shift": "zero-shot-image-classification"}
LIBRARIES = {"open_clip": "open_clip", "hf": "transformers", "onnx": "onnx"}
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def write_model_card(run: Run, *, license_name: str | None = None, overwrite: bool = False) -> Path:
    """Write the run's README.md, or renew softclip's part of it (see `card_file`).

    Args:
        run: the run; what it has not done (evaluations, checkpoints) the card says so.
        license_name: an identifier of the Hub, such as `mit`; left out: the one that the card has, else `other`, named unknown.
        overwrite: write over what a person changed within softclip's part.

    Returns:
        The file.

    Raises:
        EditedByHand: a person changed softclip's part.
        ModelError: a damaged file in the run folder.
    """
    header, body = _parts(run, license_name)
    return write_card(run.path / "README.md", header, body, overwrite=overwrite)


def renew_model_card(run: Run) -> str:
    """Bring the run's card up to date after new results; returns why it was left as it is, mostly empty.

    Raises:
        ModelError: a damaged file in the run folder.
    """
    try:
        write_model_card(run)
    except EditedByHand as error:
        return f"{error.what} ({error.hint})"
    return ""


def model_card(run: Run, *, license_name: str | None = None) -> str:
    """The text of a new model card (see `write_model_card`)."""
    from softclip_cli.reports.card_file import compose

    return compose(*_parts(run, license_name), None)


def write_export_card(folder: Path, export: Mapping[str, Any], run: Run | None) -> Path:
    """Write the card of an exported model: that of its run, with how to load the export; short where it is no run's.

    Args:
        folder: of the export.
        export: what `export.json` says.
        run: that the model belongs to; None for any other model.
    """
    path = folder / "README.md"
    library = LIBRARIES[str(export["to"])]
    if run is None:
        title = str(export["model"]["name"])
        card = {"library_name": library, "license": "other", "license_name": "unknown"}
        card |= {"pipeline_tag": "zero-shot-image-classification", "tags": ["softclip", "clip"]}  # type: ignore[dict-item]
        template = template_environment(for_html=False).get_template("export_card.md.jinja")
        return write_card(path, card, template.render(title=title, version=__version__, **_export_parts(export)))
    header, body = _parts(run, None, export)
    return write_card(path, {**header, "library_name": library}, body)


def _parts(run: Run, license_name: str | None, export: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """Header and body of a card: of the run's best checkpoint, or of what was exported."""
    model = export["model"] if export else {}
    documents, others = _documents(run, model.get("fingerprint", ""))
    checks: list[dict[str, Any]] = []
    step = model.get("step") if export else run.checkpoint("best").name.removeprefix("step-") if run.steps else ""
    if not documents and not model.get("averaged"):
        # What was measured at another step is not of these weights; a run without checkpoints has its last words only.
        checks = last_evaluations(run, int(step) if step else None)
    rows = main_rows(metric_rows({run.name: documents or checks}))
    note = _results_note(step, from_documents=bool(documents), others=others)
    return _header(run, rows, license_name), _body(run, rows, note, bool(documents), export)


def _documents(run: Run, fingerprint: str = "") -> tuple[list[dict[str, Any]], int]:
    """The run's evaluation documents that are of one model, and how many are of others.

    Args:
        run: whose documents.
        fingerprint: of the model; left out: that of the last evaluation of the best checkpoint.
    """
    prints = {str((one.get("model") or {}).get("fingerprint", "")) for one in run.evals}
    if len(prints) > 1 and not fingerprint:
        best = [one for one in run.evals if _is_of_best(run, str((one.get("model") or {}).get("reference", "")))]
        fingerprint = str(((best or run.evals)[-1].get("model") or {}).get("fingerprint", ""))
    if not fingerprint:
        return run.evals, 0
    kept = [one for one in run.evals if (one.get("model") or {}).get("fingerprint") == fingerprint]
    return kept, len(run.evals) - len(kept)


def _is_of_best(run: Run, reference: str) -> bool:
    """Whether a model reference of this run means its best checkpoint's own weights."""
    step = re.search(r"checkpoints/step-0*(\d+)/?$", reference)
    which = step[1] if step else reference.partition("@")[2] if reference.startswith("run:") else ""
    return which in ("", "best", str(run.best.get("step")))


def _body(run: Run, rows: list[MetricRow], note: str, evaluated: bool, export: Mapping[str, Any] | None) -> str:
    """The part of a card that softclip writes."""
    corpus = facts.corpus_facts(run)
    told = [fact for fact in facts.run_facts(run) if fact.label != "Known noise"]
    of_data = [(fact.label, facts.without_folders(fact.value)) for fact in told if fact.section == "data"]
    if of_data:
        of_data.append(("Licence of the data", _data_licence(corpus)))
    of_training = [(fact.label, facts.without_folders(fact.value)) for fact in told if fact.section != "data"]
    preset = _preset(run)
    template = template_environment(for_html=False).get_template("model_card.md.jinja")
    return template.render(
        title=run.name,
        name=run.name,
        summary=_summary(run),
        facts_table=markdown_table(("", ""), of_data) if of_data else "The run folder does not say.",
        noise=facts.noise_text(corpus),
        objective=run.objective,
        settings_table=markdown_table(("setting", "value"), of_training) if of_training else "",
        objective_table=_objective_table(run, preset),
        results_table=_results(rows),
        results_note=note,
        checkpoint=run.checkpoint("best").relative_to(run.path).as_posix() if run.steps else "",
        limitations=limitations(run, corpus, evaluated=evaluated),
        citation=_citation(preset),
        version=__version__,
        **(_export_parts(export) if export else {"export": None}),
    ).strip()


def _export_parts(export: Mapping[str, Any]) -> dict[str, Any]:
    parity = export["parity"]
    parts = [(part, parity[part]) for part in ("image", "text")]
    parts += [(f"{part}, by the folder's own preprocessing", one) for part, one in parity["own_preprocessing"].items()]
    lines = [(name, f"{one['max_abs_difference']:.2g}", f"{one['min_cosine']:.8f}") for name, one in parts]
    table = markdown_table(("embeddings", "largest difference", "smallest cosine"), lines, right=(1, 2))
    return {"export": export, "parity_table": table}


def limitations(run: Run, corpus: dict[str, Any], *, evaluated: bool) -> list[str]:
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
    if not evaluated:
        found.append("It has no evaluation documents: its numbers, if any, come from the checks made during training.")
    found.append(
        "It has not been examined for social bias, safety or fitness for any use; zero-shot classification gives an "
        "answer whatever the classes are."
    )
    return found


def _summary(run: Run) -> str:
    what = (
        f"A CLIP-style image-text model (`{facts.without_folders(run.model)}`)"
        if run.model
        else "A CLIP-style image-text model"
    )
    objective = f" with the `{run.objective}` objective" if run.objective else ""
    corpus = f" on `{facts.without_folders(run.corpus)}`" if run.corpus else ""
    return f"{what}, trained{objective}{corpus} by softclip."


def _data_licence(corpus: Mapping[str, Any]) -> str:
    found = corpus.get("license") or corpus.get("licence")
    if found:
        return facts.text(found)
    if corpus.get("generator"):
        return "drawn by softclip, nothing of others in it"
    return "not recorded: ask the data's source"


def _preset(run: Run) -> Preset | None:
    try:
        return find_preset(run.objective) if run.objective else None
    except UsageError:  # an objective of another version
        return None


def _objective_table(run: Run, preset: Preset | None) -> str:
    """Every choice of the objective: the preset's with where it comes from, and those that this run made itself."""
    section = run.config.get("objective")
    own = flatten(section) if isinstance(section, dict) else {}
    own = {name: value for name, value in own.items() if name != "name" and value not in (None, "", [])}
    rows = [(name, value, MARKS[mark]) for name, (value, mark) in (preset.choices if preset else {}).items()]
    rows = [row for row in rows if row[0] not in own] + [
        (name, value, "set for this run") for name, value in own.items()
    ]
    lines = [(f"`objective.{name}`", facts.text(value), source) for name, value, source in rows]
    return markdown_table(("setting", "value", "source"), lines) if lines else ""


def _citation(preset: Preset | None) -> str:
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", preset.reference) if preset else ""


def _header(run: Run, rows: list[MetricRow], license_name: str | None) -> dict[str, Any]:
    """The metadata, by the Hub's own library."""
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
        further["base_model"] = run.model.removeprefix("hf-hub:").partition("@")[0]
    data = ModelCardData(
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        license=license_name or "other",
        tags=[tag for tag in ("softclip", "clip", "contrastive-learning", run.objective) if tag],
        model_name=run.name,
        eval_results=results or None,
        **further,
    )
    return data.to_dict()


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


def _results_note(step: Any, *, from_documents: bool, others: int) -> str:
    note = "Shares in percent."
    if others:
        note += f" Left out: {others} {'evaluation' if others == 1 else 'evaluations'} of other weights of this run."
    if from_documents:
        return note + " `evals/` holds the whole documents: every metric, the protocol and the fingerprint of the data."
    at = f"From the check at step {int(step):,} during training" if step else "From the last check during training"
    return f"{at}, without intervals. {note}"
