"""The gallery of an audit: the pairs that are probably mismatched, and the pairs that the corpus misses, to be judged by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from softclip_cli import __version__
from softclip_cli.reports.images import picture
from softclip_cli.reports.page import TEMPLATES, template_environment, write_text
from softclip_cli.reports.plots import Plot, clean, drawing, inline_svg, series_colour

EVIDENCE = {
    "cosine": "cosine",
    "image_to_text": "ln share of this caption for the image",
    "text_to_image": "ln share of this image for the caption",
    "siblings": "agreement with the image's other captions",
    "image_neighbours": "agreement with what is said of similar images",
    "caption_neighbours": "agreement with what is seen where similar things are said",
    "seen_image_to_text": "ln share of the caption, mean over training",
    "seen_text_to_image": "ln share of the image, mean over training",
    "seen_own_weight": "weight in the soft target, mean over training",
}


@dataclass(frozen=True)
class SuspectPair:
    """One of the worst pairs.

    Attributes:
        image: encoded.
        key: of the image.
        caption: the doubtful one.
        others: the image's other captions.
        mismatched: probability, in [0, 1].
        evidence: (what, value, the share of all pairs that have less, in [0, 1]).
        better: the caption of another image that fits best, or empty.
        better_key: of that image.
    """

    image: bytes
    key: str
    caption: str
    others: Sequence[str]
    mismatched: float
    evidence: Sequence[tuple[str, float, float]]
    better: str = ""
    better_key: str = ""


@dataclass(frozen=True)
class MissedPair:
    """An image and another image's caption that fit.

    Attributes:
        image, other: encoded.
        key, other_key: of the images.
        caption: of the other image.
        own: a caption of the image itself.
        beats: the share of the corpus's own pairs that score lower.
    """

    image: bytes
    key: str
    caption: str
    own: str
    other: bytes
    other_key: str
    beats: float


def write_audit_page(
    out: Path,
    document: Mapping[str, Any],
    suspects: Sequence[SuspectPair],
    missed: Sequence[MissedPair],
    probabilities: Sequence[float],
    groups: Sequence[tuple[str, int, float, int]] = (),
    group_name: str = "",
) -> Path:
    """Write the gallery as one self-contained page; returns `out`.

    Args:
        out: the file to write.
        document: what `audit.json` holds.
        suspects: the worst pairs, the worst first.
        missed: the strongest missed positives.
        probabilities: of all pairs, for a histogram.
        groups: (name, captions, mean probability, expected mismatches) of each group.
        group_name: what the groups are.

    Raises:
        HostError: the file cannot be written.
    """
    template = template_environment(for_html=True).get_template("audit.html.jinja")
    text = template.render(
        name=Path(document["corpus"]["path"]).resolve().name,
        document=document,
        suspects=suspects,
        missed=missed,
        groups=groups,
        group_name=group_name,
        labels=EVIDENCE,
        plot=_histogram(probabilities),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        picture=picture,
    )
    return write_text(out, clean(text))


def _histogram(probabilities: Sequence[float]) -> Plot | None:
    if not len(probabilities):
        return None
    bins = [0] * 20
    for value in probabilities:
        bins[min(19, int(20 * value))] += 1
    title = "Probability that a pair is mismatched"
    words = f"{title}. {bins[0]:,} of {len(probabilities):,} pairs are below 5 %, {bins[-1]:,} above 95 %."
    with drawing(height=2.4) as (figure, axes):
        axes.bar(
            [5 * (place + 0.5) for place in range(20)],
            [max(count, 0.5) for count in bins],
            width=4.4,
            color=series_colour(0),
        )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.minorticks_off()
        axes.set_xlabel("probability (%)")
        axes.set_ylabel("pairs")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0.5)
        return Plot(title, inline_svg(figure, "audit-probability", title, words), words)
