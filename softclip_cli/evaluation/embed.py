"""Images and texts to float32 embeddings: decoded in worker processes, checked, and cached under what shaped them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softclip_cli import __version__
from softclip_cli.data.decode import Preprocess
from softclip_cli.errors import DataError, ModelError, UsageError
from softclip_cli.evaluation.cache import FeatureCache
from softclip_cli.evaluation.images import ImageSource, as_images
from softclip_cli.evaluation.spread import Spread
from softclip_cli.evaluation.views import Views, choose_workers, collate, shared_memory_suffices

Progress = Callable[[int, int], None]
Kind = Literal["projected", "trunk"]
PRECISIONS = ("fp32", "bf16")


class NotFiniteError(ModelError):
    """A model gives embeddings that are no numbers."""


class EmbeddingModel(Protocol):
    """What the evaluations need of a model; `registry.Model` has it."""

    reference: str
    name: str
    net: nn.Module
    preprocess: Preprocess

    @property
    def device(self) -> torch.device: ...
    def tokenize(self, texts: list[str]) -> Tensor: ...
    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor: ...
    def image_trunk(self, pixels: Tensor) -> Tensor: ...
    def image_head(self, features: Tensor, normalize: bool = True) -> Tensor: ...
    def fingerprint(self, part: str = "") -> str: ...


@dataclass(frozen=True)
class EmbedOptions:
    """How to embed. Only `precision` changes the numbers.

    Attributes:
        batch_size: images a batch, by default 256 on an accelerator and 64 on a CPU.
        workers: decoding processes; None chooses (see `choose_workers`).
        precision: "fp32", or "bf16" for autocast. Embeddings come back as float32 either way.
        cache: where to look for and keep image features; None computes them anew.
        spread: the processes that share the work, each of which must ask for the same; by default this one works alone.
    """

    batch_size: int | None = None
    workers: int | None = None
    precision: str = "fp32"
    cache: FeatureCache | None = None
    spread: Spread = field(default_factory=Spread)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r} is not known here", hint="use fp32 or bf16")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size} is too small", hint="give 1 or more")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"{self.workers} workers are too few", hint="0 decodes in the main process")

    def images_a_batch(self, device: torch.device) -> int:
        """The batch size that is used on this device."""
        return self.batch_size or (64 if device.type == "cpu" else 256)

    def protocol(self) -> dict[str, Any]:
        """The settings that a result records."""
        return {"precision": self.precision, "scores": "fp32"}


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """The features of N images, on the CPU.

    Attributes:
        projected: float32 (N, embed_dim), L2-normalised, or None where not asked for.
        trunk: float32 (N, width), before the projection and not normalised, or None.
            A row of NaN in either: an image that cannot be decoded, where such images were to be skipped.
        hashes: int64 (N,): 64 bits of BLAKE2b over each encoded image; 0 for one that was skipped.
        cached: whether they came from the cache.
    """

    projected: Tensor | None
    trunk: Tensor | None
    hashes: np.ndarray
    cached: bool = False

    def fingerprint(self, *content: str) -> str:
        """SHA-256 over all images and further content (labels, captions): identifies a dataset in a result."""
        return hashlib.sha256(self.hashes.tobytes() + "".join(content).encode()).hexdigest()

    def take(self, rows: np.ndarray) -> ImageFeatures:
        """The features of some of the images."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return ImageFeatures(
            None if self.projected is None else self.projected[index],
            None if self.trunk is None else self.trunk[index],
            self.hashes[np.asarray(rows, dtype=np.int64)],
            self.cached,
        )


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def embed_images(
    model: EmbeddingModel,
    images: ImageSource | Sequence[bytes],
    *,
    name: str = "images",
    split: str = "",
    features: Literal["projected", "trunk", "both"] = "projected",
    skip_damaged: bool = False,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> ImageFeatures:
    """Embed encoded images, in order.

    Args:
        model: the model; its training mode is left as it was.
        images: N encoded images, or a `datasets.Dataset` with an `image` column.
        name, split: of the dataset, for messages.
        features: "projected" (N, embed_dim), normalised; "trunk" (N, width), before the projection; or "both".
        skip_damaged: an image that cannot be decoded gets a row of NaN; otherwise it is an error.
        options: batch size, workers, precision, cache.
        progress: called with (images done, N).

    Raises:
        DataError: an image cannot be read or decoded; names the dataset, the index and the image.
        ModelError: an embedding is not finite; names the image.
    """
    options = options or EmbedOptions()
    source, label = as_images(images), f"{name} (split {split})" if split else name
    kinds: set[Kind] = {"projected", "trunk"} if features == "both" else {features}
    key: dict[str, Any] = {}
    if options.cache is not None and len(source):
        key = _cache_key(model, source, options) | ({"damaged": "skipped"} if skip_damaged else {})
        found = options.cache.load(key)
        if options.spread.agreed(found is not None and len(found["features"]) == len(source)):
            assert found is not None
            trunk = found["features"]
            projected = _project(model, trunk, source, label, options) if "projected" in kinds else None
            if progress is not None:
                progress(len(source), len(source))
            return ImageFeatures(projected, trunk if "trunk" in kinds else None, found["hashes"].numpy(), cached=True)
        kinds.add("trunk")
    parts, hashes = _embed_images(model, source, label, kinds, options, progress, skip_damaged)
    if options.cache is not None and key:
        options.cache.store(key, {"features": parts["trunk"], "hashes": torch.from_numpy(hashes)})
    return ImageFeatures(parts.get("projected"), None if features == "projected" else parts.get("trunk"), hashes)


def _cache_key(model: EmbeddingModel, source: ImageSource, options: EmbedOptions) -> dict[str, Any]:
    # Trunk features are kept: projections are made from them in no time, so that runs whose trunk is the same share
    # them. The names of dataset and split are left out: the signature identifies the images.
    images = {"images": source.signature(), "preprocess": asdict(model.preprocess)}
    return {**_shapers(model, options, "image trunk"), **images, "features": "trunk"}


def _project(model: EmbeddingModel, trunk: Tensor, source: ImageSource, label: str, options: EmbedOptions) -> Tensor:
    """Projected features from trunk features, in the batches in which they would have been computed together."""
    parts, size = [], options.images_a_batch(model.device)
    with evaluating(model.net):
        for start in range(0, len(trunk), size):
            with _autocast(model.device, options.precision):
                # Cloned, as memory that torch has aligned: the same product then rounds as when it was first made.
                head = model.image_head(trunk[start : start + size].clone().to(model.device), normalize=False)
            rows = F.normalize(head.float(), dim=-1).cpu()
            skipped = trunk[start : start + size].isnan().any(dim=1, keepdim=True)
            _check_finite(rows.masked_fill(skipped, 0), model, f"{label}, image", partial(_key_after, source, start))
            parts.append(rows)
    return torch.cat(parts)


def text_cache_key(model: EmbeddingModel, options: EmbedOptions, texts: str) -> dict[str, Any]:
    """The cache key of something computed from texts, which `texts` identifies (a hash)."""
    return {**_shapers(model, options, ""), "features": "classes", "texts": texts}


def _shapers(model: EmbeddingModel, options: EmbedOptions, part: str) -> dict[str, Any]:
    return {
        "model": model.fingerprint(part),
        "precision": options.precision,
        "device": model.device.type,
        "softclip": __version__,
        "torch": torch.__version__,
    }


def _embed_images(
    model: EmbeddingModel,
    source: ImageSource,
    name: str,
    kinds: set[Kind],
    options: EmbedOptions,
    progress: Progress | None,
    skip_damaged: bool,
) -> tuple[dict[str, Tensor], np.ndarray]:
    device, total = model.device, len(source)
    batch_size, size = options.images_a_batch(device), model.preprocess.size
    numbers = options.spread.numbers(math.ceil(total / batch_size))
    workers, _ = choose_workers(
        min(total, len(numbers) * batch_size), device, options.workers, options.spread.local_size
    )
    loader = torch.utils.data.DataLoader(
        Views(source, model.preprocess),
        batch_sampler=[list(range(i * batch_size, min((i + 1) * batch_size, total))) for i in numbers],
        num_workers=workers,
        # Each worker keeps two batches ready.
        collate_fn=partial(collate, shared=shared_memory_suffices(2 * workers * batch_size * size * size * 3)),
        pin_memory=device.type == "cuda",
    )
    parts: dict[str, Tensor] = {}
    hashes = np.zeros(total, dtype=np.int64)
    problems = options.spread.failures()
    # Around the loop, so that the weights are cast once.
    with evaluating(model.net), _autocast(device, options.precision):
        for number, (pixels, batch_hashes, failures) in zip(numbers, loader, strict=True):
            first = number * batch_size
            if failures and not skip_damaged:
                index, what, why = failures[0]
                with problems.kept():
                    raise DataError(
                        f"{name}: {what}: image {index}, {source.key(index)}",
                        why,
                        "replace the file, or remove it from the set",
                    )
            trunk = model.image_trunk(torch.as_tensor(pixels).to(device, non_blocking=True))
            outputs = {"trunk": trunk}
            if "projected" in kinds:
                outputs["projected"] = model.image_head(trunk.contiguous(), normalize=False)
            stop = first + len(pixels)
            for kind in kinds:
                rows = outputs[kind].float()
                if kind == "projected":
                    rows = F.normalize(rows, dim=-1)
                rows = rows.cpu()
                with problems.kept():
                    _check_finite(rows, model, f"{name}, image", partial(_key_after, source, first))
                for index, _, _ in failures:
                    rows[index - first] = torch.nan
                # Written into one tensor: a list of batches to concatenate would need the memory twice.
                if kind not in parts:
                    parts[kind] = torch.zeros(total, rows.shape[1])
                if options.spread.own(number):
                    parts[kind][first:stop] = rows
            if options.spread.own(number):
                hashes[first:stop] = batch_hashes
            if progress is not None:
                progress(min(options.spread.finished(number) * batch_size, total), total)
    problems.settle()
    options.spread.together(torch.from_numpy(hashes))
    return {kind: options.spread.together(rows) for kind, rows in sorted(parts.items())}, hashes


def embed_texts(
    model: EmbeddingModel,
    texts: Sequence[str],
    *,
    options: EmbedOptions | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Embed texts: float32 (M, embed_dim), L2-normalised, on the CPU, in the order of `texts`.

    Texts of like length share a batch, since each is trimmed to its longest. A text that occurs several times is
    encoded once, so that equal texts have equal embeddings to the last bit.

    Raises:
        ModelError: an embedding is not finite; names the text.
    """
    options = options or EmbedOptions()
    device, batch_size = model.device, 4 * options.images_a_batch(model.device)
    first: dict[str, int] = {}
    rows = [first.setdefault(text, len(first)) for text in texts]
    unique = list(first)
    order = sorted(range(len(unique)), key=lambda i: len(unique[i]), reverse=True)
    encoded: Tensor | None = None
    problems = options.spread.failures()
    with evaluating(model.net), _autocast(device, options.precision):
        for number in options.spread.numbers(math.ceil(len(order) / batch_size)):
            picks = order[number * batch_size : (number + 1) * batch_size]
            features = model.encode_text(model.tokenize([unique[i] for i in picks]).to(device), normalize=False)
            features = F.normalize(features.float(), dim=-1).cpu()
            with problems.kept():
                _check_finite(features, model, "text", partial(_text_of, unique, picks))
            if encoded is None:
                encoded = torch.zeros(len(unique), features.shape[1])
            if options.spread.own(number):
                encoded[torch.tensor(picks)] = features
            if progress is not None:
                progress(min(options.spread.finished(number) * batch_size, len(order)), len(order))
    if encoded is None:
        raise UsageError("no texts to embed")
    problems.settle()
    options.spread.together(encoded)
    return encoded if len(unique) == len(texts) else encoded[torch.tensor(rows)]


def _key_after(source: ImageSource, start: int, row: int) -> str:
    return source.key(start + row)


def _text_of(texts: list[str], picks: list[int], row: int) -> str:
    return repr(texts[picks[row]])


def _check_finite(rows: Tensor, model: EmbeddingModel, what: str, key: Callable[[int], str]) -> None:
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise NotFiniteError(
            f"model {model.name or model.reference} gives an embedding that is not a number: {what} {key(row)}",
            f"{int((~finite).sum())} of {len(rows)} embeddings in this batch hold NaN or infinity",
            "the weights are damaged or training diverged: try an earlier checkpoint, or --precision fp32",
        )
