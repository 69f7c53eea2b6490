"""Models for other programs: a folder for open_clip, for transformers or for ONNX runtimes, compared with its source before it appears."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from softclip_cli import __version__
from softclip_cli.data.beside import beside
from softclip_cli.data.corpus import check_output, hash_file
from softclip_cli.data.split_writer import write_json
from softclip_cli.errors import HostError, UsageError, nearest
from softclip_cli.evaluation.result import run_folder
from softclip_cli.registry import open_model, parse_reference, split_checkpoint
from softclip_cli.reports.facts import without_folders
from softclip_cli.reports.model_card import write_export_card
from softclip_cli.runs import Run

MADE_BY = "export.json"  # says what the folder is, and that it may be replaced
FORMAT = 1
# target → its module here, the tolerance of L2-normalised embeddings in float32, and whether its own image processor must agree, too:
# that of transformers resizes with torchvision, which rounds otherwise than Pillow.
TARGETS: dict[str, tuple[str, float, bool]] = {
    "open_clip": ("open_clip_folder", 1e-5, True),
    "hf": ("transformers_folder", 1e-5, False),
    "onnx": ("onnx_folder", 1e-4, False),
}
PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "onnx", "onnxscript", "onnxruntime")

Say = Callable[[str], None]


def check_target(to: str, out: Path, *, overwrite: bool = False) -> None:
    """What can be refused before a model is loaded.

    Raises:
        UsageError: an unknown format.
        HostError: packages that the format needs are missing.
        DataError: `out` is in the way.
    """
    if to not in TARGETS:
        raise UsageError(f"unknown format {to!r}", "known: " + ", ".join(TARGETS), nearest(to, TARGETS))
    if to == "onnx":
        from softclip_cli.export.onnx_folder import check_packages

        check_packages()
    check_output(out, overwrite, what="export", mark=MADE_BY)


def export(
    reference: str | None, out: Path, to: str, *, overwrite: bool = False, say: Say = lambda text: None
) -> dict[str, Any]:
    """Write a model for another program, and compare what that program computes with the source.

    Args:
        reference: a model reference; None for the newest finished run.
        out: the folder to make; it appears when it is whole and has passed the comparison.
        to: one of TARGETS.
        overwrite: replace an export that is there.
        say: told what was decided and what is being done.

    Returns:
        what `export.json` says: `model`, `parity` (see `parity.check`), `files` with their SHA-256, `versions`.

    Raises:
        UsageError: an unknown format.
        DataError: `out` is in the way.
        ModelError: an unknown model, one that the format cannot hold, or a comparison that failed.
        HostError: a missing package, or `out` cannot be written.
    """
    from safetensors import SafetensorError

    from softclip_cli.export.parity import check

    check_target(to, out, overwrite=overwrite)
    model = open_model(reference)
    for note in model.notes:
        say(note)
    name, tolerance, exact = TARGETS[to]
    target = import_module(f"softclip_cli.export.{name}")
    try:
        with beside(Path(out), overwrite, what="export", mark=MADE_BY) as folder:
            facts = target.write(model, folder)
            say("comparing with the source")
            parity = check(model, target.load(folder), tolerance=tolerance, own_image_exact=exact)
            document = {
                "format": FORMAT,
                "softclip": __version__,
                "to": to,
                **facts,
                "model": {
                    "reference": without_folders(model.reference),
                    "name": without_folders(model.name),
                    "fingerprint": model.fingerprint(),
                    **_checkpoint(model.reference),
                    "embed_dim": model.embed_dim,
                    "parameters": sum(parameter.numel() for parameter in model.net.parameters()),
                },
                "parity": parity,
                "versions": _versions(),
            }
            _write_card(model.reference, document, folder)
            document["files"] = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
            write_json(folder / MADE_BY, document)
    except (OSError, SafetensorError) as error:
        raise HostError(f"{out} cannot be written", str(error), "check the disk, or choose another folder") from error
    return document


def _checkpoint(reference: str) -> dict[str, Any]:
    """Which step's checkpoint of a run a reference means, and whether its averaged weights; empty for other models."""
    place = run_folder(reference)
    if place is None:
        return {}
    parsed, run = parse_reference(reference), Run(place)
    which, averaged = split_checkpoint(parsed.weights) if parsed.kind == "run" else ("best", False)
    named = Path(parsed.name).resolve()
    folder = named if parsed.kind == "folder" and named != place.resolve() else run.checkpoint(which)
    return {"run": run.name, "step": int(folder.name.removeprefix("step-")), "averaged": averaged}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write_card(reference: str, document: dict[str, Any], folder: Path) -> None:
    """The model card of the export: that of the run, where the model is one's."""
    place = run_folder(reference)
    write_export_card(folder, document, Run(place) if place else None)
