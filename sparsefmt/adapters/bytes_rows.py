"""Bytes that stand for a dense tensor, as rows: what files and the memory of other libraries have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsefmt.adapters.rows import Rows
from sparsefmt.dtypes import DType, unpack


class BytesRows(Rows):
    """A dense tensor as it lies in a file: little-endian, row-major, sub-byte types packed.

    Args:
        read: gives `size` bytes of the tensor at byte `offset` as a uint8 array: read(offset, size).
        is_settled: whether nobody changes such an array any more.
    """

    def __init__(
        self, read: Callable[[int, int], np.ndarray], dtype: DType, shape: tuple[int, ...], is_settled: bool = False
    ) -> None:
        super().__init__(dtype, shape)
        self._read = read
        self.is_settled = is_settled

    def bits(self, begin: int, end: int) -> np.ndarray:
        elements = (end - begin) * self.cols
        data = self._read(begin * self.cols * self.dtype.nbits // 8, self.dtype.nbytes(elements))
        if self.dtype.packed:
            bits = unpack(data, self.dtype, elements)
        else:
            # files guarantee no alignment
            bits = np.require(data.view(self.dtype.bits_dtype), requirements="A")
        return bits.reshape(end - begin, self.cols)
