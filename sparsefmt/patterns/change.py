"""What became of a tensor: how far two tensors of one shape are apart, and what their masks have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.dtypes import DType
from sparsefmt.layouts.memory import frozen
from sparsefmt.threads import in_order

Result = TypeVar("Result")

Progress = Callable[[int], object]
"""Called with the dense bytes of each run of rows that was compared."""

_IN_DOUBLE = ("F64", "I32", "U32")
"""dtypes whose numbers float32 may not have."""

_BY_NUMPY = ("I64", "U64", "C64")
"""dtypes whose numbers float64 may not have."""


@dataclass(frozen=True)
class Change:
    """What two tensors, one before and one after, have in common. -0.0 is a zero, and NaN is none.

    Attributes:
        elements: of each.
        kept: elements other than zero in both.
        pruned: elements other than zero before, and zero after.
        regrown: elements that were zero before, and are not after: zeros lost.
        equal: elements that are the same number. -0.0 is 0.0 here, and any NaN is the same as any other.
        not_finite: elements of which the difference is neither 0 nor a finite number.
        largest: the largest |before - after| of all other elements.
        total: the sum of these.
    """

    elements: int = 0
    kept: int = 0
    pruned: int = 0
    regrown: int = 0
    equal: int = 0
    not_finite: int = 0
    largest: float = 0.0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """The mean |before - after| of all elements, those left out that are not finite."""
        counted = self.elements - self.not_finite
        return self.total / counted if counted else 0.0

    @property
    def overlap(self) -> float:
        """Intersection over union of what is not zero; 1.0 if all is."""
        union = self.kept + self.pruned + self.regrown
        return self.kept / union if union else 1.0

    @property
    def zeros_before(self) -> int:
        return self.elements - self.kept - self.pruned

    @property
    def zeros_after(self) -> int:
        return self.elements - self.kept - self.regrown

    def __add__(self, other: Change) -> Change:
        """Of the elements of both."""
        return Change(
            self.elements + other.elements,
            self.kept + other.kept,
            self.pruned + other.pruned,
            self.regrown + other.regrown,
            self.equal + other.equal,
            self.not_finite + other.not_finite,
            max(self.largest, other.largest),
            self.total + other.total,
        )


def change_of(before: Rows, after: Rows, *, progress: Progress | None = None, threads: int | None = None) -> Change:
    """Compare the numbers of two tensors of one shape, whatever their dtypes, from one read of each.

    Args:
        progress: called with dense bytes of `before`.

    Raises:
        ValueError: their shapes differ.
        as reading the rows.

    Cost: a few runs of rows of each, and both as float32 or float64.
    """

    def compare(_: int, ours: np.ndarray, theirs: np.ndarray) -> Change:
        found = change_of_bits((ours, before.dtype), (theirs, after.dtype))
        if progress:
            progress(before.dtype.nbytes(found.elements))
        return found

    return sum(in_runs(before, after, compare, threads), Change())


def in_runs(
    before: Rows, after: Rows, visit: Callable[[int, np.ndarray, np.ndarray], Result], threads: int | None = None
) -> Iterator[Result]:
    """What `visit` gives for each run of rows of two tensors of one shape: of the number of its first element, and the
    bits of both, flat.

    Raises:
        ValueError: their shapes differ.
        as reading the rows.
    """
    if before.shape != after.shape:
        raise ValueError(f"shapes {list(before.shape)} and {list(after.shape)} differ")
    # one may be a stack and the other not: then a row of one is several rows of the other
    coarse = before if before.row_dims <= after.row_dims else after
    height = coarse.tile_rows("dense")

    def bits_of(rows: Rows, begin: int, end: int) -> np.ndarray:
        several = rows.rows // coarse.rows
        return rows.bits(begin * several, end * several).reshape(-1)

    def visited(begin: int) -> Result:
        end = min(begin + height, coarse.rows)
        return visit(begin * coarse.cols, bits_of(before, begin, end), bits_of(after, begin, end))

    yield from in_order(visited, range(0, coarse.rows if height else 0, height or 1), threads)


def change_of_bits(before: tuple[np.ndarray, DType], after: tuple[np.ndarray, DType]) -> Change:
    """Compare two arrays of bits of one shape, each with its dtype."""
    names = {before[1].name, after[1].name}
    if names.intersection(_BY_NUMPY):
        return _change_of_wide(*(bits.view(dtype.numpy).reshape(-1) for bits, dtype in (before, after)))
    from sparsefmt.patterns.jitted import change

    wide = np.float64 if names.intersection(_IN_DOUBLE) else np.float32
    counts = np.zeros(5, np.int64)
    largest, total = change.compare(_floats(*before, wide), _floats(*after, wide), counts)
    return _change(before[0].size, counts, largest, total)


def _change(elements: int, counts: np.ndarray, largest: float, total: float) -> Change:
    kept, pruned, regrown, equal, infinite = (int(count) for count in counts)
    return Change(elements, kept, pruned, regrown, equal, infinite, float(largest), float(total))


def _floats(bits: np.ndarray, dtype: DType, wide: type) -> np.ndarray:
    """The elements as flat floats, read-only, of a type that has all their numbers."""
    flat = bits.reshape(-1)
    if dtype.name == "BF16":  # ml_dtypes takes three times as long
        return frozen((flat.astype(np.uint32) << 16).view(np.float32).astype(wide, copy=False))
    return frozen(flat.view(dtype.numpy).astype(wide, copy=False))


def _change_of_wide(ours: np.ndarray, theirs: np.ndarray) -> Change:
    """The same for numbers of which some float64 are not: integers of 64 bits, and complex ones."""
    here, there = ours != 0, theirs != 0
    with np.errstate(invalid="ignore", over="ignore"):
        if ours.dtype.kind in "iu" and ours.dtype == theirs.dtype:
            # exact, as it wraps around
            larger, smaller = (of_two(ours, theirs).astype(np.uint64) for of_two in (np.maximum, np.minimum))
            distances = (larger - smaller).astype(np.float64)
        else:
            wide = np.complex128 if "c" in (ours.dtype.kind, theirs.dtype.kind) else np.float64
            distances = np.abs(ours.astype(wide) - theirs.astype(wide))
    same = (ours == theirs) | ((ours != ours) & (theirs != theirs))
    infinite = ~same & ~np.isfinite(distances)
    counted = np.where(np.isfinite(distances), distances, 0.0)
    counts = np.array(
        [np.count_nonzero(what) for what in (here & there, here & ~there, ~here & there, same, infinite)], np.int64
    )
    return _change(ours.size, counts, counted.max(initial=0.0), counted.sum())
