"""A matrix as elements and scales, made of its rows a run at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.quantizing.quantization import Loss, Quantization
from sparsefmt.threads import in_order

FLOATS = ("F32", "BF16", "F16", "F64")
"""dtypes of weights that can be quantized. Those of F64 are rounded to float32 first."""


class QuantizedMatrix(NamedTuple):
    """A matrix rounded to elements and scales.

    Attributes:
        rows: the elements, to be laid out, made anew from the weights each time they are read.
        scale: float32 (rows, groups).
        loss: what rounding lost.
    """

    rows: Rows
    scale: np.ndarray
    loss: Loss


def quantized(matrix: Rows, how: Quantization, threads: int | None = None) -> QuantizedMatrix:
    """Find the scales of a matrix, and round it to elements.

    Elements that are zero have no sign.

    Raises:
        UnsupportedError: weights of another dtype than FLOATS; not a matrix; groups that do not divide its columns.
        FormatError: weights that are NaN or infinite, or too large for float32.

    Cost: one read of the matrix, and another each time that the elements are read. Holds the scales, and a run of rows
        in float32 for each thread.
    """
    from sparsefmt.quantizing.jitted import elements

    if matrix.dtype.name not in FLOATS:
        raise UnsupportedError(
            "quantize-dtype", f"weights of dtype {matrix.dtype.name} are not quantized: only {', '.join(FLOATS)} are"
        )
    if len(matrix.shape) != 2:
        raise UnsupportedError("quantize-shape", f"a tensor of shape {list(matrix.shape)} is not a matrix")
    groups = matrix.cols // how.width(matrix.cols) or 1
    scale = np.zeros((matrix.rows, groups), np.float32)
    numbers = np.arange(256, dtype=np.uint8).view(DTYPES[how.dtype].numpy).astype(np.float32)

    def find(run: tuple[int, int]) -> Loss:
        settings = np.float32(how.largest), numbers, how.scale == "mse", how.values == "fp8"
        *lost, finite = elements.find_scales(_float32(matrix, *run), *settings, scale[slice(*run)])
        if not finite:
            raise FormatError(
                "quantize-not-finite", f"some of its weights in rows {run[0]:,} to {run[1] - 1:,} are NaN or infinite"
            )
        return Loss(*lost)

    loss = Loss.total(in_order(find, list(matrix.runs(0, matrix.rows)), threads))
    return QuantizedMatrix(_Elements(matrix, how, scale), scale, loss)


def dequantized(elements: Rows, scale: np.ndarray) -> Rows:
    """The matrix that elements (rows, cols) and scales (rows, groups), float32, stand for, in float32."""
    return _Products(elements, scale)


class _Elements(Rows):
    """The elements of a matrix whose scales have been found."""

    def __init__(self, matrix: Rows, how: Quantization, scale: np.ndarray) -> None:
        super().__init__(DTYPES[how.dtype], matrix.shape)
        self.stack(1)
        self._matrix = matrix
        self._fp8 = how.values == "fp8"
        self._scale = scale

    def bits(self, begin: int, end: int) -> np.ndarray:
        from sparsefmt.quantizing.jitted import elements

        made = np.empty((end - begin, self.cols), np.uint8)
        elements.elements(_float32(self._matrix, begin, end), self._scale[begin:end], self._fp8, made)
        return made


class _Products(Rows):
    """Elements times their scales, in float32."""

    def __init__(self, elements: Rows, scale: np.ndarray) -> None:
        super().__init__(DTYPES["F32"], elements.shape)
        self.stack(1)
        self._elements = elements
        self._scale = scale

    def bits(self, begin: int, end: int) -> np.ndarray:
        values = _float32(self._elements, begin, end)
        scale = self._scale[begin:end]
        if values.size:
            values.reshape(*scale.shape, -1)[...] *= scale[:, :, None]
        return values.view(np.uint32)


def _float32(matrix: Rows, begin: int, end: int) -> np.ndarray:
    values = matrix.bits(begin, end).view(matrix.dtype.numpy)
    # what is too large for float32 becomes infinite, and is refused
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
