"""`softclip eval`: zero-shot classification, and all that a corpus offers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluation_options import (
    BatchOption,
    CacheOption,
    ClassNamesOption,
    DatasetOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    NoCacheOption,
    OutFolderOption,
    OutOption,
    PrecisionOption,
    RootOption,
    SinglePromptOption,
    TemplatesOption,
    WorkersOption,
    embed_options,
    take_model,
)
from softclip_cli.commands.evaluation_output import finish, finish_all, headline, interval, show_table, shown
from softclip_cli.console import guarded

app = typer.Typer(no_args_is_help=True, help="Evaluate a model: zero-shot classification, or all that a corpus offers.")


@app.command()
@guarded
def zeroshot(
    dataset: DatasetOption,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Which split. [default: the one that papers report]")
    ] = None,
    model: ModelOption = None,
    data_root: RootOption = None,
    classnames: ClassNamesOption = None,
    templates: TemplatesOption = None,
    single_prompt: SinglePromptOption = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Print a table of all classes, the worst first.")
    ] = False,
    confusion: Annotated[
        Path | None,
        typer.Option(
            "--confusion", metavar="FILE", help="Draw which class is taken for which, into FILE.png (.svg, .pdf)."
        ),
    ] = None,
    out: OutOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Classify images by the nearest class prompt, without training: top-1, top-5 and mean per class.

    A set whose images have several classes, such as voc2007, gets 11-point mAP and flat hit@k.

    Example: softclip eval zeroshot --dataset imagenet
    """
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation.find import tasks_of
    from softclip_cli.evaluation.locate import Texts, classification_set, multi_label_set
    from softclip_cli.evaluation.multilabel import multi_label
    from softclip_cli.evaluation.zeroshot import require_class_names, zero_shot
    from softclip_cli.reports.confusion import check_ending, write_confusion

    tasks = tasks_of(dataset)
    several = "multi-label" in tasks and "classification" not in tasks
    if confusion is not None:
        check_ending(confusion)
        if several:
            raise UsageError(
                f"--confusion does not go with {dataset}",
                "its images have several classes each, of which none is taken for another",
                "--per-class shows the average precision of each class",
            )
    texts = Texts(classnames, templates)
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    if several:
        labelled = multi_label_set(dataset, split=split, root=data_root, texts=texts)
        require_class_names(labelled)
        taken = take_model(model, device)
        with console.counting("embedding images, then prompts") as progress:
            document = multi_label(taken, labelled, options=options, single_only=single_prompt, progress=progress)
    else:
        data = classification_set(dataset, split=split, root=data_root, texts=texts)
        require_class_names(data)
        taken = take_model(model, device)
        with console.counting("embedding images, then prompts") as progress:
            document = zero_shot(
                taken,
                data,
                options=options,
                single_only=single_prompt,
                with_confusion=confusion is not None,
                progress=progress,
            )

    def render(document: dict[str, Any]) -> None:
        render_zeroshot(document)
        if per_class:
            render_classes(document)

    finish(document, out, as_json, render)
    if confusion is not None:
        console.note(f"confusion picture: {write_confusion(document, confusion)}")


@app.command()
@guarded
def corpus(
    folder: Annotated[
        str,
        typer.Argument(metavar="CORPUS", help="A prepared corpus that lists evaluations, such as the generated one."),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="KIND[:NAME]",
            help="zeroshot, probe, retrieval, shift, composition, or one of them by name. Repeatable. [default: all]",
        ),
    ] = None,
    model: ModelOption = None,
    out: OutFolderOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "fp32",
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Make all evaluations that a corpus offers, its images being embedded once.

    Example: softclip eval corpus data/generated --task zeroshot --task shift
    """
    from softclip_cli.data.corpus import Corpus
    from softclip_cli.evaluation.corpus_evaluation import choose_tasks, evaluate_corpus
    from softclip_cli.evaluation.corpus_sets import KINDS

    opened = Corpus.open(folder)
    wanted = tasks or list(KINDS)
    choose_tasks(opened, wanted)
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    taken = take_model(model, device)
    with console.counting("evaluating") as progress:
        documents = evaluate_corpus(taken, opened, tasks=wanted, options=options, say=console.note, progress=progress)

    def render(documents: list[dict[str, Any]]) -> None:
        titles = {"top1": "top-1", "drop": "drop", "accuracy": "true caption wins"}
        titles |= {"image_to_text_r1": "R@1 image→text", "text_to_image_r1": "R@1 text→image", "rsum": "rsum"}
        rows = []
        for document in documents:
            data, metrics = document["dataset"], document["metrics"]
            name = data["name"].rpartition(":")[2] if ":" in data["name"] else data["split"]
            for key in [key for key in titles if key in metrics]:
                cells = (shown(metrics[key]), interval(metrics[key]), f"{data['size']:,}")
                rows.append((document["task"], name, titles[key], *cells))
        columns = ("task", "set", "metric", ">value", ">95 % interval", ">images")
        show_table(f"{taken.name} on {opened.path.name}", columns, rows)

    finish_all(documents, out, as_json, render)


def render_zeroshot(document: dict[str, Any]) -> None:
    """Ensemble and single prompt side by side."""
    metrics, protocol = document["metrics"], document["protocol"]
    count = len(protocol["prompts"])
    both = "single_prompt_top1" in metrics
    columns = ["metric", f">{count} prompts" if count > 1 else f">{protocol['single_prompt']}", ">95 % interval"]
    columns += [f">{protocol['single_prompt']}", ">95 % interval "] if both else []
    rows = []
    titles = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class", "map11": "mAP (11 points)"}
    for name, title in (titles | {f"hit{k}": f"flat hit@{k}" for k in (1, 2, 5, 10)}).items():
        if name in metrics:
            entries = [metrics[name]] + ([metrics[f"single_prompt_{name}"]] if both else [])
            rows.append((title, *(cell for entry in entries for cell in (shown(entry), interval(entry)))))
    rows.append(("chance", f"{100 * document['details']['chance']:.2f} %", *[""] * (len(columns) - 2)))
    show_table(headline(document), columns, rows)
    console.note(f"prompts: {protocol['prompts_source']}; class names: {protocol['class_names_source']}")
    same = document["details"].get("classes_of_the_same_name")
    if same:
        console.note("classes that share a name: " + ", ".join(same))


def render_classes(document: dict[str, Any]) -> None:
    """Every class, the worst first: its images, its accuracy, and what it is most often taken for."""
    classes = document["details"].get("per_class", [])
    key = "average_precision" if classes and "average_precision" in classes[0] else "accuracy"
    classes = sorted(classes, key=lambda row: (row[key] is None, row[key] or 0.0))
    rows = [
        (
            row["class"],
            f"{row['n']:,}",
            "" if row[key] is None else f"{100 * row[key]:.2f} %",
            row.get("mostly_taken_for"),
        )
        for row in classes
    ]
    columns = ("class", ">images", f">{key.replace('_', ' ')}", "mostly taken for")
    console.table(
        "", columns[: 3 if key == "average_precision" else 4], [row[: 3 if key != "accuracy" else 4] for row in rows]
    )
