"""Device and precision: an automatic choice always comes with its reason."""

from __future__ import annotations

import torch

from softclip_cli.errors import HostError, UsageError
from softclip_cli.resources import resident


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to use.

    Raises:
        UsageError: no such kind of device.
        HostError: a device that this machine lacks.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UsageError(f"no device named {wanted!r}", hint="auto, cpu, cuda, cuda:1 or mps") from None
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise HostError(
            f"this machine has no {wanted}", hint="--device auto takes what there is; softclip doctor shows it"
        )
    return device


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the towers' arithmetic, with the reason."""
    if wanted != "auto":
        return (torch.bfloat16 if wanted == "bf16" else torch.float32), "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies bf16 natively"
        return torch.float32, "the GPU has no bf16"
    if device.type == "cpu":
        flags = cpu_flags()
        for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")):
            if flag in flags:
                return torch.bfloat16, f"the CPU multiplies bf16 natively ({name})"
        return torch.float32, "the CPU has no bf16 instructions"
    return torch.float32, f"bf16 is not tried on {device.type}"


def choose_compile(wanted: str, device: torch.device, sharded: bool = False) -> tuple[bool, str]:
    """Whether the towers are compiled, with the reason."""
    if wanted != "auto":
        return wanted == "always", "as asked"
    if sharded:
        return False, "FSDP's hooks would break the graph at each block"
    if device.type != "cuda":
        return False, f"on {device.type} it saves less than it takes"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False, "the GPU is too old for Triton"
    return True, "kernels are fused; the first steps take longer"


def memory_in_use(device: torch.device) -> dict[str, int]:
    """MiB for a line of metrics: `memory` that this process holds, and `device_memory`, the most that tensors took on a GPU so far."""
    held = resident()
    found = {} if held is None else {"memory": held >> 20}
    if device.type == "cuda":
        found["device_memory"] = torch.cuda.max_memory_allocated(device) >> 20
    return found


def cpu_flags() -> set[str]:
    """Instruction-set flags as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:  # noqa: PTH123
            for line in stream:
                if line.startswith("flags"):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()
