"""Compressed tensors made from others, in another dtype or transposed: dense a few rows or columns at a time."""

from __future__ import annotations

import numpy as np
import torch

from sparsefmt import quantizing
from sparsefmt.adapters import Rows, Survey
from sparsefmt.adapters.torch import DTYPES_BY_TORCH, TORCH_DTYPES, as_torch
from sparsefmt.dtypes import as_bits
from sparsefmt.layouts.fillers import FillerCount
from sparsefmt.tensor import SparseTensor

_POSITIONS_AT_ONCE = 1 << 22
"""Dense elements to hold while a matrix is transposed. Every one of its rows is expanded once for so many of them."""


def cast(weight: SparseTensor, dtype: torch.dtype) -> SparseTensor:
    """The tensor in another dtype, rounded as torch does it, in the same layout. Itself if it has the dtype.

    What becomes zero by rounding is pruned.
    """
    if torch_dtype_of(weight) == dtype:
        return weight
    return SparseTensor._from_rows(_Cast(weight, dtype), weight.layout, budget=weight.budget)


def transposed(weight: SparseTensor, layout: str) -> SparseTensor:
    """The transpose of a matrix, bit for bit. `layout`: as in `SparseTensor.from_dense`."""
    # one thread: each block of columns is made once, in order
    return SparseTensor._from_rows(_Transposed(weight), layout, 1, weight.budget)


def rows_of(weight: SparseTensor) -> Rows:
    """The elements of a matrix, bit for bit, to be laid out anew."""
    return _Elements(weight)


def dequantized(weight: SparseTensor, scale: np.ndarray) -> SparseTensor:
    """The matrix that elements and their scales, float32 (rows, groups), stand for, in float32 and the same layout."""
    return SparseTensor._from_rows(quantizing.dequantized(rows_of(weight), scale), weight.layout, budget=weight.budget)


def torch_dtype_of(weight: SparseTensor) -> torch.dtype:
    """torch's name for the dtype of a tensor."""
    return TORCH_DTYPES[weight.operand().dtype.name]


class _Elements(Rows):
    """A tensor as it is."""

    def __init__(self, weight: SparseTensor) -> None:
        super().__init__(weight.operand().dtype, weight.shape)
        self.stack(1)
        self._weight = weight

    def bits(self, begin: int, end: int) -> np.ndarray:
        return as_bits(self._weight[begin:end], self.dtype)


class _Cast(Rows):
    """A tensor in another dtype."""

    def __init__(self, weight: SparseTensor, dtype: torch.dtype) -> None:
        super().__init__(DTYPES_BY_TORCH[dtype], weight.shape)
        self.stack(1)
        self._weight = weight
        self._torch_dtype = dtype

    def bits(self, begin: int, end: int) -> np.ndarray:
        values = as_torch(self._weight[begin:end].reshape(end - begin, self.cols), self._weight.operand().dtype)
        width = self.dtype.bits_dtype.itemsize
        signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
        return values.to(self._torch_dtype).view(signed).numpy().view(self.dtype.bits_dtype)


class _Transposed(Rows):
    """A matrix with rows for columns."""

    def __init__(self, weight: SparseTensor) -> None:
        rows, cols = weight.shape
        super().__init__(weight.operand().dtype, (cols, rows))
        self._weight = weight
        self._begin = 0
        self._block = np.empty((0, rows), self.dtype.bits_dtype)

    def survey(self, threads: int | None = None) -> Survey:
        # the rows of a transpose are columns here: they are counted without one
        counts, negatives = np.zeros(self.rows, np.int64), 0
        fillers = FillerCount(self.rows, self.cols)
        at_once = max(1, _POSITIONS_AT_ONCE // max(self.rows, 1))
        for begin in range(0, self.cols if self.dtype.prunable else 0, at_once):
            bits = as_bits(self._weight[begin : begin + at_once], self.dtype)
            negative = bits == (self.dtype.negative_zero or bits.dtype.type(0))
            kept = (bits != 0) & ~negative
            counts += np.count_nonzero(kept, axis=0)
            negatives += int(np.count_nonzero(negative & (bits != 0)))
            columns, rows = np.nonzero(kept)
            fillers.add(rows, columns + begin)
        return self._survey_of(counts, fillers.found, negatives)

    def bits(self, begin: int, end: int) -> np.ndarray:
        if begin < self._begin or end > self._begin + len(self._block):
            height = max(end - begin, _POSITIONS_AT_ONCE // max(self.cols, 1))
            columns = self._weight[:, begin : begin + height]
            self._begin, self._block = begin, as_bits(columns.T, self.dtype)
        return self._block[begin - self._begin : end - self._begin]
