"""A corpus as one page: what `softclip data inspect` counts, and a contact sheet to see whether the captions fit the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli import __version__
from softclip_cli.reports.images import picture
from softclip_cli.reports.page import TEMPLATES, template_environment, write_text
from softclip_cli.reports.plots import DASHES, SERIES, Plot, clean, drawing, inline_svg, series_colour

if TYPE_CHECKING:
    from softclip_cli.data.contact_sheet import Double, Sample

CAPTIONS_SHOWN = 5  # of a sample
TAIL = 0.995  # a histogram ends where this share of the values lies before


def write_corpus_page(
    out: Path, found: Mapping[str, Any], samples: Sequence[Sample] = (), doubles: Sequence[Double] = ()
) -> Path:
    """Write the page; returns `out`.

    Args:
        out: the file to write.
        found: the document of `data.inspection.inspect_corpus`.
        samples: images with captions for the contact sheet (`data.contact_sheet.draw_samples`).
        doubles: pairs of images that show the same picture.

    Raises:
        HostError: the file cannot be written.
    """
    splits: dict[str, dict[str, Any]] = found["splits"]
    template = template_environment(for_html=True).get_template("corpus.html.jinja")
    text = template.render(
        name=Path(found["path"]).resolve().name,
        found=found,
        splits=splits,
        images=sum(split["rows"] for split in splits.values()),
        captions=sum(split["captions"] for split in splits.values()),
        plots=_plots(splits),
        samples={name: [sample for sample in samples if sample.split == name] for name in splits},
        doubles=doubles,
        signs=sign_rows(splits),
        duplicates=duplicate_rows(found.get("duplicates") or {}),
        shown=CAPTIONS_SHOWN,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        picture=picture,
        range=range_text,
        share=share_text,
    )
    return write_text(out, clean(text))


def range_text(values: Mapping[str, float] | None) -> str:
    """Smallest, median and largest, as text."""
    if values is None:
        return "–"
    if values["min"] == values["max"]:
        return f"{values['min']:,}"
    return f"{values['min']:,} / {values['median']:,g} / {values['max']:,}"


def share_text(part: int, whole: int) -> str:
    """A number with its share of the whole."""
    if not part or not whole:
        return f"{part:,}"
    share = f"{part / whole:.1%}"
    return f"{part:,} ({'<0.1%' if share == '0.0%' else share})"


def duplicate_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of duplicates, as rows of a label and a value; empty where nothing was compared."""
    if not found.get("images"):
        return []
    leaks = sum(found["leaks"].values())
    rows = [
        ("the same pixels as an earlier image of the split", share_text(found["exact"], found["images"])),
        ("the same picture as an earlier image of the split", share_text(found["near"], found["images"])),
        ("training images that are also in a split for evaluation", share_text(leaks, found["images"])),
        ("duplicates within the splits for evaluation", share_text(found["evaluation"], found["images"])),
    ]
    if found["apart"]:
        rows.append(("the same picture in two other splits", f"{found['apart']:,}"))
    if found["largest"] > 2:
        rows.append(("images in the largest set of duplicates", f"{found['largest']:,}"))
    return rows


def sign_rows(splits: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Signs of noise in the captions, as rows of a label and a value for each split."""
    labels: dict[str, Any] = {
        "captions that stand on several images": lambda s: share_text(s["shared"]["captions"], s["captions"]),
        "of one or two words": lambda s: share_text(s["short"], s["captions"]),
        "file names, addresses, numbers": lambda s: share_text(s["no_sentence"], s["captions"]),
        "no word in common with the image's other captions": lambda s: f"{s['odd']['share']:.1%}" if s["odd"] else "–",
        "the same for captions of another image (chance)": lambda s: (
            f"{s['odd']['by_chance']:.1%}" if s["odd"] else "–"
        ),
        "so single wrong captions are at most": lambda s: odd_bound(s["odd"]),
    }
    known = [split.get("signs") for split in splits.values()]
    if not any(known):
        return []
    return [(label, [value(signs) if signs else "–" for signs in known]) for label, value in labels.items()]


def odd_bound(odd: Mapping[str, Any] | None) -> str:
    """An upper bound of the share of captions that belong to another image, one at a time.

    A wrong caption has no word in common with the others as often as chance says; right ones add to the count. So the share of
    wrong ones is at most odd / chance. Where all captions of an image are wrong together this sees nothing.
    """
    if not odd or odd["by_chance"] < 0.2:
        return "–"
    return f"{min(1.0, odd['share'] / odd['by_chance']):.1%}"


def _plots(splits: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    words = {name: split["words_per_caption"] for name, split in splits.items()}
    sides = {name: split["images"].get("shorter_side") for name, split in splits.items()}
    plots = [
        _histogram("words", "Length of the captions", "words", "captions", words),
        _histogram("sides", "Size of the images (sampled)", "shorter side in pixels", "images", sides),
    ]
    return [plot for plot in plots if plot is not None]


def _histogram(
    name: str, title: str, unit: str, what: str, ranges: Mapping[str, Mapping[str, Any] | None]
) -> Plot | None:
    """Shares of values, a line a split; None where there is nothing to see in it."""
    known = {
        split: values["counts"] for split, values in list(ranges.items())[:SERIES] if values and values.get("counts")
    }
    if not known or all(len(counts) < 2 for counts in known.values()):
        return None
    end = max(_tail(counts) for counts in known.values())
    width = max(1, -(-(end + 1) // 50))
    words = []
    with drawing(height=2.8) as (figure, axes):
        for index, (split, counts) in enumerate(known.items()):
            bins = [0.0] * (end // width + 2)
            total = sum(number for _, number in counts)
            for value, number in counts:
                bins[min(value // width, len(bins) - 1)] += 100 * number / total
            axes.plot(
                [(place + 0.5) * width - 0.5 for place in range(len(bins))],
                bins,
                color=series_colour(index),
                linestyle=DASHES[index % SERIES],
                drawstyle="steps-mid",
                label=clean(split),
            )
            top = max(range(len(bins)), key=bins.__getitem__)
            words.append(f"{split}: most at about {top * width} {unit}")
        axes.set_xlabel(unit)
        axes.set_ylabel(f"{what} (%)")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=max(0, min(counts[0][0] for counts in known.values()) - width))
        if len(known) > 1:
            figure.legend(loc="outside upper left", ncols=min(4, len(known)))
        description = f"{title}. {'; '.join(words)}."
        return Plot(title, inline_svg(figure, f"corpus-{name}", title, description), description)


def _tail(counts: Sequence[Sequence[int]]) -> int:
    total, seen = sum(number for _, number in counts), 0
    for value, number in counts:
        seen += number
        if seen >= TAIL * total:
            return value
    return counts[-1][0]
