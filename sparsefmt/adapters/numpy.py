"""numpy arrays, those of ml_dtypes among them: bfloat16, fp8 and sub-byte types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sparsefmt.adapters import mistakes
from sparsefmt.adapters.rows import Rows
from sparsefmt.dtypes import as_bits, dtype_of
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.file_tensor import FileTensor

SHARES_TIED = False


def rows_of(array: Any) -> Rows:
    """An array, or whatever numpy makes one of, as it is to be stored.

    Raises:
        UnsupportedError: the format does not have the dtype, or numpy makes no array of it.
        FormatError: it is not an array, such as a dict or a text.
    """
    return ArrayRows(array)


def identity_of(array: Any) -> object:
    """Equal for two that are one object, or the same elements of the same memory."""
    if isinstance(array, np.ndarray) and array.size:
        return array.ctypes.data, array.dtype, array.shape, array.strides
    return id(array)


def device_of(device: Any) -> str:
    """The CPU.

    Raises:
        UnsupportedError: it is another device.
    """
    # a torch.device says its name
    if device is not None and str(device) != "cpu":
        raise UnsupportedError("device-unsupported", f"numpy has no device {device!r}, only 'cpu'")
    return "cpu"


def shape_of(stored: FileTensor) -> tuple[int, ...]:
    """The shape that `tensor_of` gives."""
    return stored.shape


def nbytes_of(stored: FileTensor) -> int:
    """Bytes that `tensor_of` allocates for the result. Sub-byte types take a byte for each element."""
    return stored.nbytes


def tensor_of(stored: FileTensor, device: Any = "cpu") -> np.ndarray:
    """A tensor in a file as an array.

    Raises:
        as `FileTensor.whole`.
    """
    return stored.whole()


def part_of(stored: FileTensor, key: Any, device: Any = "cpu") -> np.ndarray:
    """`tensor_of(stored)[key]`, indexed as numpy does it.

    Raises:
        IndexError: out of range, or another kind of index than `indexing.index` takes.
        as `FileTensor.whole`.
    """
    # an index of single elements gives scalars
    part = np.asarray(stored[key])
    whole = part.base is None or getattr(part.base, "nbytes", -1) == part.nbytes
    return part if whole and part.flags.c_contiguous else part.copy()


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
        if self.row_dims > 1:
            parts = [as_bits(part, self.dtype) for part in self._runs(self._array, begin, end, self.row_dims)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        part = self._array[begin:end] if self.shape else self._array
        return as_bits(part, self.dtype).reshape(end - begin, self.cols)

    def _runs(self, array: np.ndarray, begin: int, end: int, row_dims: int) -> Iterator[np.ndarray]:
        """Rows `begin` to `end` of a stack, matrix by matrix. Of one in row-major order, they are one view."""
        if array.flags.c_contiguous:
            yield array.reshape(-1, self.cols)[begin:end]
        elif row_dims == 1:
            yield array[begin:end].reshape(end - begin, self.cols)
        else:
            height = array[0].size // self.cols
            for number in range(begin // height, -(-end // height)):
                first = number * height
                yield from self._runs(array[number], max(begin - first, 0), min(end - first, height), row_dims - 1)
