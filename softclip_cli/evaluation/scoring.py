"""Cosine scores between sets of embeddings, in blocks: never the whole matrix."""

from __future__ import annotations

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


def rank_texts(
    images: Tensor,
    texts: Tensor,
    owner: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    device: torch.device | str = "cpu",
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
    """
    total = len(owner)
    columns = texts.to(device).T
    pick = None if rows is None else torch.from_numpy(rows).to(device)
    owners = torch.from_numpy(np.asarray(owner, dtype=np.int64)).to(device)
    starts = np.searchsorted(owner, np.arange(len(images) + 1))
    better, equal, own = (np.empty(len(images), dtype=np.int64) for _ in range(3))
    step = block_rows(2 * total if pick is not None else total)
    for start in range(0, len(images), step):
        stop = min(start + step, len(images))
        scores = images[start:stop].to(device) @ columns
        if pick is not None:
            scores = scores[:, pick]
        first, last = int(starts[start]), int(starts[stop])
        row = owners[first:last] - start
        mine = scores[row, torch.arange(first, last, device=scores.device)]
        best = torch.full((stop - start,), -torch.inf, device=scores.device).scatter_reduce(0, row, mine, "amax")
        reached = torch.zeros_like(row).new_zeros(stop - start).scatter_add(0, row, (mine == best[row]).long())
        better[start:stop] = (scores > best[:, None]).sum(dim=1).cpu().numpy()
        equal[start:stop] = ((scores == best[:, None]).sum(dim=1) - reached).cpu().numpy()
        own[start:stop] = reached.cpu().numpy()
    return Ranks(better, equal, own)


def rank_images(images: Tensor, texts: Tensor, owner: np.ndarray, *, device: torch.device | str = "cpu") -> Ranks:
    """Text→image: where each text's own image stands among all images. Arguments as for `rank_texts`, U = M."""
    columns = images.to(device).T
    owners = torch.from_numpy(np.asarray(owner, dtype=np.int64)).to(device)
    better, equal = np.empty(len(texts), dtype=np.int64), np.empty(len(texts), dtype=np.int64)
    step = block_rows(len(images))
    for start in range(0, len(texts), step):
        stop = min(start + step, len(texts))
        scores = texts[start:stop].to(device) @ columns
        mine = scores.gather(1, owners[start:stop, None])
        better[start:stop] = (scores > mine).sum(dim=1).cpu().numpy()
        equal[start:stop] = (scores == mine).sum(dim=1).cpu().numpy() - 1
    return Ranks(better, equal, np.ones(len(texts), dtype=np.int64))
