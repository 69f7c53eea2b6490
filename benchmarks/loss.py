"""The loss alone, forward and backward: every objective dense and tiled, beside open_clip's ClipLoss.

    python benchmarks/loss.py [--quick] [--json FILE] [--sizes 2048 16384] [--objectives clip psd] [--device cuda]

Time: the contenders take turns in one process (interleaved), after a warm-up turn; the median of the turns counts.
Peak extra memory: one forward and backward pass in a fresh process; on a CPU the high-water mark of the resident set
above what was resident just before (inputs included), on a GPU the allocator's own peak above the same. A warm-up pass
over 64 pairs goes before, so that libraries and thread pools are not counted.
A contender that would need more memory than is free is left out ("-"), and a line under the table says so.
The targets are stated for 16,384 pairs, and for the growth of peak memory from 8,192 to 32,768.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.objective import build_objective
from softclip_cli.objectives.settings import ObjectiveSettings, presets
from softclip_cli.training.run_folder import processor_name

WIDTH = 512
OPEN_CLIP = "open_clip"
SIZES, QUICK_SIZES = [2048, 4096, 8192, 16384, 32768], [1024, 2048]
QUEUE = 16384  # albef's 65,536 would not fit beside a dense batch of 16,384 on a small machine
LOGIT_SCALE = 1 / 0.07
# Matrices of batch × keys alive at once in a dense pass, to leave out what cannot fit: as measured, rounded up.
LIVE_MATRICES = {OPEN_CLIP: 5, "clip": 4, "psd": 5, "albef": 6}
MOST_LIVE = 8

AT = 16384
SOFT = [name for name in presets() if name not in ("clip", "siglip", "cyclip")]
TIME_OF_OPEN_CLIP, TIME_OF_DENSE, PEAK_OF_DENSE, PEAK_GROWTH = 0.9, 1.2, 0.1, 4.5
OTTER_TIME_OF_DENSE = 3.0  # it computes every round of Sinkhorn anew


def unit_rows(count: int, seed: int, device: torch.device) -> Tensor:
    """Random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1).to(device)


def make_turn(objective: str, layout: str, count: int, device: torch.device) -> Callable[[], None]:
    """One forward and backward pass of a contender."""
    image, text = (unit_rows(count, seed, device).requires_grad_() for seed in (1, 2))
    scale = torch.tensor(LOGIT_SCALE, device=device, requires_grad=True)
    loss: Callable[[], Tensor]
    if objective == OPEN_CLIP:
        from open_clip.loss import ClipLoss

        stock = ClipLoss()

        def loss() -> Tensor:
            return stock(image, text, scale)
    else:
        choices: dict[str, Any] = {"name": objective, "tiled": "always" if layout == "tiled" else "never"}
        if objective in ("distill", "cwcl"):
            choices["teacher_model"] = "not needed here"
        if objective == "albef":
            choices["queue_size"] = QUEUE
        ours = build_objective(ObjectiveSettings(**choices), embed_dim=WIDTH).to(device)
        if ours.queue is not None:
            ours.queue.put(unit_rows(QUEUE, 5, device), unit_rows(QUEUE, 6, device))
        ours.eval()  # a full queue, not moving: every turn does the same work
        teacher = None
        if ours.needs_teacher in ("ema", "frozen"):
            teacher = Embeddings(unit_rows(count, 3, device), unit_rows(count, 4, device), torch.tensor(50.0))

        def loss() -> Tensor:
            return ours(Embeddings(image, text), teacher, scale, 0.5, diagnostics=False).loss

    def turn() -> None:
        loss().backward()
        for leaf in (image, text, scale):
            leaf.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()

    return turn


def bytes_needed(objective: str, layout: str, count: int) -> int:
    """An upper estimate, to leave out what cannot fit."""
    if layout == "tiled":
        return 0
    columns = count + (QUEUE if objective == "albef" else 0)
    return LIVE_MATRICES.get(objective, MOST_LIVE) * 4 * count * columns


def bytes_free(device: torch.device) -> int:
    """What a contender may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[0] * 0.9)
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(int(line.split()[1]) * 1024 * 0.9)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def resident(field: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status: memory is measured on Linux only")


def measure_peak(objective: str, layout: str, count: int, device: torch.device) -> int:
    """Peak extra memory of one turn in this process, in bytes."""
    make_turn(objective, layout, 64, device)()  # loads libraries, makes thread pools and gradient buffers' code paths
    turn = make_turn(objective, layout, count, device)
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        turn()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    turn()
    return resident("VmHWM") - before


def peak_in_fresh_process(objective: str, layout: str, count: int, device: str, threads: int) -> int | None:
    """`measure_peak` in a process of its own; None when that process was killed for want of memory."""
    command = [sys.executable, __file__, "--peak", objective, layout, str(count)]
    command += ["--device", device, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (-9, 137):
        return None
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout)


def measure_times(
    contenders: list[tuple[str, str]], count: int, repeats: int, device: torch.device
) -> dict[tuple[str, str], float]:
    """Median seconds of a turn, the contenders taking turns."""
    times: dict[tuple[str, str], list[float]] = {contender: [] for contender in contenders}
    for repeat in range(repeats + 1):
        for contender in contenders:
            turn = make_turn(*contender, count, device)
            start = time.perf_counter()
            turn()
            if repeat:
                times[contender].append(time.perf_counter() - start)
            del turn
    return {contender: statistics.median(values) for contender, values in times.items()}


def run(
    sizes: list[int], names: list[str], repeats: int, device: torch.device, threads: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """All measurements, a row for each size, objective and layout, and what was left out, a sentence each."""
    rows, left_out = [], []
    for count in sizes:
        wanted = [(OPEN_CLIP, ""), *((name, layout) for name in names for layout in ("dense", "tiled"))]
        contenders = []
        for item in wanted:
            needed, free = bytes_needed(*item, count), bytes_free(device)
            if needed < free:
                contenders.append(item)
            else:
                sizes_in_words = f"about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
                left_out.append(f"{' '.join(item).strip()} at {count:,} pairs: needs {sizes_in_words}")
        print(f"{count} pairs: {len(contenders)} contenders", file=sys.stderr)
        times = measure_times(contenders, count, repeats, device)
        peaks = {item: peak_in_fresh_process(*item, count, str(device), threads) for item in contenders}
        left_out += [
            f"{' '.join(item).strip()} at {count:,} pairs: its process was killed while memory was measured"
            for item, peak in peaks.items()
            if peak is None
        ]
        for name, layout in wanted:
            row = {"pairs": count, "objective": name, "layout": layout}
            rows.append(row | {"seconds": times.get((name, layout)), "peak_bytes": peaks.get((name, layout))})
    return rows, left_out


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The ratios asked for, by name; only those whose parts were measured."""
    by_key = {(row["pairs"], row["objective"], row["layout"]): row for row in rows}
    found: dict[str, float] = {}

    def put(name: str, above: Any, below: Any, what: str) -> None:
        first, second = by_key.get(above, {}).get(what), by_key.get(below, {}).get(what)
        if first and second:
            found[name] = first / second

    for count in sorted({row["pairs"] for row in rows}):
        for name in dict.fromkeys(row["objective"] for row in rows):
            if name == OPEN_CLIP:
                continue
            for layout in ("dense", "tiled"):
                put(
                    f"{name}_{layout}_time_of_open_clip_{count}",
                    (count, name, layout),
                    (count, OPEN_CLIP, ""),
                    "seconds",
                )
            put(f"{name}_tiled_time_of_dense_{count}", (count, name, "tiled"), (count, name, "dense"), "seconds")
            put(f"{name}_tiled_peak_of_dense_{count}", (count, name, "tiled"), (count, name, "dense"), "peak_bytes")
            if count == 32768:
                put(
                    f"{name}_tiled_peak_growth_8192_to_32768",
                    (count, name, "tiled"),
                    (8192, name, "tiled"),
                    "peak_bytes",
                )
    return found


def targets(found: dict[str, float], names: list[str]) -> list[dict[str, Any]]:
    """What was to be reached: name, limit, the ratio measured (None: not measured) and whether it is reached.

    `clip` is held to its limit in the layout that is chosen by itself at that size, which is the tiled one.
    """
    asked = {f"clip_tiled_time_of_open_clip_{AT}": TIME_OF_OPEN_CLIP} if "clip" in names else {}
    for name in names:
        if name in SOFT:
            asked[f"{name}_tiled_time_of_dense_{AT}"] = OTTER_TIME_OF_DENSE if name == "otter" else TIME_OF_DENSE
            asked[f"{name}_tiled_peak_of_dense_{AT}"] = PEAK_OF_DENSE
        asked[f"{name}_tiled_peak_growth_8192_to_32768"] = PEAK_GROWTH
    return [
        {"name": name, "limit": limit, "ratio": found.get(name), "reached": name in found and found[name] <= limit}
        for name, limit in asked.items()
    ]


def print_targets(asked: list[dict[str, Any]]) -> None:
    """One line a target."""
    width = max(len(target["name"]) for target in asked)
    for target in asked:
        if target["ratio"] is None:
            verdict = "not measured"
        else:
            verdict = f"{target['ratio']:.2f}  {'reached' if target['reached'] else 'NOT reached'}"
        print(f"{target['name'].ljust(width)}  at most {target['limit']:<4}  {verdict}")


def print_table(rows: list[dict[str, Any]]) -> None:
    """One table, a line for each size and objective."""
    by_key = {(row["pairs"], row["objective"], row["layout"]): row for row in rows}

    def cell(value: float | None, factor: float = 1.0, digits: int = 0) -> str:
        return "-" if value is None else f"{value * factor:,.{digits}f}"

    header = [
        "pairs",
        "objective",
        "dense ms",
        "tiled ms",
        "tiled/dense",
        "dense MiB",
        "tiled MiB",
        "tiled/dense",
        "of open_clip",
    ]
    lines = [header]
    for count in sorted({row["pairs"] for row in rows}):
        stock = by_key[count, OPEN_CLIP, ""]
        lines.append(
            [
                str(count),
                OPEN_CLIP,
                cell(stock["seconds"], 1e3),
                "",
                "",
                cell(stock["peak_bytes"], 2**-20),
                "",
                "",
                "1.00",
            ]
        )
        for name in dict.fromkeys(row["objective"] for row in rows):
            if name == OPEN_CLIP:
                continue
            dense, tiled = by_key[count, name, "dense"], by_key[count, name, "tiled"]

            def over(what: str, first: dict[str, Any], second: dict[str, Any]) -> str:
                return f"{first[what] / second[what]:.2f}" if first[what] and second[what] else "-"

            lines.append(
                [
                    str(count),
                    name,
                    cell(dense["seconds"], 1e3),
                    cell(tiled["seconds"], 1e3),
                    over("seconds", tiled, dense),
                    cell(dense["peak_bytes"], 2**-20),
                    cell(tiled["peak_bytes"], 2**-20),
                    over("peak_bytes", tiled, dense),
                    over("seconds", dense if dense["seconds"] else tiled, stock),
                ]
            )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print(
            "  ".join(
                text.ljust(w) if i == 1 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
            )
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: does it run at all")
    parser.add_argument("--json", type=Path, help="write the rows and the named ratios here")
    parser.add_argument("--sizes", type=int, nargs="+", help="pairs in the batch")
    parser.add_argument("--objectives", nargs="+", choices=list(presets()), help="default: all")
    parser.add_argument("--repeats", type=int, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of a CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--peak", nargs=3, metavar=("OBJECTIVE", "LAYOUT", "PAIRS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.peak:
        objective, layout, count = options.peak
        print(measure_peak(objective, layout, int(count), device))
        return
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    names = options.objectives or list(presets())
    rows, left_out = run(sizes, names, options.repeats or (2 if options.quick else 5), device, options.threads)
    print_table(rows)
    for sentence in left_out:
        print(f"left out: {sentence}")
    found = ratios(rows)
    asked = targets(found, names)
    print()
    print_targets(asked)
    if options.json:
        document = {
            "benchmark": "loss",
            "width": WIDTH,
            "logit_scale": LOGIT_SCALE,
            "albef_queue": QUEUE,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else processor_name(),
            "threads": options.threads,
            "torch": torch.__version__,
            "rows": rows,
            "left_out": left_out,
            "ratios": found,
            "targets": asked,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
