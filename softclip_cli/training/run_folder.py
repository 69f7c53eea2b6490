"""Writing a run folder: settings, environment, data, metrics and status, each complete at any moment."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from softclip_cli.config import Section, to_toml
from softclip_cli.errors import HostError, UsageError

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
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def json_text(document: Any) -> str:
    """A JSON document as text."""
    return json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n"


class RunFolder:
    """The folder of one run.

    What cannot be written raises `HostError`. Where the folder was removed while its run goes on, it is made again, with a warning: the
    weights in memory are worth more than what was deleted. The lines of metrics.jsonl before, and the checkpoints, are gone.

    Args:
        path: the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = now()
        # Seconds come from a clock that nobody sets; times of day are labels only.
        self._began = time.monotonic()
        self._before = 0.0
        self._documents: dict[str, str] = {}
        self._last_metrics = ""
        self._waiting: list[str] = []
        self._report: Report = lambda kind, facts: None

    def create(self, settings: Section, environment: dict[str, Any], data: dict[str, Any]) -> None:
        """Start a new run, or go on with one whose settings are the same.

        Raises:
            HostError: the disk is full or not writable.
        """
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
            self._before, self.started = float(status["seconds"]), str(status["started"])
        except (OSError, ValueError, TypeError, KeyError):
            pass
        documents = {
            "config.toml": to_toml(settings),
            "env.json": json_text(environment),
            "data.json": json_text(data),
        }
        with self._writing("config.toml"):
            self._write(documents)
        self._documents = documents

    def _write(self, documents: dict[str, str]) -> None:
        for name in ("checkpoints", "evals"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        for name, text in documents.items():
            replace_text(self.path / name, text)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            if self._documents and not (self.path / "config.toml").is_file():
                self._write(self._documents)
                if self._last_metrics:
                    (self.path / "metrics.jsonl").write_text(self._last_metrics, encoding="utf-8")
                self._report(
                    "warning",
                    {
                        "text": f"{self.path} was removed while its run goes on: made again; earlier metrics and checkpoints are gone"
                    },
                )
            yield
        except OSError as error:
            raise HostError(
                f"{self.path / name} could not be written",
                f"{error}; training ended, what the last checkpoint holds is whole",
                f"make room, then go on: softclip train --resume {self.path}",
            ) from error

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
        """Append one line to metrics.jsonl.

        Raises:
            HostError: the disk is full or not writable.
        """
        line = json.dumps(entry) + "\n"
        with self._writing("metrics.jsonl"), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line)
        if "loss" in entry:
            self._last_metrics = line

    def logged(self, report: Report) -> Report:
        """The same report, whose notes and warnings also go to log.txt, with the time.

        What is said before the folder is there waits: a run that is refused leaves nothing behind.
        """

        def both(kind: str, facts: dict[str, Any]) -> None:
            report(kind, facts)
            if kind in ("note", "warning"):
                self._waiting.append(f"{now()} {kind}: {facts['text']}\n")
            if self._waiting and (self.path / "config.toml").is_file():
                # A full disk is told by what must be written; these lines wait for room.
                with suppress(OSError):
                    with (self.path / "log.txt").open("a", encoding="utf-8") as stream:
                        stream.writelines(self._waiting)
                    self._waiting.clear()

        self._report = both
        return both

    def write_status(self, state: str, step: int, steps: int, message: str = "") -> None:
        """Replace status.json.

        Raises:
            HostError: the disk is full or not writable.
        """
        seconds = self._before + time.monotonic() - self._began
        document = {"state": state, "step": step, "steps": steps, "started": self.started, "updated": now()}
        text = json_text({**document, "seconds": round(seconds, 3), "message": message})
        with self._writing("status.json"):
            replace_text(self.path / "status.json", text)


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
