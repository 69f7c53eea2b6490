"""`softclip train --profile N`: N steps in the middle of a run are timed part by part, a few more are traced, and the run goes on."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from softclip_cli.errors import UsageError
from softclip_cli.training.phases import DATA_WAIT, PHASES, Stopwatch
from softclip_cli.training.run_folder import Report, json_text, replace_text

WARM_UP = 3  # steps first: kernels are chosen, memory is allocated, worker processes start
TRACED = 3  # steps at most: a trace of one step of a large model has a megabyte
TOP = 8
FOLDER, TRACE, SUMMARY = "profile", "trace.json.gz", "summary.json"


@dataclass
class Profile:
    """Where a step's time goes.

    Attributes:
        first_step: the first that was timed, counted from 1.
        steps: timed.
        traced: steps in the trace.
        step_ms: mean of a step, from the wait for its data to its line in the log.
        phases: name → {"ms", "share"}, in the order of a step; they add up to the step.
        operators: of a traced step, the most expensive first: {"name", "ms", "share", "calls"}; ms of the device's time.
        device: what computes.
        trace: file for chrome://tracing or ui.perfetto.dev.
    """

    first_step: int
    steps: int
    traced: int
    step_ms: float
    phases: dict[str, dict[str, float]]
    operators: list[dict[str, Any]] = field(default_factory=list)
    device: str = "cpu"
    trace: str = ""

    @property
    def data_wait(self) -> float:
        """Share of the time in which the step waited for data."""
        return self.phases[DATA_WAIT]["share"]


class StepProfiler:
    """Told by the loop when a step begins and ends; times some, traces some, then reports "profile" once and is silent.

    Timed steps run without the tracer, which slows small operations down; so the times are those of an ordinary step.

    Args:
        steps: to time.
        folder: of the run.
        device: that computes.
        report: gets ("profile", facts of `Profile`).
    """

    def __init__(self, steps: int, folder: Path, device: torch.device, report: Report) -> None:
        self.wanted, self.folder, self.device, self.report = steps, folder / FOLDER, device, report
        self.seen = 0
        self.timed = Stopwatch(device)
        self.traced = Stopwatch(device, annotate=True)
        self.tracer: Any = None
        self.over = False

    def begin(self, step: int) -> None:
        """Step number `step` (from 0) begins: before the wait for its data."""
        if self.over:
            return
        if self.seen == WARM_UP:
            self.first = step + 1
        if self.seen >= WARM_UP + self.wanted:
            if self.tracer is None:
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would report its start on stderr
                cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
                self.tracer = profile(activities=[ProfilerActivity.CPU, *cuda], acc_events=True)
                self.tracer.start()
            self.traced.begin()
        elif self.seen >= WARM_UP:
            self.timed.begin()

    def end(self) -> None:
        """The step is over: after its line in the log, before evaluation and checkpoint."""
        if self.over:
            return
        self.timed.end()
        self.traced.end()
        self.seen += 1
        if len(self.traced.steps) == min(TRACED, self.wanted):
            self.finish()

    def finish(self) -> None:
        """Write the files and report. For a run that was stopped: with what was measured till then, if anything. Again: nothing."""
        if self.over:
            return
        self.over = True
        self.timed.cancel()
        self.traced.cancel()
        operators: list[dict[str, Any]] = []
        if self.tracer is not None:
            self.tracer.stop()
            operators = top_operators(self.tracer.events(), len(self.traced.steps), self.device)
        if not self.timed.steps:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        parts, whole = self.timed.milliseconds()
        result = Profile(
            self.first,
            len(self.timed.steps),
            len(self.traced.steps),
            round(whole, 3),
            {name: {"ms": round(parts[name], 3), "share": round(parts[name] / whole, 4)} for name in PHASES},
            operators,
            str(self.device),
            str(self.folder / TRACE) if self.tracer is not None else "",
        )
        if self.tracer is not None:
            write_trace(self.tracer, self.folder / TRACE)
        replace_text(self.folder / SUMMARY, json_text(asdict(result)))
        self.report("profile", asdict(result))


def check_length(wanted: int, steps: int) -> None:
    """Refuse a profile that a run is too short for.

    Raises:
        UsageError: fewer steps are left than the profile takes.
    """
    needed = WARM_UP + wanted + min(TRACED, wanted)
    if needed > steps:
        raise UsageError(
            f"--profile {wanted} takes {needed} steps, and this run has {steps} left",
            f"{WARM_UP} steps warm up, {wanted} are timed and {min(TRACED, wanted)} traced",
            f"--profile {max(1, (steps - WARM_UP) // 2)}, or a longer run (--steps {needed})",
        )


def top_operators(events: Iterable[Any], steps: int, device: torch.device) -> list[dict[str, Any]]:
    """The operators that took most of a step: time of their own kernels on the device, without operators that they call."""
    cuda = device.type == "cuda"
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in events:
        # On a GPU the kernels are events, too: their time is counted at the operator that launched them.
        if event.is_user_annotation or event.name.startswith("Optimizer.") or event.device_type != DeviceType.CPU:
            continue
        spent[event.name] += event.self_device_time_total if cuda else event.self_cpu_time_total
        calls[event.name] += 1
    total = sum(spent.values()) or 1.0
    names = sorted(spent, key=lambda name: -spent[name])[:TOP]
    return [
        {
            "name": name,
            "ms": round(spent[name] / 1e3 / steps, 3),
            "share": round(spent[name] / total, 4),
            "calls": round(calls[name] / steps),
        }
        for name in names
        if spent[name] > 0
    ]


def write_trace(tracer: Any, path: Path) -> None:
    """Write the Chrome trace, compressed, beside its place and rename it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trace-") as folder:
        plain, packed = Path(folder) / "trace.json", Path(folder) / TRACE
        tracer.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target)
        packed.replace(path)
