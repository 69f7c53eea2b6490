"""`softclip train --estimate`: the estimate as a table or a document."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from softclip_cli import console

if TYPE_CHECKING:
    from softclip_cli.training.estimate import Estimate
    from softclip_cli.training.settings import TrainSettings


def print_estimate(settings: TrainSettings, as_json: bool) -> None:
    """Estimate and print. Under torchrun, for its number of processes; the first one speaks."""
    from softclip_cli.training.estimate import estimate

    if int(os.environ.get("RANK", "0")):
        return
    found = estimate(
        settings,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        report=lambda kind, facts: console.note(facts["text"]) if kind == "note" else None,
    )
    console.emit(found.as_dict(), as_json, lambda: _render(found))


def _render(found: Estimate) -> None:
    from softclip_cli.resources import duration, size

    run, pairs = found.run, found.run["micro_batch"] or found.run["pairs_a_process"]
    where = f"{run['device']}, {run['precision']}"
    each = "" if run["processes"] == 1 else f" of each of {run['processes']} processes"
    a_pair = f"{size(found.activations // pairs)} of activations a pair"
    rows = [
        (name, size(count), a_pair if name.startswith("activations") else "") for name, count in found.memory.items()
    ]
    verdict = {None: "", True: "fits", False: "does NOT fit: a smaller --batch-size, --micro-batch, or more processes"}[
        found.fits
    ]
    free = "" if found.available is None else f"{size(found.available)} free here: {verdict}"
    rows.append(("all in all", size(found.total), free))
    rows += [(f"host: {name}", size(count), "") for name, count in found.host.items()]
    shared = ", ".join(f"{count}: {size(needed)}" for count, needed in found.sharded.items())
    rows.append(("with --shard fsdp", "", f"{shared} each, as many pairs each, without libraries and images"))
    rows.append(
        ("a checkpoint on disk", size(found.checkpoint["each"]), f"{size(found.checkpoint['kept'])} for all that stay")
    )
    title = f"{run['model']}, {run['objective']}, batch {run['batch_size']:,}, {run['image_size']} px, {run['text_tokens']} tokens"
    console.table(f"{title}: memory{each} ({where})", ("", ">about", ""), rows)
    console.out.print(f"loss {found.loss}", markup=False)
    if found.seconds:
        seconds, rates = found.seconds, found.rates
        console.table(
            "time on this machine, as busy as it is now",
            ("", ">about", ""),
            [
                (
                    "FLOPs of a pair",
                    f"{found.flops / run['pairs_a_process'] / 1e9:,.1f} G",
                    f"{rates['flops_per_second'] / 1e9:,.0f} G a second here",
                ),
                ("step", duration(seconds["step"]), _parts(seconds)),
                ("pairs a second", f"{rates['pairs_per_second']:,.1f}", ""),
                (f"{run['steps']:,} steps", duration(seconds["training"]), f"{run['samples']:,} samples"),
                ("evaluations", duration(seconds["evaluation"]), ""),
                ("whole run", duration(seconds["run"]), ""),
            ],
        )
    for line in found.notes:
        console.note(f"note: {line}")


def _parts(seconds: dict[str, float]) -> str:
    from softclip_cli.resources import duration

    return ", ".join(
        f"{name} {duration(seconds[name])}" for name in ("towers", "update", "decoding") if seconds[name] >= 1e-4
    )
