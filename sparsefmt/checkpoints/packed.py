"""Integers of 4 or 8 bits in words of 32, as compressed-tensors has them in "pack-quantized".

X_packed      int32 (rows, ceil(cols / (32 / bits))): the first element of a word in its lowest bits, each with an
              offset of half its range, so that -8 is 0 and 7 is 15; what is left of the last word is not read
X_shape       int64 (2,): the rows and columns of X
"""

from __future__ import annotations

import numpy as np

from sparsefmt.adapters.rows import Rows
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, SparsefmtError
from sparsefmt.shapes import check_shape

WIDTHS = (4, 8)
"""Bits of an element that can be read."""


class PackedRows(Rows):
    """A matrix in this spelling, of one byte an element: I8, a run of rows at a time.

    How many bits an element has follows from the two shapes.

    Args:
        name: of the matrix, for errors.
        packed, shape: the parts.

    Attributes:
        nbits: of an element.

    Raises:
        FormatError: parts that do not fit each other.
    """

    def __init__(self, name: str, packed: Rows, shape: Rows) -> None:
        self._name = name
        rows, cols = self._read_shape(shape)
        super().__init__(DTYPES["I8"], (rows, cols))
        self.stack(1)
        if packed.dtype.name != "I32" or len(packed.shape) != 2:
            raise self._invalid(f"its words are {packed.dtype.name} {list(packed.shape)}, not a matrix of I32")
        packed.stack(1)
        fitting = [nbits for nbits in WIDTHS if packed.shape == (rows, -(-cols * nbits // 32))]
        if not fitting:
            raise self._invalid(
                f"its words are {list(packed.shape)}, which for a matrix of {[rows, cols]} are elements of neither"
                f" {' nor '.join(map(str, WIDTHS))} bits"
            )
        if len(fitting) > 1 and rows * cols:
            raise self._invalid(f"its {cols} columns may be elements of {' or '.join(map(str, fitting))} bits")
        self.nbits = fitting[0]
        self._packed = packed

    def bits(self, begin: int, end: int) -> np.ndarray:
        octets = self._packed.bits(begin, end).view(np.uint8)
        if self.nbits == 4:
            nibbles = np.stack([octets & 0xF, octets >> 4], axis=-1).reshape(end - begin, 2 * octets.shape[1])
            return np.ascontiguousarray(nibbles[:, : self.cols]) - np.uint8(8)
        return np.ascontiguousarray(octets[:, : self.cols]) - np.uint8(128)

    def _read_shape(self, shape: Rows) -> tuple[int, int]:
        if shape.dtype.name not in ("I64", "I32") or shape.rows * shape.cols != 2:
            raise self._invalid(f"its shape is {shape.dtype.name} {list(shape.shape)}, not the sizes of two dimensions")
        rows, cols = shape.bits(0, shape.rows).view(shape.dtype.numpy).reshape(-1).tolist()
        if min(rows, cols) < 0:
            raise self._invalid(f"its shape says {[rows, cols]}")
        try:
            check_shape((rows, cols), DTYPES["I8"])
        except SparsefmtError as error:
            raise error.within(self._name) from None
        return rows, cols

    def _invalid(self, message: str) -> FormatError:
        return FormatError("packed-invalid", message, tensor=self._name)
