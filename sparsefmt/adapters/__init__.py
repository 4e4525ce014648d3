"""What users hand in, brought to one form at the border: one file for each kind, and the choice among them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from sparsefmt.adapters.arrays import ArrayIntake, BytesIntake
from sparsefmt.adapters.contract import Intake, Survey

__all__ = [
    "ArrayIntake",
    "BytesIntake",
    "Intake",
    "Survey",
    "identity_of",
    "intake_of",
    "is_scipy_sparse",
]


def intake_of(value: Any) -> Intake:
    """The intake for an array, a tensor of torch, a sparse one of torch, scipy or pydata, or what is one already.

    Raises:
        UnsupportedError: what cannot be stored: a dtype that the format lacks, a kind of tensor that is not known.
        FormatError: a sparse tensor that is not well formed.
    """
    if isinstance(value, Intake):
        return value
    if _is_torch_tensor(value):
        from sparsefmt.adapters import torch

        return torch.intake_of(value)
    if is_scipy_sparse(value):
        from sparsefmt.adapters import scipy

        return scipy.intake_of(value)
    if _is_pydata_sparse(value):
        from sparsefmt.adapters import pydata

        return pydata.intake_of(value)
    return ArrayIntake(value)


def identity_of(value: Any) -> object:
    """Equal for two values that are one tensor: the same object, or the same elements of the same memory.

    It means something as long as both are alive. Arrays without elements have no memory to compare.
    """
    if isinstance(value, np.ndarray) and value.size:
        return value.ctypes.data, value.dtype, value.shape, value.strides
    if _is_torch_tensor(value):
        from sparsefmt.adapters import torch

        return torch.identity_of(value)
    return id(value)


def is_scipy_sparse(value: Any) -> bool:
    """Whether `value` is from scipy.sparse, without importing scipy."""
    scipy_sparse = sys.modules.get("scipy.sparse")
    return scipy_sparse is not None and scipy_sparse.issparse(value)


def _is_torch_tensor(value: Any) -> bool:
    # nobody has a tensor who has not imported torch
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(value, kind)


def _is_pydata_sparse(value: Any) -> bool:
    # of that name, there are other modules
    kind = getattr(sys.modules.get("sparse"), "SparseArray", None)
    return isinstance(kind, type) and isinstance(value, kind)
