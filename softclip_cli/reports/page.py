"""One self-contained HTML page: pictures and plots inside, nothing fetched; screen, phone, print; light, dark."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli import __version__
from softclip_cli.errors import HostError
from softclip_cli.reports.comparison import Row
from softclip_cli.reports.comparison_table import by_evaluation, p_text, with_interval
from softclip_cli.reports.examples import RetrievalExample, TrainingPair
from softclip_cli.reports.facts import environment, facts_side_by_side
from softclip_cli.reports.images import picture
from softclip_cli.reports.mistakes import Mistakes
from softclip_cli.reports.plots import Plot, clean
from softclip_cli.reports.sections import ClassTable, ResultGroup, forest
from softclip_cli.runs import Run

if TYPE_CHECKING:
    import jinja2

TEMPLATES = resources.files("softclip_cli.reports") / "templates"


@dataclass
class Page:
    """Everything that stands on a page; a part that is empty is left out, heading and all.

    Attributes:
        title, lead: the heading, and paragraphs under it.
        names: of the models, in the order of all cells and series.
        facts: rows of (label, one value a model, whether they differ).
        groups, all_groups: the table of the main results by evaluation, and that of all (empty where it is the same).
        comparison: rows of the paired comparison with the first model; `remarks` stand under them.
        shift, robustness: bars of the accuracy under shifts, and scatter plots against the accuracy without them.
        training, alignment, diagnostics: plots over steps; `ratings` of the agreement with people.
        text_queries, image_queries: retrieval examples, grouped by query.
        pairs, noise: sample training pairs, and what is known of the corpus's noise.
        classes, mistakes: accuracy a class, and which classes are taken for which.
        environments: (name, folder, environment, settings as TOML text) of each run.
        command: what made the page.
    """

    title: str
    names: Sequence[str]
    lead: Sequence[str] = ()
    facts: Sequence[tuple[str, list[str], bool]] = ()
    groups: Sequence[ResultGroup] = ()
    all_groups: Sequence[ResultGroup] = ()
    comparison: Sequence[Row] = ()
    remarks: Sequence[str] = ()
    shift: Plot | None = None
    robustness: Sequence[Plot] = ()
    training: Sequence[Plot] = ()
    alignment: Sequence[Plot] = ()
    ratings: Sequence[Plot] = ()
    diagnostics: Sequence[Plot] = ()
    text_queries: Sequence[Sequence[RetrievalExample]] = ()
    image_queries: Sequence[Sequence[RetrievalExample]] = ()
    retrieval_note: str = ""
    pairs: Sequence[TrainingPair] = ()
    noise: str = ""
    classes: Sequence[ClassTable] = ()
    mistakes: Sequence[Mistakes] = ()
    environments: Sequence[tuple[str, str, Mapping[str, str], str]] = ()
    command: str = ""
    made: str = field(default_factory=lambda: datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"))

    @property
    def retrieval(self) -> bool:
        """Whether there are retrieval examples."""
        return bool(self.text_queries or self.image_queries)

    def html(self) -> str:
        """The page as HTML text."""
        template = template_environment(for_html=True).get_template("page.html.jinja")
        style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
        helpers = {
            "forest": forest,
            "picture": picture,
            "by_evaluation": by_evaluation,
        }
        helpers |= {"with_interval": with_interval, "p_text": p_text}
        return clean(template.render(page=self, version=__version__, style=style, **helpers))

    def write(self, out: Path) -> Path:
        """Write the page to `out` at once (never half a page), making its folder; returns `out`."""
        return write_text(out, self.html())


def run_parts(names: Sequence[str], runs: Sequence[Run]) -> dict[str, Any]:
    """The parts of a page that come from the run folders alone: facts, settings and environments."""
    environments = []
    for name, run in zip(names, runs, strict=True):
        file = run.path / "config.toml"
        settings = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
        environments.append((name, str(run.path), environment(run), settings))
    return {"names": list(names), "facts": facts_side_by_side(runs), "environments": environments}


def write_text(out: Path, text: str) -> Path:
    """Write UTF-8 text to `out` by way of a file beside it, so that there is never half a file; returns `out`.

    Raises:
        HostError: the file cannot be written.
    """
    out = Path(out)
    beside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8", errors="replace")
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise HostError(f"{out} cannot be written", why, "choose another file, or free some space") from error
    return out


def template_environment(*, for_html: bool) -> jinja2.Environment:
    """Where the templates are read; text is escaped for HTML, or left as it is."""
    import jinja2

    loader = jinja2.PackageLoader("softclip_cli.reports", "templates")
    made = jinja2.Environment(
        loader=loader, autoescape=for_html, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return made
