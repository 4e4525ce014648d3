"""scipy.sparse matrices and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsefmt.dtypes import as_bits, dtype_of
from sparsefmt.errors import UnsupportedError
from sparsefmt.intake.contract import Intake


class ScipyIntake(Intake):
    """A scipy.sparse matrix or array, made dense a tile at a time."""

    def __init__(self, matrix: Any) -> None:
        if matrix.ndim != 2:
            raise UnsupportedError("shape-ndim", f"a sparse array must have 2 dimensions, not {matrix.ndim}")
        super().__init__(dtype_of(matrix.dtype), matrix.shape)
        self._matrix = matrix.tocsr()

    def bits(self, begin: int, end: int) -> np.ndarray:
        return as_bits(self._matrix[begin:end].toarray(), self.dtype)


def is_scipy_sparse(value: Any) -> bool:
    """Whether `value` is from scipy.sparse, without importing scipy."""
    return type(value).__module__.startswith("scipy.sparse")
