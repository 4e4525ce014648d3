"""Tensors spelled as a bitmask and the elements that it marks, as compressed-tensors had them up to version 0.14.

shape         int64 (dimensions,) or (dimensions, 1)
bitmask       uint8 (*shape[:-1], ceil(shape[-1] / 8)), the lowest bit of a byte first, unused bits zero
compressed    the marked elements, in the order of the tensor: (n,), or (rows, cols / 2) in a 2:4 tensor
row_offsets   int64 (*shape[:-1],): marked elements before each row, summed along the first dimension alone;
              2:4 tensors have none
"""

from __future__ import annotations

from math import prod

import numpy as np

from sparsefmt.adapters.rows import Rows
from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.layouts import heights
from sparsefmt.lazily import computed_once
from sparsefmt.limits import MAX_NDIM
from sparsefmt.shapes import check_shape


class BitmaskRows(Rows):
    """A tensor in this spelling, made dense a run of rows at a time.

    The mask is read as a whole, in runs, when rows are first asked for: where elements of a row begin is known only
    then, and every bit has been checked.

    Args:
        name: of the tensor, for errors.
        shape, bitmask, compressed, row_offsets: the parts.

    Raises:
        FormatError: parts that do not fit each other; from `bits` also a mask that does not fit.
        UnsupportedError: elements narrower than a byte.

    Cost: 8 bytes for each row; in one dimension, one for each element.
    """

    def __init__(
        self, name: str, shape: Rows, bitmask: Rows, compressed: Rows, row_offsets: Rows | None = None
    ) -> None:
        self._name = name
        dense_shape = self._read_shape(shape, compressed.dtype)
        super().__init__(compressed.dtype, dense_shape)
        # runs are counted by the first dimension
        self.stack(1)
        bitmask.stack(1)
        compressed.stack(1)
        if compressed.dtype.packed:
            raise UnsupportedError(
                "bitmask-dtype", f"elements of {compressed.dtype.name} cannot be read so", tensor=name
            )
        row_bytes = -(-dense_shape[-1] // 8)
        self._expect("bitmask", bitmask, "U8", (*dense_shape[:-1], row_bytes))
        if row_offsets is not None:
            self._expect("row_offsets", row_offsets, "I64", dense_shape[:-1])
        if not self.rows * self.cols and compressed.rows * compressed.cols:
            raise self._invalid(f"compressed is {list(compressed.shape)}, for a tensor of {list(dense_shape)}")
        self._bitmask = bitmask
        self._compressed = compressed
        self._row_offsets = row_offsets
        # a run is what begins at a byte of the mask: a row, or in one dimension eight elements
        is_flat = len(dense_shape) == 1
        self._run_bytes = 1 if is_flat else row_bytes
        self._run_cols = 8 if is_flat else dense_shape[-1]
        self._runs = row_bytes if is_flat else prod(dense_shape[:-1])

    def bits(self, begin: int, end: int) -> np.ndarray:
        if not self.rows * self.cols:
            return np.empty((end - begin, self.cols), self.dtype.bits_dtype)
        begins = self._begins
        first, last = (begin // 8, -(-end // 8)) if len(self.shape) == 1 else (begin, end)
        mask = self._bitmask.bits(first, last).reshape(-1, self._run_bytes)
        run = first * self._runs // self._bitmask.rows
        values = self._values(int(begins[run]), int(begins[run + len(mask)]))
        marked = np.unpackbits(mask, axis=1, count=self._run_cols, bitorder="little").view(np.bool_)
        out = np.zeros(marked.shape, self.dtype.bits_dtype)
        out[marked] = values
        if len(self.shape) == 1:
            return out.reshape(-1, 1)[begin - 8 * first : end - 8 * first]
        return out.reshape(end - begin, self.cols)

    def _values(self, low: int, high: int) -> np.ndarray:
        if low == high:
            return np.empty(0, self.dtype.bits_dtype)
        width = self._compressed.cols
        first = low // width
        rows = self._compressed.bits(first, -(-high // width))
        return rows.reshape(-1)[low - first * width : high - first * width]

    @computed_once
    def _begins(self) -> np.ndarray:
        """Number of marked elements before each run, and of all. Checks the mask."""
        counts = np.zeros(self._runs, np.int64)
        height = heights.tile_rows(self._bitmask.rows, self._bitmask.cols)
        for begin in range(0, self._bitmask.rows, height):
            mask = self._bitmask.bits(begin, min(begin + height, self._bitmask.rows)).reshape(-1, self._run_bytes)
            run = begin * self._runs // self._bitmask.rows
            counts[run : run + len(mask)] = np.bitwise_count(mask).sum(axis=1, dtype=np.int64)
            self._check_unused(mask, run)
        begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        present = self._compressed.rows * self._compressed.cols
        if begins[-1] != present:
            raise self._invalid(f"its bitmask marks {begins[-1]:,} elements, and compressed has {present:,}")
        if self._row_offsets is not None:
            self._check_row_offsets(self._row_offsets, counts)
        return begins

    def _check_unused(self, mask: np.ndarray, run: int) -> None:
        used = self.shape[-1] % 8
        last_bytes = mask[:, -1] if len(self.shape) > 1 else mask[-1:, 0] * (run + len(mask) == self._runs)
        if used and (last_bytes >> used).any():
            row = run + int(np.flatnonzero(last_bytes >> used)[0])
            where = f" of row {row:,}" if len(self.shape) > 1 else ""
            raise self._invalid(f"its bitmask has bits set after the last column{where}")

    def _check_row_offsets(self, row_offsets: Rows, counts: np.ndarray) -> None:
        stored = row_offsets.bits(0, row_offsets.rows).view(np.int64).reshape(-1)
        if len(self.shape) == 1:
            expected = np.zeros(1, np.int64)
        else:
            per_row = counts.reshape(self.shape[:-1])
            expected = (np.cumsum(per_row, axis=0) - per_row).reshape(-1)
        wrong = np.flatnonzero(stored != expected)
        if wrong.size:
            row = int(wrong[0])
            raise self._invalid(
                f"row_offsets has {stored[row]:,} for row {row:,}, where by its bitmask {expected[row]:,} is right"
            )

    def _read_shape(self, shape: Rows, dtype: DType) -> tuple[int, ...]:
        is_list = len(shape.shape) in (1, 2) and shape.cols == 1 and 1 <= shape.rows <= MAX_NDIM
        if shape.dtype.name not in ("I64", "I32") or not is_list:
            raise self._invalid(f"shape is {shape.dtype.name} {list(shape.shape)}, not the sizes of dimensions")
        sizes = tuple(shape.bits(0, shape.rows).view(shape.dtype.numpy).reshape(-1).tolist())
        if min(sizes) < 0:
            raise self._invalid(f"shape says {list(sizes)}")
        try:
            check_shape(sizes, dtype)
        except SparsefmtError as error:
            raise error.within(self._name) from None
        return sizes

    def _expect(self, part: str, matrix: Rows, dtype: str, shape: tuple[int, ...]) -> None:
        if (matrix.dtype.name, matrix.shape) != (dtype, shape):
            raise self._invalid(
                f"{part} is {matrix.dtype.name} {list(matrix.shape)}, and for a tensor of this shape should be"
                f" {dtype} {list(shape)}"
            )

    def _invalid(self, message: str) -> FormatError:
        return FormatError("bitmask-invalid", message, tensor=self._name)
