"""The confusion picture: which class is taken for which, classes that are confused with each other lying together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from softclip_cli.errors import HostError, UsageError

NUMBERED = 15  # classes up to which each field shows its number
NAMED = 60  # classes up to which each row has its name; beyond, the most confused pairs are listed beside the picture
LISTED = 30
LANDMARKS = 50  # rows that are named where not all can be
LONGEST = 28  # characters of a class name


def confusion_shares(document: Mapping[str, Any]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """The confusion matrix of a result.

    Returns:
        float64 (C, C): of the images of a row's class, the share that is taken for a column's (zeros where a class has
        no image); the class names; int64 (C,) the images of each class.

    Raises:
        UsageError: the result has no confusion counts.
    """
    details = document["details"]
    if "confusion" not in details:
        raise UsageError(
            "this result has no confusion counts",
            f"it is a {document['task']} result that was made without them",
            "make it with softclip eval zeroshot --confusion FILE.png, on images that have one class each",
        )
    names = [str(row["class"]) for row in details["per_class"]]
    found = details["confusion"]
    counts = np.zeros((len(names), len(names)))
    counts[found["true"], found["predicted"]] = found["n"]
    sizes = counts.sum(axis=1)
    return counts / np.maximum(sizes, 1)[:, None], names, sizes.astype(np.int64)


def confusion_order(shares: np.ndarray) -> np.ndarray:
    """An order of the classes in which those that are confused are neighbours.

    Average-linkage clustering of the shares in both directions, its leaves ordered so that neighbours are as near as the
    tree allows (Bar-Joseph, Gifford, Jaakkola 2001), by SciPy.

    Args:
        shares: float (C, C), see `confusion_shares`.

    Returns:
        int64 (C,), a permutation.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(shares) < 3:
        return np.arange(len(shares))
    near = np.clip((shares + shares.T) / 2, 0, 1)
    far = 1 - near
    np.fill_diagonal(far, 0)
    return leaves_list(linkage(squareform(far, checks=False), "average", optimal_ordering=True)).astype(np.int64)


def most_confused(shares: np.ndarray, names: list[str], count: int = LISTED) -> list[tuple[str, str, float]]:
    """The pairs (true class, taken for, share) of the largest shares off the diagonal, largest first."""
    wrong = shares.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [
        (names[r], names[c], float(wrong[r, c]))
        for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        if wrong[r, c]
    ]


def write_confusion(document: Mapping[str, Any], path: Path) -> Path:
    """Draw the confusion picture of a zero-shot result.

    Up to `NUMBERED` classes have their numbers in the fields and up to `NAMED` their names beside the rows; of more
    classes, which no page has room for, the most confused pairs are listed instead.

    Args:
        document: a result that has confusion counts.
        path: `.png`, `.svg` or `.pdf`.

    Returns:
        `path`.

    Raises:
        UsageError: no confusion counts, or a file ending that cannot be drawn.
        HostError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    check_ending(path)
    shares, names, sizes = confusion_shares(document)
    order = confusion_order(shares)
    shares, names, sizes = shares[order][:, order], [_short(names[i]) for i in order], sizes[order]
    count = len(names)
    with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 10, "text.parse_math": False}):
        side = min(12.0, max(4.5, 0.42 * count)) if count <= NAMED else 9.0
        figure = Figure(
            figsize=(side + 2.6 if count <= NAMED else 16, side + 1.4 if count <= NAMED else 9.6),
            dpi=150,
            layout="constrained",
        )
        if count <= NAMED:
            axes = figure.add_subplot()
        else:
            axes, beside = figure.subplots(1, 2, width_ratios=(9, 5))
            _list_pairs(beside, most_confused(shares, names))
        # A confusion of one in twenty must be seen beside a diagonal near 1: the square root of the share is coloured.
        drawn = axes.imshow(
            _thick(shares) if count > NAMED else shares,
            cmap="magma_r",
            norm=PowerNorm(0.5, 0, 1),
            interpolation="nearest",
            extent=(-0.5, count - 0.5, count - 0.5, -0.5),
        )
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.02, ticks=[0, 0.05, 0.2, 0.5, 1])
        bar.ax.set_yticklabels(["0 %", "5 %", "20 %", "50 %", "100 %"])
        bar.set_label("share of the true class")
        if count <= NAMED:
            axes.set_xticks(range(count), names, rotation=90 if count > 6 else 0)
            axes.set_yticks(range(count), names)
        else:
            some = range(0, count, -(-count // LANDMARKS))
            axes.set_xticks([])
            axes.set_yticks(some, [names[i] for i in some], fontsize=7)
        if count <= NUMBERED:
            for row, column in np.ndindex(count, count):
                share = shares[row, column]
                if sizes[row] and share >= 0.005:
                    dark = share > 0.25
                    axes.text(
                        column, row, f"{100 * share:.0f}", ha="center", va="center", color="white" if dark else "black"
                    )
        axes.set_ylabel("true class" if count <= NAMED else f"true class (some of {count:,} are named)")
        axes.set_xlabel("predicted class" if count <= NAMED else "predicted class, in the order of the rows")
        data, top1 = document["dataset"], document["metrics"]["top1"]["value"]
        figure.suptitle(
            f"{document['model']['name']} on {data['name']}, split {data['split']}: {data['size']:,} images,"
            f" {count:,} classes, top-1 {100 * top1:.1f} %",
            fontsize=11,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except OSError as error:
            raise HostError(f"the picture cannot be written to {path}", str(error), "choose another file") from error
    return path


def check_ending(path: Path) -> None:
    """Check that a picture can be drawn into a file of this name.

    Raises:
        UsageError: by its ending it cannot.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(
            f"no picture can be drawn into {path}", "its name ends in none of .png, .svg, .pdf", "name it FILE.png"
        )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _thick(shares: np.ndarray) -> np.ndarray:
    """Each field at least as large as what a page shows: a field takes the largest share of its 3 × 3 neighbourhood.

    A field of 1,000 × 1,000 is a pixel, which the eye misses; two further ones make it a dot.
    """
    reach = 1 if len(shares) > 300 else 0
    grown = shares.copy()
    size = len(shares)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            rows, columns = slice(max(0, down), size + min(0, down)), slice(max(0, right), size + min(0, right))
            from_rows = slice(max(0, -down), size + min(0, -down))
            from_columns = slice(max(0, -right), size + min(0, -right))
            grown[rows, columns] = np.maximum(grown[rows, columns], shares[from_rows, from_columns])
    return grown


def _list_pairs(axes: Any, pairs: list[tuple[str, str, float]]) -> None:
    axes.set_axis_off()
    axes.set_title("most confused: true class → taken for", loc="left", fontsize=10)
    for number, (true, taken, share) in enumerate(pairs):
        place = 1 - (number + 0.5) / LISTED
        axes.text(0.09, place, f"{100 * share:.0f} %", ha="right", va="center", fontsize=8, transform=axes.transAxes)
        axes.text(0.11, place, f"{true} → {taken}", va="center", fontsize=8, transform=axes.transAxes)
