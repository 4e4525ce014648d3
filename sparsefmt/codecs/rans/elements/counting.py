"""How often numbers occur in all tiles of a tensor, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from sparsefmt.codecs.rans.elements.bins import TOP_NBITS

MAX_DISTINCT = 1 << 12
"""Distinct keys up to which all bits of them are counted."""

AT_ONCE = 1 << 18
"""Numbers for which there are temporaries of eight bytes each at a time."""

_FEW = 1 << 13
"""Elements below which it is faster to sort their highest bits than to count into a table of all that there could
be."""


def parts_of(numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of them, AT_ONCE at most."""
    return (numbers[begin : begin + AT_ONCE] for begin in range(0, numbers.size, AT_ONCE))


class Tops(NamedTuple):
    """The highest bits of elements: TOP_NBITS, or all if they have no more.

    Attributes:
        every: all elements or'ed together.
        tops: the distinct ones, ascending, int64.
        counts: how often each occurs.
    """

    every: int
    tops: np.ndarray
    counts: np.ndarray


def counted(elements: np.ndarray) -> Tops:
    """Those of some elements. One read of them."""
    from sparsefmt.codecs.rans.jitted import measuring as jitted

    nbits = 8 * elements.itemsize
    left_out = max(nbits - TOP_NBITS, 0)
    if elements.size < _FEW:
        tops, counts = np.unique(elements >> elements.dtype.type(left_out), return_counts=True)
        return Tops(int(np.bitwise_or.reduce(elements)), tops.astype(np.int64), counts)
    found = np.zeros(1 << min(nbits, TOP_NBITS), np.uint32)
    every = jitted.count_tops(elements, left_out, found)
    tops = np.flatnonzero(found != 0)  # numpy is faster with booleans
    return Tops(int(every), tops, found[tops])


class Total:
    """How often numbers below `bound` occur, from those of each tile."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._one: tuple[np.ndarray, np.ndarray] | None = None
        self._all: np.ndarray | None = None

    def add(self, used: np.ndarray, counts: np.ndarray) -> None:
        """Add what `counted` found in a tile."""
        if self._one is None and self._all is None:
            self._one = used, counts
            return
        if self._all is None:
            assert self._one is not None
            self._all = np.zeros(self._bound, np.int64)
            self._all[self._one[0]] = self._one[1]
            self._one = None
        self._all[used] += counts

    def used(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct numbers, ascending, and how often each occurs, int64."""
        if self._all is not None:
            used = np.flatnonzero(self._all != 0)
            return used, self._all[used]
        return self._one or (np.empty(0, np.int64), np.empty(0, np.int64))


def united(parts: Iterable[tuple[np.ndarray, np.ndarray] | None]) -> tuple[np.ndarray, np.ndarray] | None:
    """Distinct keys and their counts from those of parts; None if there are over MAX_DISTINCT, or a part is None."""
    found, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for part in parts:
        if part is None:
            return None
        found, inverse = np.unique(np.concatenate([found, part[0].astype(np.uint64)]), return_inverse=True)
        if found.size > MAX_DISTINCT:
            return None
        counts = np.bincount(inverse, np.concatenate([counts, part[1]]), found.size).astype(np.int64)
    return found, counts
