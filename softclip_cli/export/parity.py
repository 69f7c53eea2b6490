"""Whether an exported model computes what its source does, on pictures and captions of the generated corpus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softclip_cli.data.decode import eval_view
from softclip_cli.data.generated.samples import Plan, make_samples
from softclip_cli.errors import ModelError
from softclip_cli.model import Model

PAIRS, SIDE = 12, 96  # pictures and captions that are compared; side of a picture in pixels
SCALE_TOLERANCE = 1e-5  # of the logit scale, relative


@dataclass(frozen=True)
class Loaded:
    """An exported model as the program that it was written for has loaded it; every result is L2-normalised.

    Attributes:
        image: pixels as the model wants them, float32 (N, 3, H, W) → (N, embed_dim).
        text: token ids int64 (N, context length) → (N, embed_dim).
        logit_scale: k.
        own_image: encoded images → (N, embed_dim), through the folder's own image processor; None where it has none.
        own_text: texts → (N, embed_dim), through the folder's own tokenizer; None where it has none.
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    logit_scale: float
    own_image: Callable[[Sequence[bytes]], Tensor] | None = None
    own_text: Callable[[Sequence[str]], Tensor] | None = None


def sample_pairs() -> tuple[list[bytes], list[str]]:
    """Encoded pictures and one caption each: always the same ones."""
    records = make_samples(Plan(PAIRS, 0.0, 0, image_size=SIDE), [("train", index) for index in range(PAIRS)])
    return [record.image for record in records], [record.captions[0] for record in records]


def compare(found: Tensor, expected: Tensor) -> dict[str, float]:
    """How far embeddings (N, D) are from those of the source: largest absolute difference, smallest cosine; in float64."""
    a, b = found.detach().cpu().double(), expected.detach().cpu().double()
    if a.shape != b.shape:
        raise ModelError(
            "the exported model's embeddings have another shape", f"{tuple(a.shape)}, not {tuple(b.shape)}"
        )
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    # A difference that is no number must not pass as a small one.
    return {
        "max_abs_difference": float((a - b).abs().nan_to_num(torch.inf, torch.inf).max()),
        "min_cosine": float(cosine.nan_to_num(-1.0).min()),
    }


@torch.no_grad()
def check(model: Model, loaded: Loaded, *, tolerance: float, own_image_exact: bool) -> dict[str, Any]:
    """Compare an exported model with its source.

    Args:
        model: the source.
        loaded: the exported one.
        tolerance: largest absolute difference of L2-normalised embeddings.
        own_image_exact: whether the folder's own image processor must give the same embeddings, too.

    Returns:
        `pairs`, `tolerance`, `image`, `text` (see `compare`), `logit_scale_difference`, and `own_preprocessing`: `image` and `text`
        where the folder has an image processor and a tokenizer of its own.

    Raises:
        ModelError: something differs by more than the tolerance.
    """
    images, texts = sample_pairs()
    pixels = torch.from_numpy(np.stack([eval_view(image, model.preprocess) for image in images]))
    tokens = model.tokenizer(texts)
    expected_image = model.encode_image(pixels)
    expected_text = torch.cat([model.encode_text(model.tokenize([text])) for text in texts])
    ready = model.normalise(pixels).contiguous()
    scale = float(model.logit_scale.detach())
    found: dict[str, Any] = {
        "pairs": len(texts),
        "tolerance": tolerance,
        # In two parts of different size: an exported graph may have kept the size of the batch that it was made with.
        "image": compare(torch.cat([loaded.image(ready[:1]), loaded.image(ready[1:])]), expected_image),
        "text": compare(torch.cat([loaded.text(tokens[:1]), loaded.text(tokens[1:])]), expected_text),
        "logit_scale_difference": abs(loaded.logit_scale - scale),
        "own_preprocessing": {},
    }
    own = found["own_preprocessing"]
    if loaded.own_image is not None:
        own["image"] = compare(loaded.own_image(images), expected_image)
    if loaded.own_text is not None:
        own["text"] = compare(loaded.own_text(texts), expected_text)
    wrong = [part for part in ("image", "text") if found[part]["max_abs_difference"] > tolerance]
    wrong += [f"{part} with its own preprocessing" for part in own if _off(part, own, tolerance, own_image_exact)]
    if found["logit_scale_difference"] > SCALE_TOLERANCE * scale:
        wrong.append("logit scale")
    if wrong:
        raise ModelError(
            "the exported model does not compute what its source does",
            f"above the tolerance of {tolerance:g}: {', '.join(wrong)} (image {_told(found['image'])}, text {_told(found['text'])})",
            "nothing was written; export to another format, or report this with the model's name",
        )
    return found


def _off(part: str, own: dict[str, dict[str, float]], tolerance: float, image_exact: bool) -> bool:
    return (part == "text" or image_exact) and own[part]["max_abs_difference"] > tolerance


def _told(entry: dict[str, float]) -> str:
    return f"differs by {entry['max_abs_difference']:.2g}, cosine {entry['min_cosine']:.6f}"
