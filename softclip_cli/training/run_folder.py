"""Writing a run folder: settings, environment, data, metrics and status, each complete at any moment."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from softclip_cli.config import Section, to_toml
from softclip_cli.errors import UsageError

Report = Callable[[str, dict[str, Any]], None]
PACKAGES = (
    "softclip",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "datasets",
    "numpy",
    "pillow",
)


def now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it: readers never see half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def json_text(document: Any) -> str:
    """A JSON document as text."""
    return json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = now()
        self._began = time.monotonic()
        self._before = 0.0

    def create(self, settings: Section, environment: dict[str, Any], data: dict[str, Any]) -> None:
        """Start a new run, or go on with one whose settings are the same."""
        for name in ("checkpoints", "evals"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        try:
            status = json.loads((self.path / "status.json").read_text())
            self._before, self.started = float(status.get("seconds", 0)), status.get("started", self.started)
        except (OSError, json.JSONDecodeError, ValueError):
            pass
        replace_text(self.path / "config.toml", to_toml(settings))
        replace_text(self.path / "env.json", json_text(environment))
        replace_text(self.path / "data.json", json_text(data))

    def truncate_metrics(self, step: int) -> None:
        """Forget the lines after a step: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short by a kill
            if entry.get("step", 0) <= step:
                kept.append(line)
        replace_text(path, "".join(line + "\n" for line in kept))

    def add_metrics(self, entry: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def logged(self, report: Report) -> Report:
        """The same report, whose notes and warnings also go to log.txt, with the time.

        What is said before the folder is there waits: a run that is refused leaves nothing behind.
        """
        waiting: list[str] = []

        def both(kind: str, facts: dict[str, Any]) -> None:
            report(kind, facts)
            if kind in ("note", "warning"):
                waiting.append(f"{now()} {kind}: {facts['text']}\n")
            if waiting and (self.path / "config.toml").is_file():
                with (self.path / "log.txt").open("a", encoding="utf-8") as stream:
                    stream.writelines(waiting)
                waiting.clear()

        return both

    def write_status(self, state: str, step: int, steps: int, message: str = "") -> None:
        """Replace status.json."""
        seconds = self._before + time.monotonic() - self._began
        document = {"state": state, "step": step, "steps": steps, "started": self.started, "updated": now()}
        replace_text(
            self.path / "status.json", json_text({**document, "seconds": round(seconds, 3), "message": message})
        )


def new_run_path(runs: Path, name: str) -> Path:
    """A folder for a new run, named after the time and what is run; never one that exists."""
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S")
    path, number = runs / f"{stamp}-{name}", 2
    while path.exists():
        path, number = runs / f"{stamp}-{name}-{number}", number + 1
    return path


def check_run_path(path: Path) -> None:
    """Refuse a folder that holds something else than a run.

    Raises:
        UsageError: the folder is not empty and not a run.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "config.toml").is_file()):
        raise UsageError(f"{path} is not a run folder", "it holds something else", "name a new folder: --out runs/NAME")


def environment(device: str, precision: str, world: int, command: list[str]) -> dict[str, Any]:
    """Versions, machine and the choices that were made for it."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": cores,
        "device": device,
        "precision": precision,
        "processes": world,
        "versions": versions,
        "command": command,
    }


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
