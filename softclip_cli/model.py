"""`Model`: two towers, their tokenizer and the pixels they want, behind one set of calls that every command uses."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from softclip_cli.blocks import quicken
from softclip_cli.data.decode import Preprocess
from softclip_cli.data.text import Tokenize
from softclip_cli.errors import UsageError
from softclip_cli.towers import ImageTower, TextTower

WEIGHTS, CONFIG = "model.safetensors", "open_clip_config.json"
TOWERS = ("image", "text")


@dataclass
class Model:
    """An image tower and a text tower with a common embedding.

    Attributes:
        net: `open_clip.CLIP` or `open_clip.CustomTextCLIP`.
        config: open_clip's `model_cfg`, from which stock open_clip builds the same network.
        preprocess: the pixels that the image tower wants.
        tokenizer: texts → token ids, open_clip's or a Hugging Face one behind open_clip's wrapper.
        reference: as the user wrote it.
        name: short, for tables and folder names.
        notes: what the loader decided by itself, with its reason, for a person to read.
    """

    net: Any
    config: dict[str, Any]
    preprocess: Preprocess
    tokenizer: Any
    reference: str = ""
    name: str = ""
    notes: list[str] = field(default_factory=list)
    locked: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        hugging_face = getattr(self.tokenizer, "tokenizer", None)
        pad_id = getattr(hugging_face, "pad_token_id", None)
        quicken(self.net)
        self.image = ImageTower(self.net)
        self.text = TextTower(self.net)
        self.text.context_length = self.config["text_cfg"].get("context_length", self.text.context_length)
        pad_id = pad_id if pad_id is not None else self.config["text_cfg"].get("pad_id", 0)
        self.tokens = Tokenize(self.tokenizer, pad_id, self.text.trimmable)
        self._place()

    def _place(self) -> None:
        self._mean = torch.tensor(self.preprocess.mean, device=self.device) * 255
        self._scale = 1 / (torch.tensor(self.preprocess.std, device=self.device) * 255)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.net.logit_scale.device

    @property
    def embed_dim(self) -> int:
        """Width of the common embedding."""
        return int(self.config["embed_dim"])

    @property
    def logit_scale(self) -> Tensor:
        """k = exp of the learnable parameter, a scalar."""
        return self.net.logit_scale.exp().reshape(())

    def to(self, device: torch.device | str) -> Model:
        """Move the weights, in place."""
        self.net.to(device)
        self._place()
        return self

    def train(self, mode: bool = True) -> Model:
        """Training or evaluation mode. Locked trunks stay in evaluation mode (batch-norm statistics, dropout)."""
        self.net.train(mode)
        if mode:
            if "image" in self.locked:
                getattr(self.image.visual, "trunk", self.image.visual).eval()
            if "text" in self.locked:
                for module in self.text.modules:
                    module.eval()
        return self

    def eval(self) -> Model:
        """Evaluation mode."""
        return self.train(False)

    def lock(self, towers: frozenset[str] | set[str]) -> Model:
        """Freeze the trunks of the named towers ("image", "text"); their projections and the logit scale stay trainable.

        Raises:
            UsageError: a name that is no tower.
        """
        unknown = set(towers) - set(TOWERS)
        if unknown:
            raise UsageError(
                f"no tower named {', '.join(sorted(unknown))}", hint="--lock takes image, text, or image,text"
            )
        if "image" in towers:
            heads = {id(p) for p in self.image.head_parameters()}
            for parameter in self.image.module.parameters():
                parameter.requires_grad_(id(parameter) in heads)
        if "text" in towers:
            for parameter in self.text.trunk_parameters:
                parameter.requires_grad_(False)
        self.locked = frozenset(towers)
        return self

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) → float32 (N, 3, H, W) with the tower's mean and standard deviation, on its device.

        The result keeps the memory order of the input, which is channels_last: the fast one for convolutions.
        """
        # In place, and over rows of W·3 numbers: three at a time are not vectorised on a CPU (a third of the time).
        width = pixels.shape[2]
        rows = pixels.to(self.device, non_blocking=True).flatten(2).to(torch.float32, copy=True)
        rows.sub_(self._mean.repeat(width)).mul_(self._scale.repeat(width))
        return rows.view(pixels.shape).permute(0, 3, 1, 2)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Texts → token ids, int64 (N, L) on the CPU; L is the batch's longest, rounded up, where that is exact."""
        return self.tokens(texts)

    def encode_image(self, pixels: Tensor, normalize: bool = True) -> Tensor:
        """uint8 (N, H, W, 3) → (N, embed_dim), L2-normalised unless told otherwise."""
        features = self.image(self.normalise(pixels))
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Token ids (N, L) → (N, embed_dim), L2-normalised unless told otherwise."""
        features = self.text(tokens.to(self.device, non_blocking=True))
        return F.normalize(features, dim=-1) if normalize else features

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) → features before the projection (N, width): what a linear probe is fitted on."""
        return self.image.trunk(self.normalise(pixels))

    def image_head(self, features: Tensor, normalize: bool = True) -> Tensor:
        """Trunk features (N, width) → (N, embed_dim)."""
        features = self.image.head(features)
        return F.normalize(features, dim=-1) if normalize else features

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) → features before the projection (N, width)."""
        return self.text.trunk(tokens.to(self.device, non_blocking=True))

    def text_head(self, features: Tensor, normalize: bool = True) -> Tensor:
        """Trunk features (N, width) → (N, embed_dim)."""
        features = self.text.head(features)
        return F.normalize(features, dim=-1) if normalize else features

    def fingerprint(self, part: str = "") -> str:
        """SHA-256 over everything that shapes an embedding: configuration, preprocessing and weights.

        Args:
            part: "image trunk" or "text trunk" for what shapes that trunk's features only; empty for the whole model.
        """
        config = deepcopy(self.config)
        # The folder that a text tower was read from does not shape what it computes.
        config["text_cfg"] = {k: v for k, v in config["text_cfg"].items() if not k.startswith("hf_") or "type" in k}
        keep: set[int] | None = None
        if part == "image trunk":
            config = {"vision_cfg": {k: v for k, v in config["vision_cfg"].items() if "proj" not in k}}
            heads = {id(p) for p in self.image.head_parameters()}
            owned = [*self.image.module.parameters(), *self.image.module.buffers()]
            keep = {id(tensor) for tensor in owned} - heads
        elif part == "text trunk":
            config = {"text_cfg": {k: v for k, v in config["text_cfg"].items() if "proj" not in k}}
            keep = {id(p) for p in self.text.trunk_parameters}
        digest = hashlib.sha256(json.dumps([part, config, self.preprocess.to_open_clip()], sort_keys=True).encode())
        for name, tensor in sorted([*self.net.named_parameters(), *self.net.named_buffers()]):
            if keep is None or id(tensor) in keep:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def summary(self) -> dict[str, Any]:
        """The facts that `softclip models show` prints."""
        parameters = list(self.net.parameters())
        return {
            "reference": self.reference,
            "name": self.name,
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "embed_dim": self.embed_dim,
            "image_tower": self.config["vision_cfg"].get("timm_model_name") or type(self.image.visual).__name__,
            "image_size": self.preprocess.size,
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            "interpolation": self.preprocess.interpolation,
            "text_tower": self.config["text_cfg"].get("hf_model_name") or "Transformer",
            "context_length": self.text.context_length,
            "text_trimmed": self.text.trimmable,
            "logit_scale": round(float(self.logit_scale.detach()), 4),
            "notes": self.notes,
        }

    def save(self, folder: Path, *, final: Path | None = None, state: dict[str, Tensor] | None = None) -> None:
        """Write what stock open_clip needs to load this model: `create_model("local-dir:FOLDER")`.

        Args:
            folder: an existing folder to write into.
            final: where the folder will stand after a rename; a Hugging Face text tower's configuration names it.
            state: weights to write in the place of the network's own (for example a copy made while training went on).
        """
        state = state if state is not None else self.net.state_dict()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
        config = deepcopy(self.config)
        if self.text.hugging_face:
            # open_clip reads the tokenizer from the folder itself, and the tower's configuration from `hf_model_name`.
            self.text.text.config.save_pretrained(folder)
            self.tokenizer.save_pretrained(str(folder))
            config["text_cfg"]["hf_model_name"] = config["text_cfg"]["hf_tokenizer_name"] = str(
                (final or folder).resolve()
            )
            config["text_cfg"]["hf_model_pretrained"] = False
        config["vision_cfg"].pop("timm_model_pretrained", None)
        document = {"model_cfg": config, "preprocess_cfg": self.preprocess.to_open_clip()}
        (folder / CONFIG).write_text(json.dumps(document, indent=2) + "\n")
