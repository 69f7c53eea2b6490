"""The sheet of leaks: each training image beside the evaluation image that it shows, to be judged by eye."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from softclip_cli import __version__
from softclip_cli.reports.images import picture
from softclip_cli.reports.page import TEMPLATES, template_environment, write_text
from softclip_cli.reports.plots import clean

if TYPE_CHECKING:
    from softclip_cli.data.leaks import Leak


def write_leaks_page(out: Path, corpus: str, leaks: Sequence[Leak]) -> Path:
    """Write the sheet as one self-contained page; returns `out`.

    Args:
        out: the file to write.
        corpus: what the training images belong to, for the heading.
        leaks: as `data.leaks.read_leaks` gives them.

    Raises:
        HostError: the file cannot be written.
    """
    template = template_environment(for_html=True).get_template("leaks.html.jinja")
    removed = sum(leak.removed for leak in leaks)
    text = template.render(
        corpus=Path(corpus).name or corpus,
        leaks=leaks,
        shown=[leak for leak in leaks if leak.image],
        sets=Counter(leak.of_set for leak in leaks),
        removed=removed,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        picture=picture,
    )
    return write_text(out, clean(text))
