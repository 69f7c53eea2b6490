"""The common model registry: one grammar of model references for every command, and `open_model`, which turns one into a `Model`.

tiny                            softclip's own small model: trains on a laptop
ViT-B-32                        any architecture of open_clip, untrained
ViT-B-32@laion2b_s34b_b79k      the same with open_clip's published weights, or with a weights file: ViT-B-32@FILE
hf-hub:ORG/NAME                 an open_clip model on the Hugging Face Hub
timm:NAME[@W]+hf:NAME[@random]  a pair of pretrained towers with a new projection each. W: a weights file or folder, `random`,
                                or pip:PACKAGE; left out: the Hub. hf:NAME may be a local folder or pip:PACKAGE
FOLDER                          a run, a checkpoint, or any folder with an open_clip_config.json
run:NAME[@best|last|STEP]       a run by name
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli import runs
from softclip_cli.allocator import keep_freed_memory
from softclip_cli.errors import HostError, ModelError, nearest

if TYPE_CHECKING:
    import torch

    from softclip_cli.model import Model

WEIGHTS, CONFIG = "model.safetensors", "open_clip_config.json"  # also in model.py, which imports torch
PAIR = re.compile(r"timm:(?P<image>.+?)\+hf:(?P<text>.+)")


@dataclass(frozen=True)
class Reference:
    """A parsed model reference.

    Attributes:
        kind: architecture, hub, pair, folder or run.
        name: architecture, Hub name, image tower, folder or run name.
        weights: what stands behind the first `@`, if anything.
        text, text_weights: the text tower of a pair.
    """

    kind: str
    name: str
    weights: str = ""
    text: str = ""
    text_weights: str = ""


@dataclass(frozen=True)
class PairSettings:
    """What a pair of pretrained towers gets on top.

    Attributes:
        embed_dim: width of the common embedding.
        image_projection: "linear" or "mlp" (two layers, hidden width twice the embedding).
        text_projection: "linear", "mlp" (two layers, hidden width the mean of both) or "none" (the widths must agree).
        context_length: longest text in tokens.
        image_size: side of the input in pixels; 0 takes the tower's own.
    """

    embed_dim: int = 256
    image_projection: str = "mlp"
    text_projection: str = "mlp"
    context_length: int = 77
    image_size: int = 0


def parse_reference(text: str) -> Reference:
    """Parse a model reference without loading anything.

    Raises:
        ModelError: empty, or half a pair.
    """
    text = text.strip()
    if not text:
        raise ModelError("empty model reference", hint="softclip models list shows what can stand here")
    if text.startswith("run:"):
        name, _, which = text[4:].partition("@")
        return Reference("run", name, which)
    if text.startswith("hf-hub:"):
        return Reference("hub", text[len("hf-hub:") :])
    if text.startswith("local-dir:"):
        return Reference("folder", text[len("local-dir:") :])
    if text.startswith(("timm:", "hf:")):
        pair = PAIR.fullmatch(text)
        if not pair:
            raise ModelError(
                f"{text!r} names one tower, a model has two",
                hint="write both: timm:IMAGE_TOWER+hf:TEXT_TOWER, for example timm:resnet50+hf:sentence-transformers/all-MiniLM-L6-v2",
            )
        image, _, weights = pair["image"].partition("@")
        tower, _, text_weights = pair["text"].partition("@")
        return Reference("pair", image, weights, tower, text_weights)
    if Path(text).is_dir() or text.startswith((".", "/", "~")):
        return Reference("folder", str(Path(text).expanduser()))
    name, _, weights = text.partition("@")
    return Reference("architecture", name, weights)


def open_model(
    reference: str | None,
    *,
    device: torch.device | str = "cpu",
    pair: PairSettings | None = None,
    seed: int | None = None,
    ema: bool = False,
) -> Model:
    """Load or create the model that a reference names, in evaluation mode.

    Args:
        reference: see this module's text; None takes the newest finished run.
        device: where the weights go.
        pair: projections and sizes for a pair of towers.
        seed: for the random initialisation of what is not loaded; None leaves torch's generator as it is.
        ema: for a folder or run: its averaged weights (`ema.safetensors`), where there are any.

    Raises:
        ModelError: unknown name (with the nearest ones), damaged or foreign checkpoint, weights that cannot be had.
        HostError: a package that is missing, or a torch and torchvision that do not match.
    """
    if reference is None:
        newest = runs.newest_finished()
        if newest is None:
            raise ModelError(
                "no model was named and there is no finished run",
                f"{runs.runs_dir()} holds none",
                "train one with `softclip train`, or name one: --model ViT-B-32@laion2b_s34b_b79k",
            )
        reference = f"run:{newest.name}"
    parsed = parse_reference(reference)
    keep_freed_memory()
    with working_imports():
        import torch

        import softclip_cli.model  # noqa: F401  (open_clip and torchvision, whose own errors are explained here)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if parsed.kind == "run":
            run = runs.find_run(parsed.name)
            model = _open_folder(run.checkpoint(parsed.weights or "best"), ema=ema)
            model.name = run.name
            model.notes.insert(0, f"model: run {run.name}, checkpoint {run.checkpoint(parsed.weights or 'best').name}")
        elif parsed.kind == "folder":
            folder = Path(parsed.name)
            if runs.is_run(folder) and not (folder / CONFIG).is_file():
                run = runs.Run(folder)
                folder = run.checkpoint("best")
                model = _open_folder(folder, ema=ema)
                model.name = run.name
                model.notes.insert(0, f"model: run {run.name}, checkpoint {folder.name}")
            else:
                model = _open_folder(folder, ema=ema)
        elif parsed.kind == "hub":
            model = _open_hub(parsed.name)
        elif parsed.kind == "pair":
            model = _open_pair(parsed, pair or PairSettings())
        else:
            model = _open_architecture(parsed)
    model.reference = reference
    model.name = model.name or (
        f"{parsed.name}+{Path(parsed.text.removeprefix('pip:')).name}" if parsed.kind == "pair" else reference
    )
    return model.to(device).eval()


@contextmanager
def working_imports() -> Iterator[None]:
    """Explain the one import failure that users meet: a torch and a torchvision that were not built for each other."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if "torchvision::nms" in str(error):
            raise HostError(
                "torchvision cannot be imported",
                "this torch and this torchvision were not built for each other (a CPU-only torch beside a CUDA torchvision)",
                "install both from one place: pip install --force-reinstall torch torchvision",
            ) from error
        if isinstance(error, ImportError):
            raise HostError(f"a package is missing: {error}", hint="softclip doctor tells what is wrong") from error
        raise


def own_architectures() -> dict[str, dict[str, Any]]:
    """softclip's own architectures: name → open_clip `model_cfg`."""
    folder = resources.files("softclip_cli") / "architectures"
    return {
        entry.name.removesuffix(".json"): json.loads(entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".json")
    }


def known_architectures() -> list[str]:
    """All architectures that can stand by themselves: softclip's own, then open_clip's."""
    import open_clip

    return [*own_architectures(), *open_clip.list_models()]


def _build(config: dict[str, Any], preprocess: dict[str, Any]) -> Model:
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


def _open_architecture(parsed: Reference) -> Model:
    import open_clip

    own = own_architectures()
    if parsed.name in own:
        if parsed.weights:
            raise ModelError(
                f"{parsed.name} has no published weights", hint=f"train it: softclip train --model {parsed.name}"
            )
        return _build(own[parsed.name], {})
    name = parsed.name.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        known = [*known_architectures(), *(run.name for run in runs.list_runs())]
        raise ModelError(
            f"no model named {parsed.name!r}",
            "it is no architecture of softclip or open_clip and no folder",
            nearest(parsed.name, known) or "softclip models list shows all",
        )
    if not parsed.weights:
        model = _build(config, {})
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        tag = open_clip.get_pretrained_cfg(name, parsed.weights)
        if not tag and not Path(parsed.weights).is_file():
            raise ModelError(
                f"{name} has no weights named {parsed.weights!r}",
                "it is neither a published tag nor a file",
                nearest(parsed.weights, tags) or "tags: " + ", ".join(tags or ["none"]),
            )
        model = _build({**config, **({"quick_gelu": True} if (tag or {}).get("quick_gelu") else {})}, tag or {})
        path = (
            _download(lambda: open_clip.download_pretrained(tag), f"{name}@{parsed.weights}") if tag else parsed.weights
        )
        _load_into(model, Path(path))
    if "siglip" in name.lower() and not config["text_cfg"].get("hf_tokenizer_name"):
        model.tokens.tokenizer = model.tokenizer = _download(
            lambda: open_clip.get_tokenizer(name), f"the tokenizer of {name}"
        )
    return model


def _open_hub(name: str) -> Model:
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, "*.json", "*.txt", "*.model", "open_clip_*.safetensors", WEIGHTS]
    folder = _download(lambda: snapshot_download(name, allow_patterns=patterns), f"hf-hub:{name}")
    return _open_folder(Path(folder))


def _download(fetch: Any, what: str) -> Any:
    try:
        return fetch()
    except Exception as error:  # the Hub's client raises a dozen kinds, all of which mean: could not be had
        raise ModelError(
            f"{what} could not be fetched",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "check the network and the name; offline, download it elsewhere and name the local folder or file",
        ) from error


def _open_folder(folder: Path, *, ema: bool = False) -> Model:
    if not folder.is_dir():
        raise ModelError(f"no model folder at {folder}", hint="softclip models list shows what can stand here")
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"{folder} is neither a run nor a model folder",
            f"it holds no {CONFIG}",
            "a run folder, a checkpoint folder, or a folder as open_clip writes it can stand here",
        )
    try:
        document = json.loads((folder / CONFIG).read_text())
        config = document["model_cfg"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ModelError(f"{folder / CONFIG} is damaged", f"{type(error).__name__}: {error}") from None
    if config["text_cfg"].get("hf_tokenizer_name"):
        # A checkpoint carries its text tower's configuration and tokenizer; the path that it was saved under may be gone.
        if (folder / "tokenizer_config.json").is_file():
            config["text_cfg"]["hf_tokenizer_name"] = str(folder)
        if config["text_cfg"].get("hf_model_name"):
            if (folder / "config.json").is_file():
                config["text_cfg"]["hf_model_name"] = str(folder)
            config["text_cfg"]["hf_model_pretrained"] = False
    model = _build(config, document.get("preprocess_cfg", {}))
    weights = folder / ("ema.safetensors" if ema else WEIGHTS)
    if not weights.is_file():
        found = [*folder.glob("open_clip_*.safetensors"), *([] if ema else folder.glob("*.safetensors"))]
        if not found:
            raise ModelError(
                f"{folder} holds no weights", f"{weights.name} is missing", "train or copy the checkpoint again"
            )
        weights = found[0]
    _load_into(model, weights)
    return model


def _load_into(model: Model, path: Path) -> None:
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


def _open_pair(parsed: Reference, settings: PairSettings) -> Model:
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
    text_config = _download(lambda: AutoConfig.from_pretrained(source), f"the text tower hf:{parsed.text}")
    if text_config.model_type not in arch_dict:
        raise ModelError(
            f"text towers of the kind {text_config.model_type!r} are not supported by open_clip",
            hint="supported: " + ", ".join(sorted(arch_dict)),
        )
    longest = getattr(text_config, "max_position_embeddings", settings.context_length)
    config: dict[str, Any] = {
        "embed_dim": settings.embed_dim,
        "vision_cfg": {
            "timm_model_name": parsed.name,
            "timm_pool": "avg" if "global_pool" not in spec else "",
            "timm_proj": settings.image_projection,
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
    crop = {
        "size": size,
        "mean": spec.get("mean"),
        "std": spec.get("std"),
        "interpolation": spec.get("interpolation", "bicubic"),
    }
    model = _build(config, {key: value for key, value in crop.items() if value is not None})

    if image_weights is None:
        trunk = _download(lambda: timm.create_model(parsed.name, pretrained=True, num_classes=0), f"timm:{parsed.name}")
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
        with _quiet_transformers():
            tower = _download(
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
def _quiet_transformers() -> Iterator[None]:
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
