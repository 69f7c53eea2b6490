"""Where a probe's classifier is fitted: NumPy, or a GPU through scikit-learn's array API, with the reason for the choice."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE = 10_000_000  # numbers in the feature matrix from which on a GPU is taken [ours; not measured]
COPIES = 3  # of the features that a fit may need at once: all, the part that is fitted on, and products of it
VARIABLE = "SCIPY_ARRAY_API"


@dataclass(frozen=True)
class SolverArrays:
    """What scikit-learn is given.

    Attributes:
        device: torch tensors on it; None: NumPy arrays.
        reason: why.
    """

    device: torch.device | None = None
    reason: str = ""

    def matrix(self, features: Tensor, single: bool) -> Any:
        """Features (N, width) in float64, or float32 with `single`."""
        if self.device is None:
            return np.ascontiguousarray(features.numpy(), dtype=np.float32 if single else np.float64)
        return features.to(self.device, torch.float32 if single else torch.float64)

    def labels(self, labels: np.ndarray) -> Any:
        """int64 (N,)."""
        return labels if self.device is None else torch.from_numpy(labels).to(self.device)

    def rows(self, values: Any, index: np.ndarray) -> Any:
        """Some of the rows."""
        return values[index if self.device is None else torch.from_numpy(index).to(self.device)]

    def joined(self, first: Any, second: Any) -> Any:
        """All rows of two."""
        return np.concatenate([first, second]) if self.device is None else torch.cat([first, second])

    def described(self) -> str:
        """For the result: `NumPy on the CPU: the model is on the CPU`."""
        return f"{'NumPy on the CPU' if self.device is None else f'torch on {self.device}'}: {self.reason}"


def dispatching(features: Any) -> AbstractContextManager[None]:
    """A context in which scikit-learn computes with the features' own library."""
    if not isinstance(features, Tensor):
        return nullcontext()
    from sklearn import config_context

    return config_context(array_api_dispatch=True)


def allow_dispatch() -> None:
    """Set what SciPy reads when it is imported, without which scikit-learn refuses its array API.

    To be called by a command, before anything imports SciPy; afterwards it does nothing.
    """
    if "scipy" not in sys.modules:
        os.environ.setdefault(VARIABLE, "1")


def choose_arrays(rows: int, width: int, single: bool, device: torch.device) -> SolverArrays:
    """Choose where to fit `rows` × `width` features of a model on `device`.

    A CUDA device is taken for at least `LARGE` numbers, where scikit-learn's LogisticRegression says that it takes other
    arrays than NumPy's (1.9 does) and the device has room.
    """
    if device.type != "cuda":
        return SolverArrays(reason=f"the model is on {device.type}")
    if rows * width < LARGE:
        return SolverArrays(reason=f"{rows:,} × {width:,} features are few: a GPU pays from {LARGE:,} numbers on")
    lacking = unsupported()
    if lacking:
        return SolverArrays(reason=lacking)
    needed, free = COPIES * rows * width * (4 if single else 8), torch.cuda.mem_get_info(device)[0]
    if needed > free:
        return SolverArrays(
            reason=f"{needed / 2**30:.1f} GiB are needed on {device}, {free / 2**30:.1f} GiB are free there"
        )
    return SolverArrays(device, f"{rows:,} × {width:,} features, scikit-learn's array API")


def unsupported() -> str:
    """Why scikit-learn here cannot fit on torch tensors; an empty string where it can."""
    import sklearn
    from sklearn.linear_model import LogisticRegression

    if not getattr(LogisticRegression().__sklearn_tags__(), "array_api_support", False):
        return f"scikit-learn {sklearn.__version__} fits NumPy arrays only (1.9 takes others)"
    try:
        with sklearn.config_context(array_api_dispatch=True):
            pass
    except (ImportError, RuntimeError):
        return f"scikit-learn's array API is off: it wants {VARIABLE}=1 in the environment and a recent SciPy"
    return ""
