"""A training step run without data: torch's fake tensors have shapes and no memory, so a step of any size is counted in seconds.

What is counted is the trainer's own `forward_backward`, micro-batches, teacher and frozen towers included: every operator, its FLOPs, the
bytes that it reads and writes, and how much memory is alive at a time. The loss, whose code looks at values, is replaced by
what its plan says that it needs.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from softclip_cli.data.batches import Batch
from softclip_cli.model import Model
from softclip_cli.objectives.embeddings import Embeddings, ObjectiveOutput
from softclip_cli.training.encoder import Encoder
from softclip_cli.training.step import StepContext, forward_backward
from softclip_cli.training.teachers import Teacher

aten = torch.ops.aten
# Attention on a CPU has operators of its own, which torch's table of FLOPs lacks.
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_: sdpa_backward_flop_count(
        g, q, k, v
    ),
}
Signature = tuple[Any, ...]


@dataclass
class Operator:
    """An operator with inputs of certain shapes, as it occurs in a step.

    Attributes:
        call: the operator.
        args, kwargs: with a `Like` in the place of each tensor.
        count: how often.
        flops: of one call.
        traffic: bytes that one call reads and writes.
    """

    call: Any
    args: Any
    kwargs: Any
    count: int = 0
    flops: int = 0
    traffic: int = 0


@dataclass(frozen=True)
class Like:
    """Shape, strides and dtype of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self, device: torch.device) -> Tensor:
        """Such a tensor: small random numbers, zeros where they are integers."""
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        return made.normal_(std=0.1) if made.is_floating_point() else made.zero_()


@dataclass
class StepTrace:
    """What was counted in a forward and backward pass.

    Attributes:
        activations: bytes that are alive when the forward pass of the towers is over, besides weights.
        peak: most bytes alive at a time, besides weights; gradients and the loss's matrices included.
        gradients: bytes of the gradients.
        flops: of the towers (a multiplication and an addition are two), without the loss.
        operators: what was called.
    """

    activations: int = 0
    peak: int = 0
    gradients: int = 0
    flops: int = 0
    operators: dict[Signature, Operator] = field(default_factory=dict)


class Counting(TorchDispatchMode):
    """Counts operators, and the bytes of the storages that are alive. Works on fake and on real tensors.

    Args:
        known: tensors whose memory does not count: weights and inputs.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.trace = StepTrace()
        self.alive = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.nonzero.default and isinstance(args[0], FakeTensor):
            # Without data nobody knows which values are not zero: all of them, which is the most there can be.
            out: Any = args[0].new_zeros((args[0].numel(), args[0].ndim), dtype=torch.int64)
        else:
            out = func(*args, **kwargs)
        made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        for tensor in made:
            self._add(tensor)
        if not func.is_view and made:
            self._count(func, args, kwargs, out, given, made)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.trace.peak = max(self.trace.peak, self.alive)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.alive -= size

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor], made: list[Tensor]) -> None:
        args_like, kwargs_like = _alike(args), _alike(kwargs)
        signature = (func, repr(args_like), repr(kwargs_like))
        found = self.trace.operators.get(signature)
        if found is None:
            traffic = sum(tensor.numel() * tensor.itemsize for tensor in [*given, *made])
            flops = _flops(func, given, args, kwargs, out)
            found = Operator(func, args_like, kwargs_like, flops=flops, traffic=traffic)
            self.trace.operators[signature] = found
        found.count += 1
        self.trace.flops += found.flops


def _alike(value: Any) -> Any:
    """The same structure with a `Like` for each tensor."""
    return torch.utils._pytree.tree_map(
        lambda leaf: Like(tuple(leaf.shape), tuple(leaf.stride()), leaf.dtype) if isinstance(leaf, Tensor) else leaf,
        value,
    )


def _flops(func: Any, given: list[Tensor], args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    if packet in CPU_ATTENTION:
        return int(CPU_ATTENTION[packet](*(tensor.shape for tensor in given)))
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


@dataclass
class Shape:
    """Sizes of a step on one process.

    Attributes:
        pairs: on this process.
        text_tokens: longest text of the batch.
        micro_batch: pairs encoded at a time; 0: all.
        loss_bytes: what the loss has alive at a time.
        teacher_tokens: longest text of the batch for a frozen teacher that reads along; 0: none does.
        features: widths of stored features, (image, text), where both trunks are frozen; None: pixels and tokens.
    """

    pairs: int
    text_tokens: int
    micro_batch: int = 0
    loss_bytes: int = 0
    teacher_tokens: int = 0
    features: tuple[int, int] | None = None

    def batch(self, size: int) -> Batch:
        """A batch of such sizes; nothing is in it. Call it under a fake mode.

        Args:
            size: side of an image.
        """
        n = self.pairs
        if self.features is None:
            image = torch.empty(n, size, size, 3, dtype=torch.uint8)
            text = torch.zeros(n, self.text_tokens, dtype=torch.int64)
        else:
            image, text = (torch.empty(n, width) for width in self.features)
        rows = torch.zeros(n, dtype=torch.int64)
        read = torch.zeros(n, self.teacher_tokens, dtype=torch.int64) if self.teacher_tokens else None
        return Batch(0, image, text, rows, rows, rows, teacher_text=read)


class PlannedLoss:
    """Stands for the objective: a value with gradients for both embeddings, and the memory that the loss's plan needs.

    Args:
        needed: bytes.
        counting: asked what is alive when the towers are done.
    """

    def __init__(self, needed: int, counting: Counting) -> None:
        self.needed, self.counting = needed, counting

    def __call__(self, student: Embeddings, *others: Any, **rest: Any) -> ObjectiveOutput:
        """As `Objective` is called."""
        self.counting.trace.activations = self.counting.alive
        matrices = torch.empty(self.needed, dtype=torch.uint8)
        value = (student.image * student.text).sum() * others[1]
        del matrices
        return ObjectiveOutput(value)


def trace_step(
    model: Model,
    shape: Shape,
    encode: Callable[[Model], Encoder],
    teach: Callable[[Encoder], Teacher | None] = lambda encoder: None,
) -> StepTrace:
    """Count a forward and backward pass of the trainer.

    Args:
        model: on a CPU; stays as it is.
        shape: sizes of the step.
        encode: makes the encoder of a model without data.
        teach: makes the teacher, from that encoder.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # torch's own deepcopy does
        hollow = without_data(model)
        encoder = encode(hollow)
        teacher = teach(encoder)
        weights = [*hollow.net.parameters(), *hollow.net.buffers()]
        if teacher is not None:
            weights += _weights_of(teacher)
        counting = Counting(weights)
        kept = torch.get_rng_state()
        with counting:
            batch = shape.batch(model.preprocess.size)
            context = StepContext(0, 0.5, 0, micro_batch=shape.micro_batch)
            objective: Any = PlannedLoss(shape.loss_bytes, counting)
            forward_backward(encoder, objective, batch, context, teacher)
    torch.set_rng_state(kept)
    trace = counting.trace
    trace.gradients = sum(p.grad.numel() * p.grad.itemsize for p in encoder.module.parameters() if p.grad is not None)
    return trace


def without_data(model: Model) -> Model:
    """The same model with tensors that have no memory. Call it under a fake mode."""
    mode = active_fake_mode()
    assert mode is not None
    with FakeCopyMode(mode):
        net = copy.deepcopy(model.net)
    return replace(model, net=net, notes=[])


def trunk_widths(model: Model) -> tuple[int, int]:
    """Widths of the features that both trunks give."""
    with FakeTensorMode(allow_non_fake_inputs=True), Counting([]), torch.no_grad():
        hollow, size = without_data(model.eval()), model.preprocess.size
        image = hollow.image_trunk(torch.empty(1, size, size, 3, dtype=torch.uint8))
        text = hollow.text_trunk(torch.zeros(1, 8, dtype=torch.int64))
        return image.shape[1], text.shape[1]


def _weights_of(teacher: Any) -> list[Tensor]:
    module: nn.Module = teacher.encoder.module if hasattr(teacher, "encoder") else teacher.model.net
    return [*module.parameters(), *module.buffers()]
