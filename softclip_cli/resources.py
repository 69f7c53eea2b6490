"""Cores and memory that this process may use: less than the machine has under an affinity mask or a container's limits.

And numbers of bytes and seconds for people."""

from __future__ import annotations

import math
import os
from pathlib import Path


def affine_cores() -> int:
    """Cores that the scheduler lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Cores' worth of time that a container allows (Linux control groups, version 2); None where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def usable_cores() -> int:
    """Cores that can really work at a time, at least one."""
    quota = cpu_quota()
    return affine_cores() if quota is None else max(1, min(affine_cores(), math.floor(quota)))


def what_limits_cores() -> str:
    """Why `usable_cores` is less than the machine has; empty where it is not."""
    there, affine, quota = os.cpu_count() or 1, affine_cores(), cpu_quota()
    if quota is not None and quota < affine:
        return f"the container may use {quota:g} of {affine}"
    return f"this process may use {affine} of {there}" if affine < there else ""


def memory() -> tuple[int | None, int | None]:
    """(total, available) memory in bytes, within a container's limit where there is one; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, free = facts["MemTotal"], facts["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
        except (AttributeError, ValueError, OSError):
            return None, None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(total, limit), min(free, max(limit - used, 0))
    except (OSError, ValueError):
        return total, free


def resident() -> int | None:
    """Bytes of memory that this process holds now (its resident set); None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def duration(seconds: float) -> str:
    """A length of time for people: "35 ms", "0.8 s", "4 min 10 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 0.1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for unit, name, part, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name} {rest} {smaller}" if rest else f"{whole // unit} {name}"
    raise AssertionError("unreachable")


def size(count: int) -> str:
    """A number of bytes for people, in powers of 1024."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
