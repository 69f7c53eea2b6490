"""From a batch to normalised embeddings: through the whole towers, or from stored trunk features through the projections only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softclip_cli.errors import HostError
from softclip_cli.model import Model
from softclip_cli.training.phases import IMAGE_TOWER, TEXT_TOWER, phase


class TowerEncoder:
    """Pixels and tokens through both towers.

    Args:
        model: in training or evaluation mode, as the caller set it.
        dtype: arithmetic of the towers; bfloat16 means autocast. Embeddings come out float32 either way.
        compiled: run the towers through torch.compile. Functions are compiled, not modules, so that nothing is renamed.
    """

    def __init__(self, model: Model, dtype: torch.dtype, compiled: bool = False) -> None:
        self.model, self.dtype, self.compiled = model, dtype, compiled
        self.module: Any = model.net

        def image(pixels: Tensor) -> Tensor:
            return model.encode_image(pixels, normalize=False)

        def text(tokens: Tensor) -> Tensor:
            return model.encode_text(tokens, normalize=False)

        # Shapes repeat (data/text.py), so each gets code of its own instead of one that suits all.
        self._image, self._text = (torch.compile(f, dynamic=False) if compiled else f for f in (image, text))

    def __call__(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, H, W, 3) and int64 (N, L) → two float32 (N, embed_dim), L2-normalised.

        Raises:
            HostError: the towers cannot be compiled here.
        """
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            try:
                with phase(IMAGE_TOWER):
                    v = self._image(image)
                with phase(TEXT_TOWER):
                    t = self._text(text)
            except RuntimeError as error:
                if not self.compiled or not _is_of_compiler(error):
                    raise
                why = " ".join(str(error).split("\n")[:2])
                raise HostError("the towers cannot be compiled here", why, "--set compile=never") from error
        return F.normalize(v.float(), dim=-1), F.normalize(t.float(), dim=-1)

    def like(self, module: nn.Module) -> TowerEncoder:
        """The same encoder over another copy of the network (a teacher)."""
        return TowerEncoder(replace(self.model, net=module, locked=frozenset()), self.dtype, self.compiled)

    @property
    def logit_scale(self) -> Tensor:
        """k, a scalar."""
        return self.model.logit_scale


def _is_of_compiler(error: RuntimeError) -> bool:
    from torch._dynamo.exc import BackendCompilerFailed  # slow to import, and needed where it is loaded already

    return isinstance(error, BackendCompilerFailed)


class Projections(nn.Module):
    """The two projections and the logit scale: all that trains when both trunks are frozen. Shares the model's own parameters."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.image = _as_module(model.image.visual, model.image.head_parameters(), ("head", "proj"))
        self.text = _as_module(model.text.text, model.text.head_parameters(), ("proj", "text_projection"))
        self.logit_scale = model.net.logit_scale


class _Matrix(nn.Module):
    """A projection that is a bare matrix, or none at all."""

    def __init__(self, matrix: nn.Parameter | None) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, features: Tensor) -> Tensor:
        return features if self.matrix is None else features @ self.matrix


def _as_module(owner: Any, parameters: list[nn.Parameter], names: tuple[str, ...]) -> nn.Module:
    for name in names:
        module = getattr(owner, name, None)
        if isinstance(module, nn.Module):
            return module
    if hasattr(owner, "attnpool"):
        return owner.attnpool.c_proj
    return _Matrix(parameters[0] if parameters else None)


class ProjectionEncoder:
    """Stored trunk features through the projections.

    Args:
        projections: of the model.
    """

    def __init__(self, projections: Projections) -> None:
        self.module: Any = projections

    def __call__(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """float32 (N, image width) and (N, text width) → two float32 (N, embed_dim), L2-normalised."""
        with phase(IMAGE_TOWER):
            v = self.image(image)
        with phase(TEXT_TOWER):
            t = self.text(text)
        return v, t

    def image(self, features: Tensor) -> Tensor:
        """float32 (N, image width) → (N, embed_dim), L2-normalised."""
        return F.normalize(self.module.image(features), dim=-1)

    def text(self, features: Tensor) -> Tensor:
        """float32 (N, text width) → (N, embed_dim), L2-normalised."""
        return F.normalize(self.module.text(features), dim=-1)

    def like(self, module: nn.Module) -> ProjectionEncoder:
        """The same encoder over another copy of the projections (a teacher)."""
        return ProjectionEncoder(module)  # type: ignore[arg-type]

    @property
    def logit_scale(self) -> Tensor:
        """k, a scalar."""
        return self.module.logit_scale.exp().reshape(())


Encoder = TowerEncoder | ProjectionEncoder
