"""numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsefmt.errors import UnsupportedError
from sparsefmt.frameworks.contract import Framework
from sparsefmt.sparse_file import SparseFile


class NumpyFramework(Framework):
    """numpy, on the CPU. bfloat16, fp8 and sub-byte types are those of ml_dtypes."""

    ties = False

    def __init__(self, device: Any = "cpu") -> None:
        # a torch.device says its name
        if device is not None and str(device) != "cpu":
            raise UnsupportedError("device-unsupported", f"numpy has no device {device!r}, only 'cpu'")

    def tensor(self, file: SparseFile, name: str) -> np.ndarray:
        return file.get_tensor(name)

    def part(self, file: SparseFile, name: str, key: Any) -> np.ndarray:
        # an index of single elements gives scalars
        return own(np.asarray(file.get_slice(name)[key]))


def own(array: np.ndarray) -> np.ndarray:
    """`array` if it is contiguous and all there is in its memory, else a copy that is."""
    whole = array.base is None or getattr(array.base, "nbytes", -1) == array.nbytes
    return array if whole and array.flags.c_contiguous else array.copy()
