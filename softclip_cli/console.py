"""Everything that reaches the terminal: results on stdout, all else on stderr, errors as three lines and an exit code."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from softclip_cli.errors import SoftclipError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Command = TypeVar("Command", bound=Callable[..., Any])
SECONDS_BETWEEN_LINES = 30.0


def note(text: str) -> None:
    """One line of information for a person, on stderr, printed as it stands (no markup)."""
    err.print(escape(text))


def warn(text: str) -> None:
    """One line of warning on stderr."""
    err.print(f"[yellow]warning:[/yellow] {escape(text)}")


def emit(document: Any, as_json: bool, render: Callable[[], None]) -> None:
    """Print a command's result: exactly one JSON document with `--json`, else what `render` draws."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    else:
        render()


def counts(numbers: Mapping[str, int]) -> str:
    """Numbers of things in a line: "3 missing-image, 1 truncated-image"."""
    return ", ".join(f"{number:,} {name}" for name, number in numbers.items())


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table on stdout. Columns whose name starts with '>' are aligned to the right."""
    grid = Table(title=title or None, title_justify="left", header_style="bold")
    for name in columns:
        grid.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    if out.is_terminal:
        out.print(grid, soft_wrap=False)
    else:
        # Off a terminal a table is as wide as it needs to be: files and pipes have no edge to fold at.
        Console(
            highlight=False, width=max(80, Measurement.get(out, out.options.update(max_width=10_000), grid).maximum)
        ).print(grid)


def progress() -> Progress:
    """A progress display on stderr: live on a terminal, silent elsewhere."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


@contextlib.contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """A counter on stderr to report (done, total) to: a bar on a terminal, elsewhere a plain line now and then."""
    spoken = PlainCounter()
    with progress() as bar:
        task = bar.add_task(description, total=None)

        def count(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)
            if bar.disable:
                spoken(description, done, total)

        yield count


class PlainCounter:
    """Progress for logs: a line every half minute, so that a long wait is no silence and a log no flood."""

    def __init__(self) -> None:
        self._spoke = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how far `what` is, if it is time."""
        now = time.monotonic()
        if now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            note(f"{what}: {done:,} of {total:,}" if total else f"{what}: {done:,}")


def fail(error: SoftclipError) -> None:
    """Print an error as three lines: what, why, what to try."""
    err.print(f"[bold red]error:[/bold red] {escape(error.what)}")
    if error.why:
        err.print(f"  why: {escape(error.why)}")
    if error.hint:
        err.print(f"  try: {escape(error.hint)}")


def debug_wanted() -> bool:
    """Whether a traceback is wanted: `--debug` on the command line or SOFTCLIP_DEBUG in the environment."""
    return "--debug" in sys.argv[1:] or bool(os.environ.get("SOFTCLIP_DEBUG"))


def guarded(command: Command) -> Command:
    """Turn the errors of a command into messages and exit codes (see docs/design.md)."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except typer.Exit as ended:
            raise SystemExit(ended.exit_code) from None
        except SoftclipError as error:
            if debug_wanted():
                traceback.print_exc()
            fail(error)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            err.print("interrupted")
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The reader of stdout went away (`softclip ... | head`): not an error of ours.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except Exception as error:
            if debug_wanted():
                traceback.print_exc()
            else:
                last = traceback.extract_tb(error.__traceback__)[-1]
                err.print(f"[bold red]bug:[/bold red] {escape(f'{type(error).__name__}: {error}')}")
                err.print(f"  where: {escape(f'{last.filename}:{last.lineno}')}")
                err.print("  try: the same command with --debug for the whole traceback, and please report it")
            raise SystemExit(1) from None

    return run  # type: ignore[return-value]
