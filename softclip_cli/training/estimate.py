"""`softclip train --estimate`: memory and time of a run before it is started, without training.

    memory of a process = weights + gradients + optimiser + moving average + teacher + activations and loss
                          + decoded images + batches that wait + Python and its libraries
    seconds of a step   = the towers' operators, run here one by one + bytes of the update / rate of a copy + decoding

Activations come from the trainer's own step, run without data (`step_trace`), with the loss's matrices and what is there only for a
moment. docs/scaling.md compares estimates with measurements.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from softclip_cli.data.batches import KEEP_BYTES, KEEP_SHARE, PREFETCH, choose_workers
from softclip_cli.model import Model
from softclip_cli.objectives.objective import Objective
from softclip_cli.objectives.settings import ResolvedObjective, resolve
from softclip_cli.objectives.streaming import Plan, make_plan
from softclip_cli.resources import memory, resident
from softclip_cli.training.device import choose_device, choose_precision
from softclip_cli.training.encoder import Encoder, ProjectionEncoder, Projections, TowerEncoder
from softclip_cli.training.estimate_data import DataFacts, look_at
from softclip_cli.training.frozen_teacher import Circumstances, FrozenTeacher, choose_features, open_teacher
from softclip_cli.training.replay import Measured, replay
from softclip_cli.training.run_folder import Report
from softclip_cli.training.settings import TrainSettings
from softclip_cli.training.sharding import units
from softclip_cli.training.step_trace import Shape, StepTrace, trace_step, trunk_widths, without_data
from softclip_cli.training.student import build_model
from softclip_cli.training.teachers import AverageTeacher, LiveTeacher, Teacher

# N×N matrices of a dense loss that are alive at a time (docs/benchmarks.md, loss.py: psd 4.1; ema-kd and otter 7).
OWN_MATRICES, TEACHER_MATRICES = 4, 7
# Bytes that an update reads and writes for each parameter.
UPDATE_BYTES = {"adamw": 28, "sgd": 20}
CLIP_BYTES, AVERAGE_BYTES = 12, 12
STATE_TENSORS = {"adamw": 2, "sgd": 1}
CALL_SECONDS = 25e-6  # of Python and autograd around an operator, measured with `tiny` on a CPU
# What is loaded with the first batch and step: tokenizer, pages of the corpus, kernels; measured with `tiny`.
LOADED_LATER = 170 << 20
# FLOPs of the step whose operators are run: large enough for typical shapes, small enough to be quick.
REPLAYED_FLOPS = {"cpu": 3e11, "cuda": 3e13}
SHARED_BY = (2, 4, 8)


@dataclass
class Estimate:
    """What a run will need.

    Attributes:
        run: model, device, precision, batch and so on: what the estimate is for.
        memory: name → bytes, of one process, on the device that computes.
        host: name → bytes, of one process, in the host's memory; empty where that is where it computes.
        total: of `memory`.
        available: bytes free there now, for all processes on it; None where unknown.
        activations: bytes alive between the forward and the backward pass.
        loss: dense or tiled, and why.
        sharded: processes → bytes of one that holds its share of weights, gradients, optimiser and moving average (`--shard fsdp`).
        checkpoint: bytes of one on the disk (`each`) and of all that stay (`kept`).
        flops: of a step on one process, forward and backward through the towers and a teacher's forward pass.
        seconds: `towers`, `update`, `decoding`, `step`, `training`, `evaluation`, `run`; empty where not timed.
        rates: `pairs_per_second` of all processes, and what was measured on this device.
        notes: what is assumed or left out.
    """

    run: dict[str, Any]
    memory: dict[str, int]
    host: dict[str, int]
    total: int
    available: int | None
    activations: int
    loss: str
    sharded: dict[int, int]
    checkpoint: dict[str, int]
    flops: int
    seconds: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool | None:
        """Whether it fits into what is free now; None where that is unknown."""
        processes = self.run["processes"] if self.run["device"] == "cpu" else 1
        return None if self.available is None else self.total * processes <= self.available

    def as_dict(self) -> dict[str, Any]:
        """As a JSON document."""
        return {**asdict(self), "fits": self.fits}


def estimate(
    settings: TrainSettings,
    *,
    processes: int = 1,
    timed: bool = True,
    report: Report = lambda kind, facts: None,
) -> Estimate:
    """Estimate memory and time of a run.

    Args:
        settings: of the run. Its corpus is looked at where it is there; it is not made.
        processes: that share a step.
        timed: run operators on this device to tell the time; else memory and FLOPs only.
        report: as for `train`.

    Raises:
        UsageError, DataError, ModelError, HostError: the run could not start either.
    """
    libraries = resident() or 0
    device = choose_device(settings.device)
    dtype, _ = choose_precision(settings.precision, device)
    work = _Work(settings, processes, device, dtype, report, timed)
    work.libraries = libraries
    trace = work.trace(work.pairs, work.micro)
    return work.estimate(trace, work.measure(trace) if timed else None)


class _Work:
    """The parts of an estimate, opened once."""

    def __init__(
        self,
        settings: TrainSettings,
        processes: int,
        device: torch.device,
        dtype: torch.dtype,
        report: Report,
        timed: bool,
    ) -> None:
        self.settings, self.processes, self.device, self.report = settings, processes, device, report
        self.notes: list[str] = []
        self.libraries = 0
        cpu = torch.device("cpu")
        self.model = build_model(settings, cpu).train()
        self.frozen = self.model.locked == {"image", "text"}
        self.dtype = torch.float32 if self.frozen and settings.precision == "auto" else dtype
        self.choice: ResolvedObjective = resolve(settings.objective, batch_size=settings.data.batch_size)
        guide = None
        if self.choice.teacher == "frozen":
            guide = open_teacher(str(self.choice.teacher_model), device=cpu, seed=settings.schedule.seed)
        self.objective = Objective(
            self.choice, embed_dim=self.model.embed_dim, teacher_dim=guide.embed_dim if guide else None
        )
        self.data: DataFacts = look_at(settings, self.model, guide, timed, report)
        self.notes += [self.data.note] if self.data.note else []
        self.pairs = max(1, settings.data.batch_size // processes)
        self.micro = settings.data.micro_batch
        self.steps = settings.schedule.total(self.data.rows // settings.data.batch_size or 1)
        self.guide = FrozenTeacher(guide, self.objective.needs_teacher_text) if guide else None
        self.live = self.guide is not None and self._how_taught(self.guide) == "live"
        self.plan = self._plan()

    def _how_taught(self, guide: FrozenTeacher) -> str:
        wanted = self.settings.data
        facts = Circumstances(
            frozen_student=self.frozen,
            augmented=wanted.augment != "none",
            student_size=self.model.preprocess.size,
            teacher_size=guide.model.preprocess.size,
            rows=self.data.rows,
            seen=self.steps * wanted.batch_size,
            stored_bytes=self._stored(guide),
        )
        return choose_features(wanted.teacher_features, facts)[0]

    def _stored(self, guide: FrozenTeacher) -> int:
        width = guide.model.image.visual.trunk.num_features if guide.trunk else guide.model.embed_dim
        return 4 * width * (self.data.rows + (self.data.captions if guide.texts else 0))

    def _plan(self) -> Plan:
        queue = self.choice.queue_size if self.objective.queue is not None else 0
        columns = self.pairs * self.processes + queue
        rows = {"tiled": self.choice.tiled, "tile_rows": self.choice.tile_rows}
        return make_plan(self.pairs, columns, dtype=torch.float32, device=self.device, **rows)  # type: ignore[arg-type]

    def _loss_bytes(self, pairs: int) -> int:
        columns = pairs * self.processes + (self.choice.queue_size if self.objective.queue is not None else 0)
        matrices = TEACHER_MATRICES if self.choice.teacher in ("ema", "frozen") else OWN_MATRICES
        return 4 * matrices * min(self.plan.rows, pairs) * columns

    def trace(self, pairs: int, micro: int) -> StepTrace:
        """Count a step of some pairs."""
        shape = Shape(pairs, self.data.text_tokens, micro, self._loss_bytes(pairs))
        if self.live and self.guide is not None and self.guide.texts:
            shape.teacher_tokens = self.data.teacher_tokens
        if self.frozen:
            shape.features = trunk_widths(self.model)
        return trace_step(self.model, shape, self._encoder, self._teacher)

    def _encoder(self, model: Model) -> Encoder:
        return ProjectionEncoder(Projections(model)) if self.frozen else TowerEncoder(model, self.dtype)

    def _teacher(self, encoder: Encoder) -> Teacher | None:
        if self.choice.teacher == "ema":
            return AverageTeacher(encoder.like(deepcopy(encoder.module).requires_grad_(False).eval()))
        if self.live and self.guide is not None:
            hollow = without_data(self.guide.model)
            return LiveTeacher(hollow, self.dtype, texts=self.guide.texts, trunk=self.guide.trunk)
        return None

    def measure(self, trace: StepTrace) -> Measured:
        """Run the operators of a smaller step here, each counted as often as the whole step has it."""
        self.report(
            "note", {"text": f"running operators of {self.settings.model.reference} on {self.device} for two seconds"}
        )
        chunk = min(self.micro or self.pairs, self.pairs)
        wanted = REPLAYED_FLOPS.get(self.device.type, REPLAYED_FLOPS["cpu"])
        few = min(chunk, max(2, math.ceil(wanted * self.pairs / max(1, trace.flops))))
        small = trace if few == self.pairs else self.trace(few, 0)
        # What has the same shape in both (a weight is cast, its gradient added) costs the same; the rest grows with the pairs.
        fixed = {key for key in small.operators if key in trace.operators}
        grows = [
            sum(
                o.count * (o.flops or o.traffic)
                for key, o in found.items()
                if key not in fixed and bool(o.flops) == flops
            )
            for flops in (True, False)
            for found in (trace.operators, small.operators)
        ]
        by_flops = grows[0] / grows[1] if grows[1] else 1.0
        by_bytes = grows[2] / grows[3] if grows[3] else 1.0
        operators = list(small.operators.values())
        times = [
            trace.operators[key].count if key in fixed else o.count * (by_flops if o.flops else by_bytes)
            for key, o in small.operators.items()
        ]
        measured = replay(operators, times, self.device)
        calls = CALL_SECONDS * sum(operator.count for operator in trace.operators.values())
        # On a CPU one thread calls and computes; a GPU computes while the host calls.
        whole = measured.seconds + calls if self.device.type == "cpu" else max(measured.seconds, calls)
        return replace(measured, seconds=whole)

    def estimate(self, trace: StepTrace, measured: Measured | None) -> Estimate:
        """Put the parts together."""
        settings = self.settings
        net = self.model.net
        moving = [p for p in self._encoder(self.model).module.parameters() if p.requires_grad]
        trained = sum(p.numel() for p in moving)
        weights = _bytes(net)
        optimizer = 4 * STATE_TENSORS[settings.optimizer.name] * trained
        average = _bytes(self._encoder(self.model).module) if self.choice.teacher == "ema" else 0
        # Gradients come as activations go, yet memory is needed for both: an allocator does not find room for all of the one in
        # the holes of the other (measured on a CPU; docs/scaling.md).
        working = max(trace.activations + self._loss_bytes(self.pairs), trace.peak - trace.gradients)
        needed = {
            "weights": weights,
            "optimiser": optimizer,
            "moving average": average,
            "teacher": _bytes(self.guide.model.net) if self.guide and self.live else 0,
            "queue": _bytes(self.objective),
            "gradients": trace.gradients,
            "activations and loss": working,
        }
        host = self._host()
        gathered = _gathered(net, self.dtype)
        sharded = {
            count: (weights + optimizer + average + trace.gradients) // count + gathered + needed["teacher"] + working
            for count in sorted({*SHARED_BY, *([self.processes] if self.processes > 1 else [])})
        }
        if self.device.type == "cpu":
            needed, host = {**needed, **host}, {}
        needed = {name: size for name, size in needed.items() if size >= 1 << 12}
        each = weights + optimizer + _bytes(self.objective) + (average + weights if average else 0)
        result = Estimate(
            {
                "model": self.model.name,
                "objective": self.choice.name,
                "parameters": sum(p.numel() for p in net.parameters()),
                "trainable": trained,
                "device": self.device.type,
                "precision": "bf16" if self.dtype == torch.bfloat16 else "fp32",
                "processes": self.processes,
                "batch_size": settings.data.batch_size,
                "pairs_a_process": self.pairs,
                "micro_batch": self.micro,
                "image_size": self.model.preprocess.size,
                "text_tokens": self.data.text_tokens,
                "samples": self.data.rows,
                "steps": self.steps,
            },
            needed,
            host,
            sum(needed.values()),
            _free(self.device),
            trace.activations,
            self.plan.reason,
            sharded,
            {"each": each, "kept": each * (settings.checkpoint.keep + 1)},
            trace.flops,
            notes=self.notes,
        )
        if measured is not None:
            self._time(result, measured, trained)
        return result

    def _host(self) -> dict[str, int]:
        """What lies in the host's memory whatever computes."""
        rows, size = self.data.rows, self.model.preprocess.size
        libraries = {"Python and its libraries": self.libraries + LOADED_LATER}
        if self.frozen:
            image, text = trunk_widths(self.model)
            return {**libraries, "stored features": 4 * (rows * image + self.data.captions * text)}
        kept = rows * self.data.decoded_bytes
        batch = self.pairs * size * size * 3
        workers, _ = choose_workers(self.settings.data.workers, self.device.type, self.processes, batch)
        found = libraries | {
            "decoded images that are kept": min(kept, KEEP_BYTES) if kept * KEEP_SHARE <= KEEP_BYTES else 0,
            "batches that wait": workers * PREFETCH * batch,
        }
        if self.guide is not None and not self.live:
            found["teacher's stored embeddings"] = self._stored(self.guide)
        return found

    def _time(self, result: Estimate, measured: Measured, trained: int) -> None:
        settings = self.settings
        update = UPDATE_BYTES[settings.optimizer.name] + (CLIP_BYTES if settings.optimizer.clip_norm else 0)
        update += AVERAGE_BYTES if self.choice.teacher == "ema" else 0
        batch = self.pairs * self.model.preprocess.size**2 * 3
        workers, _ = choose_workers(settings.data.workers, self.device.type, self.processes, batch)
        decoding = self.pairs / self.data.decode_rate / max(1, workers) if self.data.decode_rate else 0.0
        towers, updating = measured.seconds, update * trained / measured.bytes_per_second
        # Without workers the training process decodes; else it waits only for what they cannot deliver in time.
        step = towers + updating + decoding if not workers else max(towers + updating, decoding)
        every = settings.eval.interval(self.steps)
        images = self.data.evaluated * (1 + self.steps // every)
        evaluation = images * towers / 3 / self.pairs
        training = self.steps * step
        result.seconds = {
            "towers": towers,
            "update": updating,
            "decoding": decoding,
            "step": step,
            "training": training,
            "evaluation": evaluation,
            "run": training + evaluation,
        }
        result.rates = {
            "pairs_per_second": self.pairs * self.processes / step,
            "flops_per_second": measured.flops_per_second,
            "bytes_per_second": measured.bytes_per_second,
            "share_run": measured.covered,
        }
        if self.processes > 1:
            result.notes.append(
                "gradients between processes are not in the time: docs/scaling.md says what they took here"
            )
        if self.frozen or (self.guide is not None and not self.live):
            result.notes.append("features that are stored before training are not in the time")


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in [*module.parameters(), *module.buffers()])


def _gathered(net: nn.Module, dtype: torch.dtype) -> int:
    """Weights that a process has whole at a time though all are spread: two neighbouring units, and what is in none."""
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in units(net)]
    whole = sum(p.numel() for p in net.parameters())
    return dtype.itemsize * (2 * max(sizes, default=0) + whole - sum(sizes))


def _free(device: torch.device) -> int | None:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else memory()[1]
