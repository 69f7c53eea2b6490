"""`softclip doctor`: what this machine has, and what would stop training, each check with one line and a remedy.

Packages are imported in processes of their own with a time limit: a broken one can crash or hang without taking the
check with it. Nothing here uses the network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from softclip_cli import resources
from softclip_cli.reports import host
from softclip_cli.runs import RUNS_VARIABLE, runs_dir

Status = Literal["ok", "warning", "problem"]
TIME_LIMIT = 120.0  # seconds for one import; a cold disk needs tens of them for torch
LEAST_DISK = 2 << 30  # bytes: a few checkpoints of a ViT-B-32 with its optimiser state
LEAST_MEMORY = 2 << 30
# distribution → module to import; the versions wanted stand in the package's own metadata.
IMPORTS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip_torch": "open_clip",
    "timm": "timm",
    "transformers": "transformers",
    "datasets": "datasets",
    "scikit-learn": "sklearn",
    "typer": "typer",
}
PAIR_REMEDY = (
    "torch and torchvision are not of one build (a CPU-only torch beside a CUDA torchvision, or the other way): "
    "install both from one index, for example pip install --force-reinstall torch torchvision"
)
DEVICES = """
import json, torch
found = {"cuda": [], "mps": torch.backends.mps.is_available(), "threads": torch.get_num_threads()}
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = f"{facts.major}.{facts.minor}"
        found["cuda"].append({"name": facts.name, "memory": facts.total_memory, "capability": capability})
found["cuda_build"] = torch.version.cuda or torch.version.hip
from softclip_cli.training.device import choose_device, choose_precision
device = choose_device("auto")
dtype, reason = choose_precision("auto", device)
found.update(device=str(device), precision=str(dtype).removeprefix("torch."), reason=reason)
print("softclip-doctor:" + json.dumps(found))
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: what was looked at.
        status: `ok`; `warning`, worth knowing; `problem`, stops training.
        message: what was found.
        remedy: what to do about it; empty where nothing is to be done.
    """

    name: str
    status: Status
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Ran:
    """How a process ended: its exit code (None: it ran out of time), standard output and error."""

    code: int | None
    output: str
    error: str


def run_python(code: str, time_limit: float = TIME_LIMIT) -> Ran:
    """Run Python code in a process of its own, offline.

    Args:
        code: the program.
        time_limit: in seconds, after which the process is killed.
    """
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "PYTHONUNBUFFERED": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=time_limit,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **quiet},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ran(None, "", "")
    except OSError as error:
        return Ran(-1, "", str(error))
    return Ran(done.returncode, done.stdout, done.stderr)


Runner = Callable[[str], Ran]


def examine(run: Runner = run_python, *, parallel: int = 2) -> list[Check]:
    """Make all checks.

    Args:
        run: runs a Python program in a process of its own.
        parallel: how many processes at a time.
    """
    with ThreadPoolExecutor(max_workers=max(parallel, 1)) as pool:
        devices = pool.submit(check_devices, run)
        sound = importable(run)
        imports = [pool.submit(check_package, name, run, module in sound) for name, module in IMPORTS.items()]
        packages = [future.result() for future in imports]
        accelerators = devices.result()
    return [
        check_python(),
        *packages,
        *accelerators,
        check_cores(),
        check_memory(),
        *check_folders(),
        check_offline(),
    ]


def stops_training(checks: Sequence[Check]) -> bool:
    """Whether one of the checks found something that stops training."""
    return any(check.status == "problem" for check in checks)


def check_python() -> Check:
    """The running Python against the version that the package asks for."""
    wanted = host.package_field("requires-python")
    version = ".".join(map(str, sys.version_info[:3]))
    if wanted and not host.fits(version, wanted):
        return Check(
            "Python", "problem", f"{version}, softclip needs {wanted}", "make a virtual environment with a newer Python"
        )
    return Check("Python", "ok", f"{version} at {sys.executable}")


def importable(run: Runner) -> set[str]:
    """Modules that one process could import one after the other: on a healthy machine all, in a fraction of the time.

    What comes after the first failure is not told; `check_package` looks at each of those by itself.
    """
    program = "".join(f"import {module}; print('softclip-doctor:{module}')\n" for module in IMPORTS.values())
    marked = [line for line in run(program).output.splitlines() if line.startswith("softclip-doctor:")]
    return {line.removeprefix("softclip-doctor:") for line in marked}


def check_package(name: str, run: Runner, sound: bool = False) -> Check:
    """Whether a package has the version that softclip asks for, and can be imported.

    Args:
        name: of the distribution, one of `IMPORTS`.
        run: runs a Python program in a process of its own.
        sound: it is already known that it can be imported.
    """
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "problem", "not installed", f"pip install '{name}{host.wanted_version(name)}'")
    wanted = host.wanted_version(name)
    if wanted and not host.fits(version, wanted):
        return Check(name, "problem", f"{version}, softclip needs {wanted}", f"pip install -U '{name}{wanted}'")
    if sound:
        return Check(name, "ok", version)
    ran = run(f"import {IMPORTS[name]}")
    if ran.code == 0:
        return Check(name, "ok", version)
    return explain_failure(name, version, ran)


def explain_failure(name: str, version: str, ran: Ran) -> Check:
    """Turn the end of a failed import into one line and a remedy."""
    again = f"pip install --force-reinstall '{name}{host.wanted_version(name)}'"
    if ran.code is None:
        return Check(
            name, "problem", f"{version}: importing it took more than {TIME_LIMIT:.0f} s", "is the disk slow or full?"
        )
    if ran.code < 0:
        return Check(name, "problem", f"{version}: importing it crashed (signal {-ran.code})", again)
    lines = [line.strip() for line in ran.error.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {ran.code}"
    if "torchvision::" in ran.error or ("torchvision" in ran.error and "undefined symbol" in ran.error):
        return Check(name, "problem", f"{version}: {last}", PAIR_REMEDY)
    if "ModuleNotFoundError" in last:
        missing = last.rpartition("named")[2].strip().strip("'")
        return Check(
            name, "problem", f"{version}: {last}", f"install what is missing: pip install {missing.partition('.')[0]}"
        )
    if "libcud" in last or "libnv" in last or "CUDA" in last:
        return Check(
            name, "problem", f"{version}: {last}", "the CUDA libraries of this build are missing or broken: " + again
        )
    return Check(name, "problem", f"{version}: {last}", again)


def check_devices(run: Runner) -> list[Check]:
    """Accelerators, instruction sets, and the device and precision that `auto` takes, with the reason."""
    ran = run(DEVICES)
    marked = [line for line in ran.output.splitlines() if line.startswith("softclip-doctor:")]
    instructions = host.cpu_features()
    cpu = Check(
        "CPU",
        "ok",
        host.processor() + (f" with {', '.join(instructions)}" if instructions else ", without bf16 instructions"),
    )
    if ran.code != 0 or not marked:
        lines = [line for line in ran.error.splitlines() if line.strip()]
        why = lines[-1].strip() if lines else "torch gave no answer"
        return [cpu, Check("devices", "problem", f"cannot be asked: {why}", "repair torch first (see above)")]
    found: dict[str, Any] = json.loads(marked[-1].removeprefix("softclip-doctor:"))
    return [cpu, *_accelerators(found), _choice(found)]


def _accelerators(found: dict[str, Any]) -> list[Check]:
    checks = [
        Check(
            f"CUDA {index}",
            "ok",
            f"{gpu['name']}, {resources.size(gpu['memory'])}, compute capability {gpu['capability']}",
        )
        for index, gpu in enumerate(found["cuda"])
    ]
    if not checks and shutil.which("nvidia-smi"):
        build = "a CPU-only build" if not found.get("cuda_build") else f"built for {found['cuda_build']}"
        checks.append(
            Check(
                "CUDA",
                "warning",
                f"a driver is here, but torch sees no GPU (torch is {build})",
                "does nvidia-smi list one? does the build fit?",
            )
        )
    if found["mps"]:
        checks.append(Check("MPS", "ok", "Apple GPU available"))
    return checks or [Check("GPU", "ok", "none: training runs on the CPU")]


def _choice(found: dict[str, Any]) -> Check:
    name = {"bfloat16": "bf16", "float32": "fp32"}.get(found["precision"], found["precision"])
    return Check("choice", "ok", f"auto takes {found['device']} and {name}: {found['reason']}")


def check_cores() -> Check:
    """Cores that this process may use, against those of the machine and a container's quota."""
    usable, there = resources.affine_cores(), os.cpu_count() or 1
    message = f"{usable} of {there}" if usable < there else str(there)
    quota = resources.cpu_quota()
    if quota is not None and quota < usable:
        return Check("cores", "ok", f"{message}, limited to the time of {quota:g} by the container")
    return Check("cores", "ok", message)


def check_memory() -> Check:
    """Memory that is free, and the container's limit where there is one."""
    total, free = resources.memory()
    if total is None or free is None:
        return Check("memory", "ok", "unknown on this system")
    message = f"{resources.size(free)} free of {resources.size(total)}"
    if free < LEAST_MEMORY:
        return Check("memory", "warning", message, "a small model and batch need about 2 GiB: close other programs")
    return Check("memory", "ok", message)


def check_folders() -> list[Check]:
    """Space and write permission where runs and caches go."""
    checks = []
    for name, folder, variable in (
        ("runs folder", runs_dir(), RUNS_VARIABLE),
        ("cache folder", host.cache_dir(), "XDG_CACHE_HOME"),
        ("temporary folder", Path(tempfile.gettempdir()), "TMPDIR"),
    ):
        checks.append(check_folder(name, folder, f"make it writable, or set ${variable} to another folder"))
    return checks


def check_folder(name: str, folder: Path, remedy: str) -> Check:
    """Whether a folder, or the nearest one above it that exists, can be written to and has space. Leaves nothing."""
    there = folder.expanduser().absolute()
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            return Check(name, "problem", f"{folder}: {there} is not a folder", remedy)
        with tempfile.NamedTemporaryFile(dir=there, prefix=".softclip-doctor-"):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(name, "problem", f"{folder}: {error.strerror or error}", remedy)
    missing = "" if there == folder.expanduser().absolute() else " (will be made)"
    message = f"{folder}{missing}: writable, {resources.size(free)} free"
    if free < LEAST_DISK:
        return Check(name, "warning", message, f"checkpoints need room: free some, or {remedy.partition(', or ')[2]}")
    return Check(name, "ok", message)


def check_offline() -> Check:
    """Whether the Hugging Face Hub is switched off by the environment. The network is not tried."""
    value = os.environ.get("HF_HUB_OFFLINE", "")
    if value.upper() in {"1", "ON", "YES", "TRUE"}:
        return Check("HF_HUB_OFFLINE", "ok", f"{value}: names on the Hub are looked up in the local cache only")
    return Check("HF_HUB_OFFLINE", "ok", "off: names on the Hub are looked up on the network (not tried here)")


def as_document(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as a JSON document."""
    return {"ready": not stops_training(checks), "checks": [asdict(check) for check in checks]}
