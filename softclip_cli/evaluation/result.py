"""The evaluation result: one JSON document for every task, the only thing that tables and reports read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli import __version__
from softclip_cli.errors import DataError, HostError, SoftclipError
from softclip_cli.evaluation.images import digest

if TYPE_CHECKING:
    from softclip_cli.evaluation.embed import EmbeddingModel

FORMAT = 1
PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "numpy", "pillow", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of softclip and of the packages that may change a number."""
    found = {"softclip": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def build(
    *,
    task: str,
    dataset: Mapping[str, Any],
    protocol: Mapping[str, Any],
    model: EmbeddingModel,
    metrics: Mapping[str, Any],
    details: Mapping[str, Any],
    seconds: float,
    outcomes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a result together (its shape is in docs/design.md); `outcomes` of single items as `outcomes.packed` makes them."""
    return {
        "format": FORMAT,
        "task": task,
        "dataset": dict(dataset),
        "protocol": dict(protocol),
        "model": {"reference": model.reference, "name": model.name, "fingerprint": model.fingerprint()},
        "metrics": dict(metrics),
        "details": dict(details),
        **({"outcomes": dict(outcomes)} if outcomes else {}),
        "versions": versions(),
        "seconds": round(seconds, 2),
    }


def file_name(document: Mapping[str, Any]) -> str:
    """A name that is the same for the same evaluation of the same weights, and different otherwise."""
    dataset = document["dataset"]
    what = digest(document["model"]["fingerprint"], document["protocol"], dataset.get("fingerprint"))[:10]
    words = f"{document['task']}-{dataset['name']}-{dataset['split']}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-") + f"-{what}.json"


def write(document: Mapping[str, Any], path: Path) -> Path:
    """Write a document, whole or not at all, and return its path.

    Raises:
        HostError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise HostError(
            f"the result cannot be written to {path}", str(error), "choose another file with --out FILE"
        ) from error
    return path


def read(path: Path) -> dict[str, Any]:
    """Read a document.

    Raises:
        DataError: missing, damaged, no result, or written by a newer softclip.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"no result at {path}", str(error)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged", str(error)) from None
    if not isinstance(document, dict) or not {"format", "task", "dataset", "metrics"} <= set(document):
        raise DataError(f"{path} is not an evaluation result", "it lacks format, task, dataset or metrics")
    if document["format"] > FORMAT:
        raise DataError(
            f"{path} was written by a newer softclip", f"format {document['format']}, this reads up to {FORMAT}"
        )
    return document


def run_folder(reference: str) -> Path | None:
    """The run folder that a model reference belongs to (a run, or a checkpoint inside one), or None."""
    from softclip_cli.registry import parse_reference
    from softclip_cli.runs import find_run, is_run

    try:
        parsed = parse_reference(reference)
        if parsed.kind == "run":
            return find_run(parsed.name).path
        if parsed.kind != "folder":
            return None
    except SoftclipError:
        return None
    folder = Path(parsed.name).resolve()
    return next((place for place in (folder, *folder.parents[:2]) if is_run(place)), None)


def save(document: Mapping[str, Any], out: Path | None = None) -> Path | None:
    """Write a document to `out`, else into `evals/` of the run that its model belongs to, else nowhere.

    Returns:
        The file, or None when nothing was written.

    Raises:
        HostError: the file cannot be written.
    """
    if out is not None:
        return write(document, out)
    run = run_folder(document["model"]["reference"])
    return write(document, run / "evals" / file_name(document)) if run is not None else None
