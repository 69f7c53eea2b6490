"""A model as two ONNX graphs with a JSON file that says how to feed them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softclip_cli.errors import HostError, ModelError
from softclip_cli.export.clip_tokenizer import is_clip_tokenizer, write_clip_tokenizer
from softclip_cli.export.parity import Loaded
from softclip_cli.model import Model

CONFIG = "onnx_config.json"
OPSET = 18  # the one that torch's exporter is written for; other opsets it converts to afterwards
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Refuse before anything long is done.

    Raises:
        HostError: a package of the extra is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise HostError(
            "exporting to ONNX needs packages that are not installed",
            ", ".join(missing),
            "pip install 'softclip[onnx]'",
        )


class ImageGraph(nn.Module):
    """Normalised pixels (N, 3, H, W) → L2-normalised embeddings (N, embed_dim)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.tower = model.net, model.image

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode a batch of images."""
        return F.normalize(self.tower(pixel_values), dim=-1)


class TextGraph(nn.Module):
    """Token ids (N, L) → L2-normalised embeddings (N, embed_dim)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.tower = model.net, model.text

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode a batch of texts."""
        # A tower that sees its padding is stock open_clip's, at full length.
        features = self.tower(input_ids) if self.tower.trimmable else self.net.encode_text(input_ids)
        return F.normalize(features, dim=-1)


def write(model: Model, folder: Path) -> dict[str, Any]:
    """Write `image.onnx`, `text.onnx`, the tokenizer's files and `onnx_config.json`.

    Returns:
        what `export.json` says of it: `opset`.

    Raises:
        HostError: a package of the extra is missing.
        ModelError: a tower that torch cannot export.
    """
    check_packages()
    spec, context = model.preprocess, model.text.context_length
    pixels = torch.zeros(2, 3, spec.size, spec.size)
    tokens = model.tokenizer(["a red star", "two blue rings on the left"])
    lengths: dict[int, str] = {0: "batch"}
    if model.text.trimmable:
        # Traced at less than the full length, or the exporter takes the length for a constant.
        tokens, lengths[1] = tokens[:, : max(2, context - 1)], "length"
    _export(ImageGraph(model), "pixel_values", pixels, {0: "batch"}, "image_embeds", folder / "image.onnx")
    _export(TextGraph(model), "input_ids", tokens, lengths, "text_embeds", folder / "text.onnx")
    bias = getattr(model.net, "logit_bias", None)
    document = {
        "format": 1,
        "opset": OPSET,
        "embed_dim": model.embed_dim,
        "logit_scale": float(model.logit_scale.detach()),
        "logit_bias": None if bias is None else float(bias.reshape(())),
        "image": {
            "file": "image.onnx",
            "input": {"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, spec.size, spec.size]},
            "output": {"name": "image_embeds", "shape": ["batch", model.embed_dim], "l2_normalized": True},
            "size": spec.size,
            "resize_mode": spec.resize_mode,
            "interpolation": spec.interpolation,
            "fill_color": spec.fill_color,
            "rescale": 1 / 255,
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "text": {
            "file": "text.onnx",
            "input": {
                "name": "input_ids",
                "dtype": "int64",
                "shape": ["batch", "length" if model.text.trimmable else context],
            },
            "output": {"name": "text_embeds", "shape": ["batch", model.embed_dim], "l2_normalized": True},
            "context_length": context,
            "pad_id": model.tokens.pad_id,
            "tokenizer": _write_tokenizer(model, folder),
        },
    }
    (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return {"opset": OPSET}


def _write_tokenizer(model: Model, folder: Path) -> dict[str, Any] | None:
    """The tokenizer's files; None where it cannot be written as such (a tokenizer of open_clip with settings of its own)."""
    if is_clip_tokenizer(model):
        return {"files": write_clip_tokenizer(model.tokenizer, folder, model.text.context_length), "cleaning": "lower"}
    options = model.config["text_cfg"].get("tokenizer_kwargs") or {}
    own = getattr(model.tokenizer, "tokenizer", None)
    if own is None or model.config["text_cfg"].get("tokenizer_mode") or set(options) - {"clean"}:
        return None
    before = set(folder.iterdir())
    own.save_pretrained(str(folder))
    files = sorted(path.name for path in set(folder.iterdir()) - before)
    return {"files": files, "cleaning": options.get("clean", "whitespace")}


def _export(graph: nn.Module, name: str, example: Tensor, dynamic: dict[int, str], output: str, path: Path) -> None:
    try:
        with torch.no_grad(), _quiet():
            made = torch.onnx.export(
                graph.eval(),
                (example,),
                input_names=[name],
                output_names=[output],
                opset_version=OPSET,
                dynamic_shapes={name: dynamic},
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"torch cannot export {path.stem} towers of this kind to ONNX",
            " ".join(lines[:2])[:300] or type(error).__name__,
            "export it with --to open_clip",
        ) from error
    assert made is not None
    made.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says to its developers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def load(folder: Path) -> Loaded:
    """The folder as onnxruntime runs it, on the CPU."""
    import onnxruntime

    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    image, text = (
        onnxruntime.InferenceSession(folder / settings[part]["file"], providers=["CPUExecutionProvider"])
        for part in ("image", "text")
    )

    def run(session: Any, part: str, values: Tensor) -> Tensor:
        names = settings[part]
        (found,) = session.run([names["output"]["name"]], {names["input"]["name"]: values.numpy()})
        return torch.from_numpy(found)

    def own_text(texts: Any) -> Tensor:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        dynamic = settings["text"]["input"]["shape"][1] == "length"
        ids = tokenizer(
            list(texts),
            padding=True if dynamic else "max_length",
            truncation=True,
            max_length=settings["text"]["context_length"],
            return_tensors="pt",
        ).input_ids
        return run(text, "text", ids)

    return Loaded(
        image=lambda pixels: run(image, "image", pixels),
        text=lambda tokens: run(text, "text", tokens),
        logit_scale=settings["logit_scale"],
        own_text=own_text if settings["text"]["tokenizer"] else None,
    )
