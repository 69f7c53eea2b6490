"""A pair of pretrained towers, `timm:NAME+hf:NAME`: from local files, packages or the Hub, with a new projection each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.building import build_model, download
from softclip_cli.errors import HostError, ModelError, nearest

if TYPE_CHECKING:
    import torch

    from softclip_cli.model import Model
    from softclip_cli.registry import Reference


@dataclass(frozen=True)
class PairSettings:
    """What a pair of pretrained towers gets on top.

    Attributes:
        embed_dim: width of the common embedding.
        image_projection: "linear" or "mlp" (two layers, hidden width twice the embedding).
        text_projection: "linear", "mlp" (two layers, hidden width the mean of both) or "none" (the widths must agree).
        context_length: longest text in tokens.
        image_size: side of the input in pixels; 0 takes the tower's own.
        image_projection_bias: whether the last layer of the image projection has a bias.
        pixel_statistics: "tower" for the image tower's own mean and standard deviation, "clip" for CLIP's.
    """

    embed_dim: int = 256
    image_projection: str = "mlp"
    text_projection: str = "mlp"
    context_length: int = 77
    image_size: int = 0
    image_projection_bias: bool = False
    pixel_statistics: str = "tower"


def package_files(name: str) -> list[Path]:
    """The files of an installed package, for weights that come as a package (`pip:NAME`).

    Raises:
        HostError: the package is not installed.
    """
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        raise HostError(f"the package {name} is not installed", hint=f"pip install {name}") from None
    return [Path(str(entry.locate())) for entry in files]


def open_pair(parsed: Reference, settings: PairSettings) -> Model:
    """Make the model of a parsed reference of the kind "pair".

    Raises:
        ModelError: unknown towers, or weights that do not fit or cannot be had.
        HostError: a package of weights that is not installed.
    """
    import timm
    from open_clip.hf_configs import arch_dict
    from transformers import AutoConfig, AutoModel

    if not timm.is_model(parsed.name):
        hint = nearest(parsed.name, timm.list_models()) or "timm.list_models() lists them"
        raise ModelError(f"timm has no image tower named {parsed.name!r}", hint=hint)
    image_weights = _image_weights(parsed.weights)
    pretrained = timm.get_pretrained_cfg(parsed.name)
    spec = pretrained.to_dict() if pretrained else {}
    size = settings.image_size or spec.get("input_size", (3, 224, 224))[-1]

    source = parsed.text
    if source.startswith("pip:"):
        configs = [
            path
            for path in package_files(source[4:])
            if path.name == "config.json" and (path.parent / "tokenizer_config.json").is_file()
        ]
        if not configs:
            raise ModelError(
                f"{source} carries no text tower", "no file config.json beside a tokenizer_config.json in it"
            )
        source = str(configs[0].parent)
    text_config = download(lambda: AutoConfig.from_pretrained(source), f"the text tower hf:{parsed.text}")
    if text_config.model_type not in arch_dict:
        raise ModelError(
            f"text towers of the kind {text_config.model_type!r} are not supported by open_clip",
            hint="supported: " + ", ".join(sorted(arch_dict)),
        )
    width = getattr(text_config, arch_dict[text_config.model_type]["config_names"]["width"])
    if settings.text_projection == "none" and width != settings.embed_dim:
        raise ModelError(
            f"hf:{parsed.text} gives {width} features, the common embedding has {settings.embed_dim}",
            "without a projection on the text tower both must be the same",
            f"--set model.embed_dim={width}, or --set model.text_projection=linear",
        )
    longest = getattr(text_config, "max_position_embeddings", settings.context_length)
    config: dict[str, Any] = {
        "embed_dim": settings.embed_dim,
        "vision_cfg": {
            "timm_model_name": parsed.name,
            "timm_pool": "avg" if "global_pool" not in spec else "",
            "timm_proj": settings.image_projection,
            "timm_proj_bias": settings.image_projection_bias,
            "image_size": size,
        },
        "text_cfg": {
            "hf_model_name": source,
            "hf_tokenizer_name": source,
            "hf_model_pretrained": False,
            "hf_proj_type": None if settings.text_projection == "none" else settings.text_projection,
            "hf_pooler_type": _pooler(Path(source)),
            "context_length": min(settings.context_length, longest),
        },
    }
    own = settings.pixel_statistics == "tower"
    crop = {
        "size": size,
        "mean": spec.get("mean") if own else None,  # Preprocess falls back to CLIP's
        "std": spec.get("std") if own else None,
        "interpolation": spec.get("interpolation", "bicubic"),
    }
    model = build_model(config, {key: value for key, value in crop.items() if value is not None})

    if image_weights is None:
        trunk = download(lambda: timm.create_model(parsed.name, pretrained=True, num_classes=0), f"timm:{parsed.name}")
        state = trunk.state_dict()
        model.notes.append(f"image tower: {parsed.name} with timm's pretrained weights")
    elif image_weights == "random":
        state = None
        model.notes.append(f"image tower: {parsed.name}, random weights")
    else:
        state = _read_state(Path(image_weights))
        model.notes.append(f"image tower: {parsed.name} with {Path(image_weights).name}")
    if state is not None:
        _fit_state(model, state, image_weights or parsed.name)
    if parsed.text_weights == "random":
        model.notes.append(f"text tower: {parsed.text}, random weights")
    else:
        pooling = model.text.text.pooler.__class__.__name__ == "ClsPooler"
        with quiet_transformers():
            tower = download(
                lambda: AutoModel.from_pretrained(source, add_pooling_layer=pooling), f"the weights of hf:{parsed.text}"
            )
        model.text.text.transformer.load_state_dict(
            getattr(tower, "encoder", tower).state_dict() if text_config.is_encoder_decoder else tower.state_dict()
        )
        model.notes.append(
            f"text tower: {Path(parsed.text).name}, {config['text_cfg']['hf_pooler_type'].replace('_', ' ')}"
        )
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bar and loading report off the terminal."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _image_weights(weights: str) -> str | None:
    """Where the image tower's weights lie: a file, "random", or None for timm's own from the Hub."""
    if not weights or weights == "random":
        return weights or None
    if weights.startswith("pip:"):
        files = [path for path in package_files(weights[4:]) if path.suffix in (".safetensors", ".pth", ".pt", ".bin")]
        if not files:
            raise ModelError(f"{weights} carries no weights file", "no .safetensors, .pth, .pt or .bin in the package")
        return str(files[0])
    path = Path(weights).expanduser()
    if path.is_dir():
        files = [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.bin")), *sorted(path.glob("*.pth"))]
        if not files:
            raise ModelError(f"{path} holds no weights file", "no .safetensors, .bin or .pth in it")
        return str(files[0])
    if not path.is_file():
        raise ModelError(f"no weights file at {path}", hint="give a file, a folder, pip:PACKAGE, or `random`")
    return str(path)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a .safetensors or a torch file, without running any code that it may hold."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state.get(key, state)
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    except Exception as error:
        raise ModelError(f"{path} cannot be read as weights", f"{type(error).__name__}: {error}") from error


def _fit_state(model: Model, state: dict[str, torch.Tensor], source: str) -> None:
    """Load weights into the image trunk by name; where the names are another library's, in order, if every shape fits.

    Raises:
        ModelError: the tensors do not fit the tower either way.
    """
    trunk = model.image.visual.trunk
    own = trunk.state_dict()
    named = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    if len(named) == len(own):
        trunk.load_state_dict(named)
        return
    tensors = list(state.values())
    # The classifier of a foreign file comes last; the trunk has none.
    if len(tensors) >= len(own) and all(o.shape == t.shape for o, t in zip(own.values(), tensors, strict=False)):
        trunk.load_state_dict(dict(zip(own, tensors, strict=False)))
        model.notes.append(f"weights matched by order and shape, since their names are not timm's ({len(own)} tensors)")
        return
    missing = [name for name in own if name not in named]
    raise ModelError(
        f"{source} does not fit this image tower",
        f"{len(missing)} of {len(own)} tensors are missing or of another shape, first {missing[0]}",
        "name the timm architecture that the weights were trained with",
    )


def _pooler(folder: Path) -> str:
    """How the text tower is pooled: as its sentence-transformers configuration says, else the mean of its tokens."""
    try:
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    except (OSError, json.JSONDecodeError):
        return "mean_pooler"
    if pooling.get("pooling_mode_cls_token"):
        return "cls_last_hidden_state_pooler"
    return "max_pooler" if pooling.get("pooling_mode_max_tokens") else "mean_pooler"
