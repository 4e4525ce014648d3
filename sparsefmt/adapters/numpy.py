"""Dense tensors: numpy arrays, and tensors as they lie in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsefmt.adapters import mistakes
from sparsefmt.adapters.contract import Rows
from sparsefmt.dtypes import DType, as_bits, dtype_of, unpack
from sparsefmt.errors import FormatError, UnsupportedError


class ArrayRows(Rows):
    """A numpy array, or whatever numpy makes one of; what speaks DLPack alone, too."""

    def __init__(self, array: Any) -> None:
        given = array
        if reason := mistakes.refusal(given):
            raise FormatError("tensors-invalid", reason)
        if hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
            array = np.from_dlpack(array)
        try:
            array = np.asanyarray(array)
        except ValueError as error:  # a list of lists of several lengths
            raise UnsupportedError("dtype-unknown", f"numpy makes no array of it: {error}") from None
        if isinstance(array, np.ma.MaskedArray):
            raise UnsupportedError("dtype-unknown", "a masked array has no single meaning: call .filled() first")
        if reason := mistakes.refusal_of_array(array, given):
            raise UnsupportedError("dtype-unknown", reason)
        super().__init__(dtype_of(array.dtype), array.shape)
        self._array = np.asarray(array)

    def bits(self, begin: int, end: int) -> np.ndarray:
        part = self._array[begin:end] if self.shape else self._array
        return as_bits(part, self.dtype).reshape(end - begin, self.cols)


class BytesRows(Rows):
    """A dense tensor as it lies in a file: little-endian, row-major, sub-byte types packed.

    Args:
        read: gives `size` bytes of the tensor at byte `offset` as a uint8 array: read(offset, size).
    """

    def __init__(self, read: Callable[[int, int], np.ndarray], dtype: DType, shape: tuple[int, ...]) -> None:
        super().__init__(dtype, shape)
        self._read = read

    def bits(self, begin: int, end: int) -> np.ndarray:
        elements = (end - begin) * self.cols
        data = self._read(begin * self.cols * self.dtype.bits // 8, self.dtype.nbytes(elements))
        if self.dtype.packed:
            bits = unpack(data, self.dtype, elements)
        else:
            # files guarantee no alignment
            bits = np.require(data.view(self.dtype.bits_dtype), requirements="A")
        return bits.reshape(end - begin, self.cols)
