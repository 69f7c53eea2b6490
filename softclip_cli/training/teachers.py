"""The teacher in the training loop: from a batch to the embeddings that make its soft targets, whoever gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from softclip_cli.data.batches import Batch
from softclip_cli.errors import DataError
from softclip_cli.model import Model
from softclip_cli.training.features import FeatureStore

if TYPE_CHECKING:
    from softclip_cli.training.encoder import Encoder


class Teacher(Protocol):
    """Gives a batch's embeddings. They carry no gradient."""

    @property
    def logit_scale(self) -> Tensor:
        """The teacher's own k, a scalar."""

    def __call__(self, batch: Batch, part: slice) -> tuple[Tensor, Tensor]:
        """Embeddings of some of a batch's samples: images (n, e) and texts (n, e), or texts (0, e) where nobody asks for them.

        Args:
            batch: on the device (see `Batch.to`).
            part: which samples.
        """


class AverageTeacher:
    """The student's moving average, on the student's own inputs.

    Args:
        encoder: over the averaged weights.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @property
    def logit_scale(self) -> Tensor:
        """The average's k, a scalar."""
        return self.encoder.logit_scale

    def __call__(self, batch: Batch, part: slice) -> tuple[Tensor, Tensor]:
        """As `Teacher` says."""
        return self.encoder(batch.image[part], batch.text[part])


class LiveTeacher:
    """A frozen model that is asked in each step: about the student's very views, resized to its own size, and about its own tokens.

    Args:
        model: put into evaluation mode, without gradient.
        dtype: torch.bfloat16 computes its towers in that precision.
        texts: whether its texts are asked for; batches must carry `teacher_text` then.
        trunk: take images before the projection.
    """

    def __init__(
        self, model: Model, dtype: torch.dtype = torch.float32, *, texts: bool = True, trunk: bool = False
    ) -> None:
        self.model, self.dtype, self.texts, self.trunk = model, dtype, texts, trunk
        model.eval().net.requires_grad_(False)

    @property
    def logit_scale(self) -> Tensor:
        """The teacher's own k, a scalar."""
        return self.model.logit_scale

    def __call__(self, batch: Batch, part: slice) -> tuple[Tensor, Tensor]:
        """As `Teacher` says."""
        pixels = resized(batch.image[part], self.model.preprocess.size)
        assert not self.texts or batch.teacher_text is not None, "the batch was made without the teacher's tokenizer"
        read = batch.teacher_text[part] if self.texts and batch.teacher_text is not None else None
        with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            image = self.model.image_trunk(pixels) if self.trunk else self.model.encode_image(pixels, normalize=False)
            text = image[:0] if read is None else self.model.encode_text(read, normalize=False)
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


class StoredTeacher:
    """A frozen model that was asked once about every image and caption.

    Args:
        store: its embeddings of the training split, L2-normalised; a row of NaN where an image could not be decoded.
        logit_scale: its own k, a scalar.
    """

    def __init__(self, store: FeatureStore, logit_scale: Tensor) -> None:
        self.store, self.logit_scale = store, logit_scale
        self._missing = store.image.isnan().any(dim=1)

    def __call__(self, batch: Batch, part: slice) -> tuple[Tensor, Tensor]:
        """As `Teacher` says.

        Raises:
            DataError: an image that could be decoded for the student and not for the teacher.
        """
        rows = batch.index[part]
        missing = self._missing[rows]
        if missing.any():
            raise DataError(
                f"the teacher has no embedding of row {int(rows[missing][0])}",
                "its image could not be decoded when the embeddings were computed",
                "prepare the corpus again (softclip data prepare checks every image), or --set data.teacher_features=live",
            )
        image, text = self.store.lookup(rows, batch.caption[part])
        device = batch.image.device
        return image.to(device, non_blocking=True), text.to(device, non_blocking=True)


def resized(pixels: Tensor, size: int) -> Tensor:
    """uint8 (N, H, W, 3) → uint8 (N, size, size, 3), bicubic with antialiasing; unchanged where they have that size."""
    if tuple(pixels.shape[1:3]) == (size, size):
        return pixels
    planes = F.interpolate(pixels.permute(0, 3, 1, 2).float(), (size, size), mode="bicubic", antialias=True)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
