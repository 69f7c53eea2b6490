"""Networks from open_clip's configurations, weights from files, and downloads whose failure is explained."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli.errors import ModelError

if TYPE_CHECKING:
    from softclip_cli.model import Model


def build_model(config: dict[str, Any], preprocess: dict[str, Any]) -> Model:
    """Make a network from open_clip's `model_cfg`, untrained."""
    import open_clip

    from softclip_cli.data.decode import Preprocess
    from softclip_cli.model import Model

    config = deepcopy(config)
    if "multimodal_cfg" in config:
        raise ModelError(
            "CoCa models are not supported", "softclip trains and judges two-tower models", "choose a CLIP model"
        )
    arguments = deepcopy(config)
    custom = arguments.pop("custom_text", False) or "hf_model_name" in arguments["text_cfg"]
    if arguments["vision_cfg"].get("timm_model_name"):
        arguments["vision_cfg"]["timm_model_pretrained"] = False
    net = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
    size = net.visual.image_size
    spec = Preprocess.from_open_clip({**preprocess, "size": size if isinstance(size, int) else tuple(size)})
    return Model(net, config, spec, _tokenizer(config["text_cfg"]))


def _tokenizer(text_cfg: dict[str, Any]) -> Any:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    context_length, options = text_cfg.get("context_length", 77), text_cfg.get("tokenizer_kwargs") or {}
    source = text_cfg.get("hf_tokenizer_name")
    if not source:
        return SimpleTokenizer(context_length=context_length, **options)
    return HFTokenizer(source, context_length=context_length, tokenizer_mode=text_cfg.get("tokenizer_mode"), **options)


def download(fetch: Any, what: str) -> Any:
    """Call `fetch`; whatever fails becomes a ModelError that names `what`."""
    try:
        return fetch()
    except Exception as error:  # the Hub's client raises a dozen kinds, all of which mean: could not be had
        raise ModelError(
            f"{what} could not be fetched",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "check the network and the name; offline, download it elsewhere and name the local folder or file",
        ) from error


def load_weights(model: Model, path: Path) -> None:
    """Load a whole model's weights with open_clip's own reader, which also converts foreign layouts; never unpickles code."""
    import open_clip

    try:
        open_clip.load_checkpoint(model.net, str(path), strict=True, weights_only=True, device="cpu")
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ModelError(
            f"{path} does not fit the architecture that its folder or name states",
            " ".join(lines[:2])[:300],
            "name the architecture that it was trained with",
        ) from None
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise ModelError(
            f"{path} cannot be read", f"{type(error).__name__}: {error}", "copy or train it again"
        ) from error
