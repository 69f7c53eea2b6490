"""The common model registry: one grammar of model references for every command, and `open_model`, which turns one into a `Model`.

tiny                            softclip's own small model: trains on a laptop
ViT-B-32                        any architecture of open_clip, untrained
ViT-B-32@laion2b_s34b_b79k      the same with open_clip's published weights, or with a weights file: ViT-B-32@FILE
hf-hub:ORG/NAME                 an open_clip model on the Hugging Face Hub
timm:NAME[@W]+hf:NAME[@random]  a pair of pretrained towers with a new projection each. W: a weights file or folder, `random`,
                                or pip:PACKAGE; left out: the Hub. hf:NAME may be a local folder or pip:PACKAGE
FOLDER                          a run, a checkpoint, or any folder with an open_clip_config.json
run:NAME[@best|last|STEP]       a run by name; run:NAME@ema or run:NAME@500+ema: the averaged weights of an EMA teacher
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softclip_cli import runs
from softclip_cli.allocator import keep_freed_memory
from softclip_cli.building import build_model, download, load_weights
from softclip_cli.errors import HostError, ModelError, nearest
from softclip_cli.tower_pair import PairSettings, open_pair

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


def split_checkpoint(weights: str) -> tuple[str, bool]:
    """What stands behind the @ of a run: which checkpoint, and whether its averaged weights are meant."""
    which, _, kind = weights.rpartition("+")
    return (which or "best", True) if kind == "ema" else (weights or "best", False)


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
            which, averaged = split_checkpoint(parsed.weights)
            folder = run.checkpoint(which)
            model = _open_folder(folder, ema=ema or averaged)
            model.name = run.name
            whose = ", averaged weights" if averaged else ""
            model.notes.insert(0, f"model: run {run.name}, checkpoint {folder.name}{whose}")
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
            model = open_pair(parsed, pair or PairSettings())
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


def _open_architecture(parsed: Reference) -> Model:
    import open_clip

    own = own_architectures()
    if parsed.name in own:
        if parsed.weights:
            raise ModelError(
                f"{parsed.name} has no published weights", hint=f"train it: softclip train --model {parsed.name}"
            )
        return build_model(own[parsed.name], {})
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
        model = build_model(config, {})
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        tag = open_clip.get_pretrained_cfg(name, parsed.weights)
        if not tag and not Path(parsed.weights).is_file():
            raise ModelError(
                f"{name} has no weights named {parsed.weights!r}",
                "it is neither a published tag nor a file",
                nearest(parsed.weights, tags) or "tags: " + ", ".join(tags or ["none"]),
            )
        model = build_model({**config, **({"quick_gelu": True} if (tag or {}).get("quick_gelu") else {})}, tag or {})
        path = (
            download(lambda: open_clip.download_pretrained(tag), f"{name}@{parsed.weights}") if tag else parsed.weights
        )
        load_weights(model, Path(path))
    if "siglip" in name.lower() and not config["text_cfg"].get("hf_tokenizer_name"):
        model.tokens.tokenizer = model.tokenizer = download(
            lambda: open_clip.get_tokenizer(name), f"the tokenizer of {name}"
        )
    return model


def _open_hub(name: str) -> Model:
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, "*.json", "*.txt", "*.model", "open_clip_*.safetensors", WEIGHTS]
    folder = download(lambda: snapshot_download(name, allow_patterns=patterns), f"hf-hub:{name}")
    return _open_folder(Path(folder))


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
    model = build_model(config, document.get("preprocess_cfg", {}))
    weights = folder / ("ema.safetensors" if ema else WEIGHTS)
    if not weights.is_file():
        if ema:
            raise ModelError(
                f"{folder} holds no averaged weights",
                f"{weights.name} is missing: the run had no EMA teacher",
                "leave `ema` out of the reference",
            )
        found = [*folder.glob("open_clip_*.safetensors"), *folder.glob("*.safetensors")]
        if not found:
            raise ModelError(
                f"{folder} holds no weights", f"{weights.name} is missing", "train or copy the checkpoint again"
            )
        weights = found[0]
    load_weights(model, weights)
    return model
