"""Batches copied to a GPU beside its work instead of in between."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from softclip_cli.data.batches import Batch


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a CUDA device, each copied on a stream of its own; on other devices as they are.

    The host runs ahead of the GPU: when it asks for the next batch, the kernels of the last step are queued and not done. A copy from
    page-locked memory on another stream runs beside them, and only the next step's kernels wait for it.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies, work = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
        work.wait_stream(copies)
        for tensor in moved.tensors():
            if tensor.is_cuda:
                tensor.record_stream(work)  # its memory is not given away on the other stream before the step is done
        yield moved
