"""Little sources for the tests of `softclip data prepare`: images whose content is known, and folders of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from softclip_cli.data.corpus import Corpus


def jpeg(number: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    """A JPEG that differs with its number."""
    return image_bytes(number, size, "JPEG")


def image_bytes(number: int, size: tuple[int, int], kind: str) -> bytes:
    """An encoded image that differs with its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs_folder(root: Path, count: int = 6) -> Path:
    """A folder of `0.jpg` + `0.txt`, ..."""
    for number in range(count):
        put(root / f"{number}.jpg", jpeg(number))
        put(root / f"{number}.txt", f"caption {number}\n")
    return root


def rows(corpus: Corpus, split: str = "train") -> list[dict]:
    """All rows of a split."""
    return corpus.split(split).to_list()


def dropped(corpus: Corpus) -> list[tuple[str, str, str]]:
    """(key, split, reason) of all that is in dropped.parquet."""
    table = pq.read_table(corpus.path / "dropped.parquet").to_pylist()
    return [(row["key"], row["split"], row["reason"]) for row in table]


def double_or_die(numbers: list[int]) -> list[int]:
    """Work for the tests of `ordered_map`: doubles, and kills its process at 13, as a crashing decoder does."""
    import os

    if 13 in numbers:
        os._exit(9)
    return [2 * number for number in numbers]


def double_and_lose_a_worker(mark: str, numbers: list[int]) -> list[int]:
    """Work for the tests of `ray_ordered_map`: doubles, and at 13, the first time, kills the worker that waits for it."""
    import os
    import signal
    from multiprocessing import parent_process

    worker = parent_process()
    if 13 in numbers and worker is not None and not Path(mark).exists():
        Path(mark).touch()
        os.kill(worker.pid or 0, signal.SIGKILL)
    return [2 * number for number in numbers]


def process_ids(numbers: list[int]) -> list[int]:
    """Work for the tests of `ordered_map`: where it ran."""
    import os

    return [os.getpid() for _ in numbers]
