"""`softclip eval robustness`: natural shifts with effective and relative robustness, and common corruptions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softclip_cli import console
from softclip_cli.commands.evaluation_options import (
    BatchOption,
    CacheOption,
    ClassNamesOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    NoCacheOption,
    OutFolderOption,
    PrecisionOption,
    RootOption,
    SinglePromptOption,
    TemplatesOption,
    WorkersOption,
    embed_options,
    take_model,
)
from softclip_cli.commands.evaluation_output import finish_all, interval, show_table, shown
from softclip_cli.console import guarded

if TYPE_CHECKING:
    from softclip_cli.evaluation.shifts import LineOf


@guarded
def robustness(
    reference: Annotated[
        str,
        typer.Option(
            "--dataset",
            "--reference",
            metavar="NAME|FOLDER[:SPLIT]",
            help="The set without a shift: a name of `softclip datasets list`, or a folder of class folders.",
        ),
    ],
    shift: Annotated[
        list[str] | None,
        typer.Option(
            "--shift",
            metavar="NAME|FOLDER[:SPLIT]",
            help="A shifted set of the same classes, or of some of them. Repeatable. [default: the catalogue's]",
        ),
    ] = None,
    corruption: Annotated[
        str | None,
        typer.Option(
            "--corruption",
            metavar="NAMES",
            help="Common corruptions instead of shifts: names with commas, common (ImageNet-C's fifteen), all, noise, blur, ...",
        ),
    ] = None,
    severity: Annotated[
        str, typer.Option("--severity", metavar="LIST", help="Severities of the corruptions, from 1 to 5.")
    ] = "1,2,3,4,5",
    corruption_size: Annotated[
        int,
        typer.Option(
            "--corruption-size",
            metavar="PIXELS",
            min=32,
            help="Side of the crop that is corrupted; ImageNet-C's is 224.",
        ),
    ] = 224,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="FILE|RUN",
            help="Results of a standard model on the same sets: the line is fitted through these. Repeatable.",
        ),
    ] = None,
    baseline_table: Annotated[
        Path | None,
        typer.Option(
            "--baseline-table",
            metavar="FILE",
            help="CSV of standard models instead: model,reference,shift (and set, for several shifts).",
        ),
    ] = None,
    relative_to: Annotated[
        str | None,
        typer.Option("--relative-to", metavar="REF", help="Relative robustness: accuracy minus that of this model."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the scatter plot on logit axes, such as x.png.")
    ] = None,
    model: ModelOption = None,
    data_root: RootOption = None,
    classnames: ClassNamesOption = None,
    templates: TemplatesOption = None,
    single_prompt: SinglePromptOption = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the corruptions' randomness.")] = 0,
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
    """Accuracy under natural shifts (with effective robustness) or common corruptions, by zero-shot classification.

    Example: softclip eval robustness --dataset pacs

    Example: softclip eval robustness --dataset imagenet --corruption common --severity 1,3,5
    """
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation.locate import Texts, classification_set

    if corruption is not None and (shift or baseline or baseline_table or relative_to or plot):
        raise UsageError(
            "--corruption does not go with --shift, --baseline, --baseline-table, --relative-to or --plot",
            "they are about natural shifts",
            "run the command twice",
        )
    texts = Texts(classnames, templates)
    options = embed_options(batch_size, workers, precision, cache, no_cache)
    if corruption is not None:
        from softclip_cli.evaluation.corruptions import check_severities, choose_corruptions, corruption_robustness

        chosen = choose_corruptions([name.strip() for name in corruption.split(",") if name.strip()])
        severities = check_severities(_numbers(severity))
        data = classification_set(reference, root=data_root, texts=texts)
        taken = take_model(model, device)
        with console.counting("embedding images") as progress:
            documents = [
                corruption_robustness(
                    taken,
                    data,
                    chosen,
                    severities,
                    size=corruption_size,
                    seed=seed,
                    options=options,
                    single_only=single_prompt,
                    say=console.note,
                    progress=progress,
                )
            ]
    else:
        from softclip_cli.evaluation.shifts import open_shifts, shift_names
        from softclip_cli.evaluation.shifts import robustness as evaluate
        from softclip_cli.registry import open_model

        names = shift or shift_names(reference)
        line_of = choose_line(baseline or [], baseline_table, len(names))
        data = classification_set(reference, root=data_root, texts=texts)
        shifts = open_shifts(data, reference, names, root=data_root, texts=texts)
        taken = take_model(model, device)
        other = open_model(relative_to, device=taken.device) if relative_to is not None else None
        with console.counting("embedding images, then prompts") as progress:
            documents = evaluate(
                taken,
                data,
                shifts,
                line_of=line_of,
                relative_to=other,
                options=options,
                single_only=single_prompt,
                progress=progress,
            )
        if plot is not None:
            from softclip_cli.reports.robustness_plot import write_plot

            write_plot(documents, plot)
    finish_all(documents, out, as_json, render)
    if plot is not None:
        console.note(f"plot: {plot}")


def _numbers(text: str) -> list[int]:
    from softclip_cli.errors import UsageError

    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"unusable --severity {text!r}", "expected numbers from 1 to 5", "--severity 1,3,5") from None


def choose_line(baseline: list[str], table: Path | None, shifts: int) -> LineOf:
    """Where the line of effective robustness comes from: the user's results, the user's table, or the table that ships."""
    from softclip_cli.errors import UsageError
    from softclip_cli.evaluation import baselines
    from softclip_cli.evaluation.effective import Line, fit_line
    from softclip_cli.evaluation.shifts import reported_split

    if baseline and table is not None:
        raise UsageError("--baseline and --baseline-table exclude each other", hint="leave one away")
    if table is not None and shifts > 1 and not baselines.has_sets(table):
        raise UsageError(
            f"{table} does not say which of the {shifts} shifted sets its rows are about",
            "each shifted set has a line of its own",
            "add a column set with their names, or name one set: --shift NAME",
        )
    documents = baselines.read_results(baseline)

    def line_of(unshifted: dict[str, Any], shifted: dict[str, Any]) -> Line | None:
        first, second = unshifted["dataset"], shifted["dataset"]
        if table is not None:
            label = second["name"] if first["name"] != second["name"] else second["split"]
            return fit_line(baselines.table_points(table, label), table.name)
        if baseline:
            points = baselines.document_points(documents, first["fingerprint"], second["fingerprint"])
            if len(points) < 2:
                raise UsageError(
                    f"--baseline: results of {len(points)} model{'' if len(points) == 1 else 's'} on {first['name']},"
                    f" split {first['split']}, and {second['name']}, split {second['split']}",
                    "a line needs at least two models with results on the very same images of both sets",
                    "evaluate more models: softclip eval robustness with the same sets and --out DIR, then --baseline DIR",
                )
            return fit_line(points, f"results of {len(points)} models")
        if reported_split(first["name"], first["split"]) and reported_split(second["name"], second["split"]):
            return baselines.shipped_line(first["name"], second["name"])
        return None

    return line_of


def in_points(entry: dict[str, Any]) -> str:
    """A metric in percentage points and its interval, with a sign."""
    return f"{entry['value']:+.2f} ({entry['low']:+.2f} to {entry['high']:+.2f})"


def render(documents: list[dict[str, Any]]) -> None:
    """One row a shifted set or corruption."""
    if documents[0]["task"] == "corruption":
        render_corruption(documents[0])
        return
    first = documents[0]["protocol"]["reference"]
    known = [
        key for key in ("effective_robustness", "relative_robustness") if any(key in d["metrics"] for d in documents)
    ]
    columns = ["shifted set", ">images", ">reference top-1", ">95 % interval", ">top-1", ">95 % interval "]
    columns += [">drop"] + [f">{key.replace('_', ' ')} (points)" for key in known]
    rows = []
    for document in documents:
        data, metrics = document["dataset"], document["metrics"]
        name = data["split"] if data["name"] == first["name"] else data["name"]
        cells = [name, f"{data['size']:,}"]
        for key in ("reference_top1", "top1"):
            cells += [shown(metrics[key]), interval(metrics[key])]
        cells.append(f"{100 * metrics['drop']['value']:.2f}")
        cells += [in_points(metrics[key]) if key in metrics else "–" for key in known]
        rows.append(cells)
    title = f"{documents[0]['model']['name']}: natural shifts of {first['name']}, split {first['split']}"
    show_table(title, columns, rows)
    for document in documents:
        if document["protocol"]["reference"]["classes"] != documents[0]["protocol"]["reference"]["classes"]:
            console.note("the reference is cut down to each shifted set's classes")
            break
    sources = dict.fromkeys(
        document["protocol"]["line"]["through"] for document in documents if "line" in document["protocol"]
    )
    for source in sources:
        console.note(f"line through standard models: {source}")
    if any(document["details"].get("line", {}).get("extrapolated") for document in documents):
        console.note("the reference accuracy is outside of those of the standard models: their line is extrapolated")
    if not sources:
        console.note(
            "no effective robustness: no table of standard models for these sets (--baseline, --baseline-table)"
        )


def render_corruption(document: dict[str, Any]) -> None:
    """The mean, then one row a corruption and one column a severity."""
    metrics, table = document["metrics"], document["details"]["table"]
    severities = document["protocol"]["severities"]
    data = document["dataset"]
    columns = ["corruption", *(f">severity {value}" for value in severities), ">mean", ">95 % interval", ">of clean"]
    clean = metrics["clean_top1"]["value"]

    def share(entry: dict[str, Any]) -> str:
        return f"{100 * entry['value'] / clean:.1f} %" if clean else "–"

    rows = [["none", *[""] * len(severities), shown(metrics["clean_top1"]), interval(metrics["clean_top1"]), ""]]
    for name, values in table.items():
        entry = metrics[f"top1_{name}"]
        cells = [f"{100 * values[str(value)]:.2f} %" for value in severities]
        rows.append([name, *cells, shown(entry), interval(entry), share(entry)])
    rows.append(
        ["all", *[""] * len(severities), shown(metrics["top1"]), interval(metrics["top1"]), share(metrics["top1"])]
    )
    title = f"{document['model']['name']} on {data['name']}, split {data['split']}: {data['size']:,} images, top-1"
    show_table(title, columns, rows)
    console.note(f"corrupted at {document['protocol']['corrupted_at']}, by {document['protocol']['library']}")
