"""Readings of this machine: installed versions against the wanted ones, processor, cores, places."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path


def wanted_version(name: str) -> str:
    """The version specifier that softclip's own metadata has for a distribution, such as `>=2.11`; empty where none."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        listed = metadata.requires("softclip") or []
    except metadata.PackageNotFoundError:
        return ""
    for line in listed:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == canonicalize_name(name) and requirement.marker is None:
            return str(requirement.specifier)
    return ""


def fits(version: str, wanted: str) -> bool:
    """Whether a version is within a specifier such as `>=2.11,<3`."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return SpecifierSet(wanted).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True  # a version that cannot be read is not called wrong


def package_field(field: str) -> str:
    """A field of softclip's own metadata, such as `requires-python`; empty where there is none."""
    try:
        return str(metadata.metadata("softclip").json.get(field.replace("-", "_"), ""))
    except metadata.PackageNotFoundError:
        return ""


def cpu_features() -> list[str]:
    """Instruction sets that speed up bf16 and wide vectors, by their usual names; empty where unknown."""
    names = {
        "amx_bf16": "AMX",
        "avx512_bf16": "AVX-512 BF16",
        "avx512f": "AVX-512",
        "avx2": "AVX2",
        "bf16": "BF16",  # as Linux names it on ARM
        "asimd": "NEON",
    }
    flags = _processor_facts().get("flags", _processor_facts().get("Features", "")).split()
    return [name for flag, name in names.items() if flag in flags]


def processor() -> str:
    """The processor as the system names it."""
    import platform

    return _processor_facts().get("model name") or platform.processor() or platform.machine()


def _processor_facts() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; empty on other systems."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if not line.strip():
                break
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    except OSError:
        pass
    return facts


def cache_dir() -> Path:
    """Where features are kept: `$XDG_CACHE_HOME/softclip`, else `~/.cache/softclip` (as evaluation.cache has it)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "softclip"
