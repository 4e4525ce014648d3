"""How many elements have which magnitude: as finely as an element of 16 bits can tell, whatever the dtype."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.layouts.memory import frozen
from sparsefmt.patterns.mask import first_not_finite

FLOATS = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F16", "BF16", "F32", "F64")
"""dtypes whose bits, signs aside, ascend with their magnitudes."""

_FINEST = 16
"""Bits of an element that count."""


def have_magnitudes(dtype: DType) -> bool:
    """Whether elements of this type are numbers that are larger or smaller than others: not so for flags."""
    return dtype.prunable and dtype.numpy.kind != "c"


class Magnitudes:
    """The magnitudes of one or several tensors of a dtype, counted. Safe to add to from many threads.

    Attributes:
        smallest, largest: magnitudes of elements that are finite and not 0, exactly; 0.0 if there is none.
    """

    def __init__(self, dtype: DType) -> None:
        self._counted = dtype if dtype.name in FLOATS else DTYPES["F32"]  # integers are counted as floats
        self._kept = (1 << (self._counted.nbits - 1)) - 1
        self._end = first_not_finite(self._counted)
        self._shift = max(self._counted.nbits - _FINEST, 0)
        self._counts = np.zeros((self._kept >> self._shift) + 1, np.int64)
        self._range = self._end, 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = threading.Lock()

    def add(self, bits: np.ndarray, dtype: DType) -> None:
        """Count elements, given as bits, in about memory speed."""
        from sparsefmt.patterns.jitted import magnitudes

        flat = bits.reshape(-1)
        if dtype != self._counted:
            flat = flat.view(dtype.numpy).astype(np.float32).view(np.uint32)
        counts = np.zeros((magnitudes.LANES, self._counts.size), np.uint32)
        bounds = np.array([self._kept, self._end], np.uint64)
        smallest, largest = magnitudes.count(frozen(flat), bounds, self._shift, counts)
        with self._lock:
            self._counts += counts.sum(0, np.int64)
            self._range = min(self._range[0], int(smallest)), max(self._range[1], int(largest))

    def merge(self, other: Magnitudes) -> None:
        """Add what another one of the same dtype has counted."""
        with self._lock:
            self._counts += other._counts
            self._range = min(self._range[0], other._range[0]), max(self._range[1], other._range[1])

    @property
    def smallest(self) -> float:
        return self._value(self._range[0]) if self._range[1] else 0.0

    @property
    def largest(self) -> float:
        return self._value(self._range[1])

    def _value(self, bits: int) -> float:
        return float(np.array(bits, self._counted.bits_dtype).view(self._counted.numpy).astype(np.float64))

    def _finite(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts of finite magnitudes above 0, and the edges between them, one more: what is cut off lies between."""
        keys = min(-(-self._end // (1 << self._shift)), self._counts.size)
        bits = (np.arange(keys, dtype=np.uint64) << np.uint64(self._shift)).astype(self._counted.bits_dtype)
        values = bits.view(self._counted.numpy).astype(np.float64)
        last = values[-1] + min(values[-1] - values[-2], np.finfo(np.float64).max - values[-1])
        if self._shift:
            edges = np.append(values, last)
        else:  # a value stands for those that are rounded to it
            edges = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [last]])
        counts = self._counts[:keys].copy()
        if not self._shift:
            return counts[1:], edges[1:]
        # of float32, also magnitudes that are not 0 may have key 0
        counts[0] = 0
        return counts, edges

    def quantile(self, share: float) -> float:
        """A magnitude that about this share of the elements that are finite and not 0 does not exceed; 0.0 of none."""
        counts, edges = self._finite()
        total = np.cumsum(counts)
        if not total[-1]:
            return 0.0
        place = int(np.searchsorted(total, share * total[-1], "left"))
        return float(min(max(edges[min(place + 1, counts.size)], self.smallest), self.largest))

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """Elements that are finite and not 0 between edges (bins + 1,), ascending: float64 (bins,).

        What is below the first edge or above the last is left out. Where an edge lies between elements that are counted
        as one, these are shared out.
        """
        counts, fine = self._finite()
        below = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
        return np.diff(np.interp(edges, fine, below))
