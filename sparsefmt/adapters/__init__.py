"""Adapters: the border to the libraries whose tensors people have. A file for each library, and which of them takes a
tensor.

Each turns tensors of its library into `Rows`, which all that is stored is made of. Those of numpy and torch also turn
what is in an open file, a `FileTensor`, into tensors. A library is imported when it is asked for.
"""

from __future__ import annotations

import sys
from typing import Any

from sparsefmt.adapters import numpy
from sparsefmt.adapters.bytes_rows import BytesRows
from sparsefmt.adapters.contract import Adapter
from sparsefmt.adapters.numpy import ArrayRows
from sparsefmt.adapters.rows import Rows, Survey
from sparsefmt.errors import UnsupportedError

__all__ = [
    "Adapter",
    "ArrayRows",
    "BytesRows",
    "Rows",
    "Survey",
    "adapter_of",
    "identity_of",
    "is_scipy_sparse",
    "rows_of",
]

_NUMPY = ("np", "numpy")
_TORCH = ("pt", "torch", "pytorch")


def rows_of(value: Any) -> Rows:
    """The rows of an array, a tensor of torch, a sparse one of torch, scipy or pydata, or what is one already.

    Raises:
        UnsupportedError: what cannot be stored: a dtype that the format lacks, a kind of tensor that is not known.
        FormatError: a sparse tensor that is not well formed.
    """
    if isinstance(value, Rows):
        return value
    if _is_torch_tensor(value):
        from sparsefmt.adapters import torch

        return torch.rows_of(value)
    if is_scipy_sparse(value):
        from sparsefmt.adapters import scipy

        return scipy.rows_of(value)
    if _is_pydata_sparse(value):
        from sparsefmt.adapters import pydata

        return pydata.rows_of(value)
    return numpy.rows_of(value)


def identity_of(value: Any) -> object:
    """Equal for two values that are one tensor: the same object, or the same elements of the same memory.

    It means something as long as both are alive. Arrays without elements have no memory to compare.
    """
    if _is_torch_tensor(value):
        from sparsefmt.adapters import torch

        return torch.identity_of(value)
    return numpy.identity_of(value)


def adapter_of(framework: str) -> Adapter:
    """The adapter of the library that safetensors knows by a name: "np" or "numpy"; "pt", "torch" or "pytorch".

    Raises:
        UnsupportedError: there is no way from a file to tensors of this library.
    """
    if framework in _NUMPY:
        return numpy
    if framework in _TORCH:
        from sparsefmt.adapters import torch

        return torch
    known = ", ".join(map(repr, _NUMPY + _TORCH))
    raise UnsupportedError("framework-unknown", f"framework must be one of {known}, not {framework!r}")


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
