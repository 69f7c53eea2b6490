"""A folder that appears when it is whole: written beside its place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softclip_cli.data.corpus import check_output


@contextmanager
def beside(out: Path, overwrite: bool, *, what: str, mark: str) -> Iterator[Path]:
    """A folder to write into, which takes the place of `out` at the end, or goes when something fails.

    Args:
        out: where the folder will stand.
        overwrite: whether one that softclip made may be replaced.
        what: is made, for messages.
        mark: the file by which softclip knows what it made.

    Raises:
        DataError: `out` is in the way.
    """
    check_output(out, overwrite, what=what, mark=mark)
    out = out.absolute()
    work, old = (out.with_name(f".{out.name}.{os.getpid()}.{part}") for part in ("partial", "old"))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        if out.exists():
            out.rename(old)
        work.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
