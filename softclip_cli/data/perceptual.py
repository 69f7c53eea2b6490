"""Tiny views compared: hashes that survive re-encoding, resizing, brightening and small crops, and how alike two views are.

The hash is the DCT hash of Zauner (2010, "Implementation and benchmarking of perceptual image hash functions", pHash):
the signs of the 63 lowest frequencies of the brightness. A crop moves many of its bits, so an image is looked up by the hashes
of small crops of itself as well (`WINDOWS`), which needs no second decoding: they are cut from its tiny view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softclip_cli.data.signature import CHROMA, LUMA, Views

BITS = 63
SIDE = 8  # the hash is of the SIDE × SIDE lowest frequencies, without the constant
BLUR = 3.0  # cells: what is smoother than this (sky above field) does not make two pictures alike
WORST = 10  # cells of 64 over which colours are compared: those that differ most
FLAT = 2.0  # grey levels: a view with less detail than this has nothing to compare


@dataclass(frozen=True)
class Window:
    """A part of an image: offset and size along each axis, as shares of the side."""

    top: float
    left: float
    size: float


def windows(sizes: dict[float, int]) -> list[Window]:
    """Square windows of each size at `count` × `count` places, spread evenly from edge to edge."""
    found = []
    for size, count in sizes.items():
        places = np.linspace(0, 1 - size, count) if count > 1 else np.array([(1 - size) / 2])
        found += [Window(float(top), float(left), size) for top in places for left in places]
    return found


# Looked up by: the whole, and crops that take 5 % or 10 % off each side length. Between them lies less than a hash feels.
WINDOWS = windows({1.0: 1, 0.95: 3, 0.9: 3})
# Compared by, once two images are candidates: steps of a third of a cell.
FINE_WINDOWS = windows({1.0: 1, 0.975: 3, 0.95: 5, 0.925: 7, 0.9: 9})


def cosines(cells: int, count: int) -> np.ndarray:
    """The first `count` rows of the orthonormal DCT-II over `cells` samples: float32 (count, cells)."""
    places = np.pi * (np.arange(cells) + 0.5) / cells
    table = np.cos(np.arange(count)[:, None] * places) * np.sqrt(2 / cells)
    table[0] /= np.sqrt(2)
    return table.astype(np.float32)


def cutting(cells: int, offset: float, size: float) -> np.ndarray:
    """The matrix (cells, cells) that samples a window of a line anew by linear interpolation: float32."""
    places = (offset + (np.arange(cells) + 0.5) / cells * size) * cells - 0.5
    places = places.clip(0, cells - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, cells - 1)
    table = np.zeros((cells, cells))
    table[np.arange(cells), low] += 1 - (places - low)
    table[np.arange(cells), high] += places - low
    return table.astype(np.float32)


class Hasher:
    """The 63 coefficients of each of some windows of many views at once."""

    def __init__(self, looked_at: list[Window] | None = None) -> None:
        looked_at = looked_at or WINDOWS
        lines = sorted({(w.top, w.size) for w in looked_at} | {(w.left, w.size) for w in looked_at})
        table = cosines(LUMA, SIDE)
        self.lines = np.concatenate([table @ cutting(LUMA, *line) for line in lines])  # (lines · SIDE, LUMA)
        self.rows = np.array([lines.index((w.top, w.size)) for w in looked_at])
        self.columns = np.array([lines.index((w.left, w.size)) for w in looked_at])

    def coefficients(self, luma: np.ndarray) -> np.ndarray:
        """(N, 24, 24) uint8 → (N, windows, 63) float32."""
        count, lines = len(luma), len(self.lines)
        # Every line of windows with every other in two products of large matrices.
        down = self.lines @ luma.transpose(1, 0, 2).reshape(LUMA, -1).astype(np.float32)  # (lines, N · LUMA)
        across = down.reshape(lines * count, LUMA) @ self.lines.T  # (lines · N, lines)
        table = across.reshape(lines // SIDE, SIDE, count, lines // SIDE, SIDE)
        chosen = table[self.rows, :, :, self.columns, :]  # (windows, SIDE, N, SIDE)
        return chosen.transpose(2, 0, 1, 3).reshape(count, len(self.rows), SIDE * SIDE)[..., 1:]


def packed(bits: np.ndarray) -> np.ndarray:
    """Booleans (..., n ≤ 64) → uint64 (...), the first bit lowest."""
    weights = np.uint64(1) << np.arange(bits.shape[-1], dtype=np.uint64)
    return (bits * weights).sum(-1, dtype=np.uint64)


def details(luma: np.ndarray) -> np.ndarray:
    """Views without what is smooth in them: (N, 24, 24) → float32 (N, 24, 24), in the frequency domain."""
    table = cosines(LUMA, LUMA)
    # A Gaussian blur with reflecting edges is a factor on each frequency of the DCT.
    angle = np.pi * np.arange(LUMA) / LUMA
    kept = np.exp(-0.5 * (BLUR * angle) ** 2)
    factor = (1 - kept[:, None] * kept).astype(np.float32)
    return (table @ luma.astype(np.float32) @ table.T) * factor


def is_flat(luma: np.ndarray) -> np.ndarray:
    """(N, 24, 24) → bool (N,): views without detail, such as a blank page; near-duplicates cannot be told of them."""
    energy = np.square(details(luma)).mean((1, 2))
    return energy < FLAT**2


def spread(luma: np.ndarray) -> np.ndarray:
    """How much of each view has detail in it: (N, 24, 24) → float32 (N,), about a third for a photo, near 0 for a few strokes.

    The participation ratio (Σe)² / (n Σe²) of the energies e of the details over the n cells.
    """
    table = cosines(LUMA, LUMA)
    energy = np.square(table.T @ details(luma) @ table).reshape(len(luma), -1)
    return np.square(energy.sum(1)) / np.maximum(np.square(energy).sum(1) * LUMA * LUMA, 1e-6)


def likeness(one: Views, other: Views, looked_at: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """How alike pairs of views are: the correlation of their details under the best window of `one`, and which that is.

    1 means the same picture up to brightness and contrast; different pictures have about 0, and rarely more than 0.8.

    Returns:
        float32 (N,) and the numbers of the windows, int64 (N,).
    """
    best = np.full(len(one.luma), -1.0, np.float32)
    which = np.zeros(len(best), np.int64)
    target = _unit(details(other.luma))
    source = one.luma.astype(np.float32)
    for number, window in enumerate(looked_at):
        cut = cutting(LUMA, window.top, window.size) @ source @ cutting(LUMA, window.left, window.size).T
        alike = (_unit(details(cut)) * target).sum(1)
        which[alike > best] = number
        np.maximum(best, alike, out=best)
    return best, which


def _unit(views: np.ndarray) -> np.ndarray:
    flat = views.reshape(len(views), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def colour_distance(one: Views, other: Views, of_one: list[Window]) -> np.ndarray:
    """How far apart the colours of pairs of views are, in levels of 255, float32 (N,).

    Each cell is compared with the likest of the nine cells around its place in the other view, as no window fits exactly; the
    mean is over the WORST cells, for a small thing in another colour makes another picture.

    Args:
        one, other: N views each.
        of_one: the window of each view of `one` that the other shows.
    """
    rows = np.stack([cutting(CHROMA, window.top, window.size) for window in of_one])[:, None]
    columns = np.stack([cutting(CHROMA, window.left, window.size) for window in of_one])[:, None]
    cut = rows @ one.chroma.astype(np.float32) @ columns.swapaxes(-1, -2)
    whole = other.chroma.astype(np.float32)
    return np.maximum(_worst_cells(cut, whole), _worst_cells(whole, cut))


def _worst_cells(own: np.ndarray, among: np.ndarray) -> np.ndarray:
    padded = np.pad(among, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    least = np.full((len(own), CHROMA, CHROMA), np.inf, np.float32)
    for down in range(3):
        for across in range(3):
            there = padded[:, :, down : down + CHROMA, across : across + CHROMA]
            np.minimum(least, np.square(own - there).sum(1), out=least)
    cells = np.sqrt(least).reshape(len(own), CHROMA * CHROMA)
    return np.partition(cells, -WORST, axis=1)[:, -WORST:].mean(1)
