"""Tensors in several parts, in memory, as checkpoints spell them."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from sparsefmt.adapters import ArrayRows, Rows
from sparsefmt.checkpoints.contract import TensorFile

Arrays = dict[str, np.ndarray]


class Memory(TensorFile):
    """Arrays as an open file, which remembers what was read of them."""

    def __init__(self, arrays: Arrays, name: str = "file") -> None:
        self.arrays = arrays
        self.path = Path(name)
        self.names = list(arrays)
        self.metadata = {"key": "text"}
        self.nbytes = 1
        self.closed = False
        self.read: list[tuple[str, int, int]] = []

    def rows_of(self, name: str) -> Rows:
        inner = ArrayRows(self.arrays[name])
        bits = inner.bits

        def remembering(begin: int, end: int) -> np.ndarray:
            assert 0 <= begin <= end <= inner.rows
            self.read.append((name, begin, end))
            return bits(begin, end)

        inner.bits = remembering  # type: ignore[method-assign]
        return inner

    def close(self) -> None:
        self.closed = True


def spelled(array: np.ndarray, stem: str = "w") -> Arrays:
    """The "sparse-bitmask" spelling of an array: naively, row by row."""
    bits = np.ascontiguousarray(array).view(f"u{array.itemsize}")
    rows = bits.reshape(prod(array.shape[:-1]), array.shape[-1])
    mask = np.zeros((len(rows), -(-array.shape[-1] // 8)), np.uint8)
    values = []
    for row, elements in enumerate(rows):
        for column, element in enumerate(elements):
            if element:
                mask[row, column // 8] |= 1 << (column % 8)
                values.append(element)
    counts = (rows != 0).sum(axis=1).reshape(array.shape[:-1])
    offsets = np.cumsum(counts, axis=0) - counts if counts.ndim else np.int64(0)
    return {
        f"{stem}.shape": np.array(array.shape, np.int64),
        f"{stem}.bitmask": mask.reshape(*array.shape[:-1], mask.shape[1]),
        f"{stem}.compressed": np.array(values, bits.dtype).view(array.dtype),
        f"{stem}.row_offsets": np.asarray(offsets, np.int64),
    }


def dense(file: TensorFile, name: str) -> np.ndarray:
    matrix = file.rows_of(name)
    return matrix.bits(0, matrix.rows).view(matrix.dtype.numpy).reshape(matrix.shape)
