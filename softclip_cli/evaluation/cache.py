"""Image features on disk, found again only when everything that shaped them is the same."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softclip_cli.errors import HostError

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/softclip`, else `~/.cache/softclip`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "softclip"


class FeatureCache:
    """A folder of safetensors files, one for each set of images, model and kind of features.

    The key is a dictionary of everything that shapes the features. Its hash is the file's name, and the whole key is in
    the file and is compared, so a hit is never an accident. Files are written beside and renamed: never half a file.

    Args:
        folder: where the files are kept; made when missing.

    Raises:
        HostError: the folder cannot be written to.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder).expanduser() / "features" if folder is not None else default_folder() / "features"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(f"{self.folder} is not writable")
        except OSError as error:
            raise HostError(
                f"the feature cache {self.folder} cannot be used",
                str(error),
                "choose another with --cache DIR, or give --no-cache",
            ) from error

    def path(self, key: Mapping[str, Any]) -> Path:
        """The file for a key."""
        text = _text(key)
        return (
            self.folder
            / f"{key.get('features', 'features')}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        )

    def load(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The tensors kept under `key`, or None. A damaged file counts as absent."""
        from safetensors import SafetensorError, safe_open

        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as stored:
                if (stored.metadata() or {}).get("key") != _text(key):
                    return None
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("cached features in %s are damaged and are computed anew: %s", path, error)
            return None

    def store(self, key: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        """Keep `tensors` under `key`. A full disk is logged, not raised: the features themselves are not lost."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self.path(key)
        part = path.with_name(f".{path.stem}.{os.getpid()}.partial")
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata={"key": _text(key)}
            )
            part.replace(path)
        except (OSError, SafetensorError) as error:
            log.warning("features could not be kept in %s: %s", path, error)
            part.unlink(missing_ok=True)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=str)
