"""`softclip eval`, and what it shares with `softclip probe` and `softclip retrieve`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.console import guarded

if TYPE_CHECKING:
    from softclip_cli.evaluation.embed import EmbedOptions
    from softclip_cli.model import Model

app = typer.Typer(no_args_is_help=True, help="Evaluate a model: zero-shot classification, or all that a corpus offers.")

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="REF",
        help="Which model: a run, a checkpoint folder, ViT-B-32@WEIGHTS, ... [default: newest finished run]",
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="NAME|FOLDER",
        help="A name of `softclip datasets list`, a folder of class folders, or a corpus (CORPUS or CORPUS:TASK).",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="DIR", help="Folder that holds the datasets. [default: $SOFTCLIP_DATA, else ./data]"
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the result here. [default: evals/ of the model's run, if it is a run's]"
    ),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-size", metavar="N", min=1, help="Images a batch; does not change the result.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=0, help="Processes that decode images. [default: chosen]")
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", metavar="P", help="Arithmetic of the model: fp32 or bf16. Scores are fp32 always.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Where image features are kept for the next evaluation. [default: ~/.cache/softclip]",
    ),
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Compute all features anew and keep none.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]


@app.command()
@guarded
def zeroshot(
    dataset: DatasetOption,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Which split. [default: the one that papers report]")
    ] = None,
    model: ModelOption = None,
    data_root: RootOption = None,
    classnames: Annotated[
        Path | None,
        typer.Option(
            "--classnames",
            metavar="FILE",
            help="Class names to use instead: one a line in label order, or FOLDER<TAB>NAME.",
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(
            "--templates",
            metavar="FILE",
            help="Prompts to use instead, one a line, with {} for the class: a photo of a {}.",
        ),
    ] = None,
    single_prompt: Annotated[
        bool, typer.Option("--single-prompt", help="Only the single prompt, no ensemble.")
    ] = False,
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

    A set whose images have several classes, such as voc07, gets 11-point mAP and flat hit@k.

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
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write the results into this folder. [default: evals/ of the model's run]"
        ),
    ] = None,
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
    from softclip_cli.evaluation import result
    from softclip_cli.evaluation.corpus_evaluation import choose_tasks, evaluate_corpus
    from softclip_cli.evaluation.corpus_sets import KINDS

    opened = Corpus.open(folder)
    wanted = tasks or list(KINDS)
    choose_tasks(opened, wanted)
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    taken = take_model(model, device)
    with console.counting("evaluating") as progress:
        documents = evaluate_corpus(taken, opened, tasks=wanted, options=options, say=console.note, progress=progress)
    for document in documents:
        result.save(document, out / result.file_name(document) if out is not None else None)

    def render() -> None:
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

    console.emit(documents, as_json, render)


# What the evaluation commands share


def embed_options(
    batch_size: int | None, workers: int | None, precision: str, cache: Path | None, no_cache: bool
) -> EmbedOptions:
    """The embedding options of a command; the cache is opened unless it is unwanted."""
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation.cache import FeatureCache
    from softclip_cli.evaluation.embed import EmbedOptions

    if cache is not None and no_cache:
        raise UsageError("--cache and --no-cache exclude each other", hint="leave one away")
    return EmbedOptions(batch_size, workers, precision, None if no_cache else FeatureCache(cache))


def take_model(reference: str | None, device: str) -> Model:
    """Open the model, and say which one it is."""
    from softclip_cli.registry import open_model
    from softclip_cli.training.device import choose_device

    model = open_model(reference, device=choose_device(device))
    newest = "newest run " if reference is None else ""
    told = next((line for line in model.notes if line.startswith("model: ")), f"model: {model.name}")
    console.note(f"{told.replace('model: run ', f'model: {newest}') if newest else told} on {model.device}")
    return model


def finish(document: dict[str, Any], out: Path | None, as_json: bool, render: Callable[[dict[str, Any]], None]) -> None:
    """Save a result where it belongs, say where, and print it."""
    from softclip_cli.evaluation.result import save

    path = save(document, out)
    console.emit(document, as_json, lambda: render(document))
    if path is not None:
        console.note(f"result: {path}")
    if path is not None and out is None:
        renew_card(path.parent.parent)


def renew_card(folder: Path) -> None:
    """Bring a run's model card up to date after a new result in its `evals/`."""
    from softclip_cli.reports.model_card import renew_model_card
    from softclip_cli.runs import Run

    left = renew_model_card(Run(folder))
    if left:
        console.warn(left)


def shown(entry: dict[str, Any]) -> str:
    """A metric for a table: a share in percent, anything else as it is."""
    return f"{100 * entry['value']:.2f} %" if entry.get("unit") == "share" else f"{entry['value']:.1f}"


def interval(entry: dict[str, Any]) -> str:
    """Its 95 % interval for a table, empty where there is none."""
    if "low" not in entry:
        return ""
    factor, digits = (100, 2) if entry.get("unit") == "share" else (1, 1)
    return f"{factor * entry['low']:.{digits}f} to {factor * entry['high']:.{digits}f}"


def show_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table under a line of its own: as the table's title it would be folded to the table's width."""
    console.out.print(title, markup=False)
    console.table("", columns, rows)


def headline(document: dict[str, Any]) -> str:
    """The title of a result's table: model, dataset, split and size."""
    data = document["dataset"]
    size = data.get("gallery") or f"{data['size']:,} images, {data['classes']:,} classes"
    partly = f" (the whole split has {data['expected_size']:,})" if "expected_size" in data else ""
    return f"{document['model']['name']} on {data['name']}, split {data['split']}: {size}{partly}"


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
