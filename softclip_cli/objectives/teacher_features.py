"""A frozen teacher's embeddings of a whole split, computed once, stored in one file, looked up in every step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from softclip_cli.errors import ModelError
from softclip_cli.objectives.embeddings import Embeddings
from softclip_cli.objectives.teacher import FrozenTeacher

FINGERPRINT = "softclip_fingerprint"


@dataclass(frozen=True)
class TeacherFeatures:
    """Embeddings of all images and captions of a split, L2-normalised.

    Attributes:
        image: (rows, e).
        text: (captions, e), all captions of all rows, row after row.
        first: int64 (rows + 1,): the captions of row i are first[i] … first[i+1] − 1.
        logit_scale: the teacher's own, a scalar.
    """

    image: Tensor
    text: Tensor
    first: Tensor
    logit_scale: Tensor

    @classmethod
    def compute(
        cls,
        teacher: FrozenTeacher,
        pixels: Iterable[Tensor],
        tokens: Iterable[Tensor],
        first: Tensor,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> TeacherFeatures:
        """Embed a split.

        Args:
            teacher: the checkpoint.
            pixels: uint8 (n, H, W, 3) batches of the images in order, in the teacher's evaluation view.
            tokens: (n, L) batches of the captions in order.
            first: int64 (rows + 1,), see the class.
            progress: (done, total) over images and captions.

        Raises:
            ModelError: the batches do not add up to what `first` says.
        """
        rows, captions = first.numel() - 1, int(first[-1])
        done = 0
        sides: list[Tensor] = []
        for encode, batches in ((teacher.image, pixels), (teacher.text, tokens)):
            parts = []
            for batch in batches:
                parts.append(encode(batch).cpu())
                done += len(batch)
                if progress:
                    progress(done, rows + captions)
            sides.append(torch.cat(parts) if parts else torch.empty(0, 0))
        found = cls(sides[0], sides[1], first.cpu(), teacher.logit_scale.float().cpu().reshape(()))
        if len(found.image) != rows or len(found.text) != captions:
            raise ModelError(
                "the teacher's features do not match the split",
                f"{len(found.image)} images and {len(found.text)} captions embedded, {rows} and {captions} expected",
            )
        return found

    def save(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        """Write to a file, beside it first, then renamed: never half a file.

        Args:
            path: where to; its folder is made.
            fingerprint: all that shapes the features (teacher, transform, corpus, split), asked for again by `load`.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"image": self.image, "text": self.text, "first": self.first, "logit_scale": self.logit_scale}
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            beside,
            metadata={FINGERPRINT: json.dumps(dict(fingerprint), sort_keys=True)},
        )
        beside.replace(path)

    @classmethod
    def load(cls, path: Path, fingerprint: Mapping[str, str]) -> TeacherFeatures:
        """Read, memory-mapped, what `save` wrote under the same fingerprint.

        Raises:
            ModelError: no such file, not such a file, or made from something else; says from what.
        """
        try:
            with safe_open(path, framework="pt") as stream:
                written = json.loads((stream.metadata() or {}).get(FINGERPRINT, "{}"))
            tensors = load_file(path)
            found = cls(tensors["image"], tensors["text"], tensors["first"], tensors["logit_scale"])
        except FileNotFoundError:
            raise ModelError(f"no stored teacher features at {path}") from None
        except (SafetensorError, json.JSONDecodeError, KeyError) as error:
            raise ModelError(
                f"{path} holds no teacher features", str(error), "delete the file; it is made again"
            ) from None
        differing = [key for key in sorted({*written, *fingerprint}) if written.get(key) != fingerprint.get(key)]
        if differing:
            raise ModelError(
                f"the teacher features in {path} were made from something else",
                "; ".join(f"{key}: stored {written.get(key)}, wanted {fingerprint.get(key)}" for key in differing),
                "delete the file; it is made again",
            )
        return found

    def lookup(self, rows: Tensor, captions: Tensor, device: torch.device | str = "cpu") -> Embeddings:
        """The teacher's embeddings of a batch.

        Args:
            rows: int64 (N,), rows of the split.
            captions: int64 (N,), which of the row's captions: 0 for the first.
            device: where they are wanted.
        """
        rows, captions = rows.cpu(), captions.cpu()
        return Embeddings(
            self.image[rows].to(device), self.text[self.first[rows] + captions].to(device), self.logit_scale.to(device)
        )
