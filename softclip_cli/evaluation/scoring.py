"""Cosine scores between sets of embeddings, in blocks: never the whole matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from softclip_cli.evaluation.ranks import Ranks

BLOCK_BYTES = 128 << 20  # of scores held at once


def block_rows(columns: int, block_bytes: int = BLOCK_BYTES) -> int:
    """How many rows of `columns` float32 scores make one block."""
    return max(1, block_bytes // (4 * max(1, columns)))


def top_matches(queries: Tensor, gallery: Tensor, k: int, *, device: torch.device | str = "cpu") -> np.ndarray:
    """The k gallery items of the highest score for each query, best first.

    Args:
        queries: float32 (Q, d), normalised.
        gallery: float32 (G, d), normalised.
        k: at most G are returned.

    Returns:
        int64 (Q, min(k, G)).
    """
    k, rows = min(k, len(gallery)), block_rows(len(gallery))
    columns = gallery.to(device).T
    parts = [
        torch.topk(queries[i : i + rows].to(device) @ columns, k, dim=1).indices.cpu()
        for i in range(0, len(queries), rows)
    ]
    return torch.cat(parts).numpy()


class Block:
    """Memory for the scores of some queries with a whole gallery, used again for each block.

    Fresh memory for each would cost more than the product: the system clears it page by page.

    Args:
        queries, gallery: the most of each, at least 1.
        device: where to multiply.
    """

    def __init__(self, queries: int, gallery: int, device: torch.device) -> None:
        self.queries = queries
        self._scores = torch.empty(queries, gallery, device=device)
        self._mask = torch.empty(queries, gallery, dtype=torch.bool, device=device)
        self._rows = 0

    def scores(self, queries: Tensor, columns: Tensor, pick: Tensor | None = None) -> Tensor:
        """float32 (Q, G) products of queries (Q, d) and columns (d, G), or, with `pick`, its columns `pick`. Valid until the next call."""
        self._rows = len(queries)
        scores = self._scores[: self._rows]
        if pick is None:
            return torch.mm(queries, columns, out=scores)
        return torch.index_select(queries @ columns, 1, pick, out=scores)

    def held(self) -> Tensor:
        """The scores of the last call."""
        return self._scores[: self._rows]

    def count(self, compare: Callable[..., Tensor], limits: Tensor, *, across: bool = False) -> np.ndarray:
        """int64 (Q,): how many of a query's scores compare so (torch.gt, torch.eq) with its limit (Q,).

        With `across`, how many of a gallery item's scores do, with its limit (G,): int64 (G,).
        """
        limits = limits if across else limits[:, None]
        mask = compare(self.held(), limits, out=self._mask[: self._rows])
        dim = 0 if across else 1
        if mask.device.type == "cpu":  # torch adds truth values one by one, at a tenth of the rate
            return np.count_nonzero(mask.numpy(), axis=dim)
        return mask.sum(dim=dim).cpu().numpy()


def rank_texts(
    images: Tensor,
    texts: Tensor,
    owner: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    block: Block | None = None,
) -> Ranks:
    """Image→text: where the best of each image's own texts stands among all texts.

    The own scores are read from the block that they are compared with. (A separate dot product rounds differently,
    which has moved R@1 by half.)

    Args:
        images: float32 (N, d).
        texts: float32 (U, d).
        owner: int64 (M,), ascending: the image of each text; each image has at least one.
        rows: int64 (M,), the row of `texts` that each text is, where equal texts share one (so that they tie exactly);
            None: U = M, row i is text i.
        device: where to multiply.
        block: memory to use, for as many images as it holds at once; by default `block_rows`.
    """
    total = len(owner)
    columns = texts.to(device).T
    pick = None if rows is None else torch.from_numpy(rows).to(device)
    owners = torch.from_numpy(np.asarray(owner, dtype=np.int64)).to(device)
    starts = np.searchsorted(owner, np.arange(len(images) + 1))
    better, equal, own = (np.empty(len(images), dtype=np.int64) for _ in range(3))
    if block is None:
        block = Block(min(block_rows(2 * total if pick is not None else total), len(images)), total, columns.device)
    step = block.queries
    for start in range(0, len(images), step):
        stop = min(start + step, len(images))
        scores = block.scores(images[start:stop].to(device), columns, pick)
        first, last = int(starts[start]), int(starts[stop])
        row = owners[first:last] - start
        mine = scores[row, torch.arange(first, last, device=scores.device)]
        best = torch.full((stop - start,), -torch.inf, device=scores.device).scatter_reduce(0, row, mine, "amax")
        reached = torch.zeros_like(row).new_zeros(stop - start).scatter_add(0, row, (mine == best[row]).long())
        own[start:stop] = reached.cpu().numpy()
        better[start:stop] = block.count(torch.gt, best)
        equal[start:stop] = block.count(torch.eq, best) - own[start:stop]
    return Ranks(better, equal, own)


def rank_both(
    images: Tensor,
    texts: Tensor,
    owner: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Ranks, Ranks]:
    """Image→text and text→image. Arguments as for `rank_texts`.

    Scores that fit one block are computed once for both; otherwise each direction makes its own blocks, since a text's own
    score would come with a later block than many of those that it is compared with.
    """
    total = len(owner)
    if block_rows(total if rows is None else 2 * total) < len(images):
        to_image = rank_images(images, texts, owner, rows=rows, device=device)
        return rank_texts(images, texts, owner, rows=rows, device=device), to_image
    block = Block(len(images), total, torch.device(device))
    to_text = rank_texts(images, texts, owner, rows=rows, device=device, block=block)
    owners = torch.from_numpy(np.asarray(owner, dtype=np.int64)).to(device)
    mine = block.held()[owners, torch.arange(total, device=owners.device)]
    better = block.count(torch.gt, mine, across=True)
    equal = block.count(torch.eq, mine, across=True) - 1
    return to_text, Ranks(better, equal, np.ones(total, dtype=np.int64))


def rank_images(
    images: Tensor,
    texts: Tensor,
    owner: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> Ranks:
    """Text→image: where each text's own image stands among all images. Arguments as for `rank_texts`."""
    columns = images.to(device).T
    owners = torch.from_numpy(np.asarray(owner, dtype=np.int64)).to(device)
    pick = None if rows is None else torch.from_numpy(rows)
    total = len(owner)
    better, equal = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    step = min(block_rows(len(images)), total)
    block = Block(step, len(images), columns.device)
    for start in range(0, total, step):
        stop = min(start + step, total)
        some = texts[start:stop] if pick is None else texts[pick[start:stop]]
        scores = block.scores(some.to(device), columns)
        mine = scores.gather(1, owners[start:stop, None])[:, 0]
        better[start:stop] = block.count(torch.gt, mine)
        equal[start:stop] = block.count(torch.eq, mine) - 1
    return Ranks(better, equal, np.ones(total, dtype=np.int64))
