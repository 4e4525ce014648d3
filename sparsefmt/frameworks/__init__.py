"""Tensors of the libraries that people compute with, made from an open file. A framework is imported when asked for."""

from __future__ import annotations

from typing import Any

from sparsefmt.errors import UnsupportedError
from sparsefmt.frameworks.contract import Framework

_NUMPY = ("np", "numpy")
_TORCH = ("pt", "torch", "pytorch")


def framework_of(name: str, device: Any) -> Framework:
    """The framework that safetensors knows by `name`, giving tensors on `device`.

    Raises:
        UnsupportedError: a framework that this library has no tensors for, or a device that numpy does not have.
        RuntimeError, TypeError: torch raises them for a text that is not a device.
    """
    if name in _NUMPY:
        from sparsefmt.frameworks.host import NumpyFramework

        return NumpyFramework(device)
    if name in _TORCH:
        from sparsefmt.frameworks.pytorch import TorchFramework

        return TorchFramework(device)
    known = ", ".join(map(repr, _NUMPY + _TORCH))
    raise UnsupportedError("framework-unknown", f"framework must be one of {known}, not {name!r}")
