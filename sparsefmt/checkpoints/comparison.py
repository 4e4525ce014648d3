"""Compares models: names, dtypes, shapes, metadata, and every bit, a tile at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod
from typing import NamedTuple

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.scales import read_scales, scales_in
from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.patterns.change import Change, change_of, change_of_bits, in_runs
from sparsefmt.quantizing import dequantized
from sparsefmt.quantizing.rows import FLOATS
from sparsefmt.threads import in_order

Progress = Callable[[int], object]
"""Called with the dense bytes of each tile done."""


class Difference(NamedTuple):
    """How a tensor differs from another of the same dtype and shape.

    Attributes:
        elements: how many differ.
        first: row-major number of the first that does; -1 if none does.
        bits: of that element, in this tensor and in the other.
        signs: elements that are 0 here and -0.0 there, where that is not counted as a difference.
    """

    elements: int = 0
    first: int = -1
    bits: tuple[int, int] = (0, 0)
    signs: int = 0

    def followed_by(self, later: Difference) -> Difference:
        """The difference of two runs of elements together, `later` having its numbers in the same tensor."""
        first = later if self.first < 0 else self
        return Difference(self.elements + later.elements, first.first, first.bits, self.signs + later.signs)


def compare_tensors(
    ours: Rows, theirs: Rows, *, progress: Progress | None = None, threads: int | None = None
) -> Difference:
    """Compare two tensors of the same dtype and shape bit for bit, holding a few tiles of each."""

    def compare(begin: int, one: np.ndarray, two: np.ndarray) -> Difference:
        if progress:
            progress(ours.dtype.nbytes(one.size))
        return compare_bits(one, two, begin)

    total = Difference()
    for found in in_runs(ours, theirs, compare, threads):
        total = total.followed_by(found)
    return total


def compare_numbers(
    ours: Rows, theirs: Rows, *, progress: Progress | None = None, threads: int | None = None
) -> tuple[Difference | None, Change]:
    """Compare two tensors of the same shape bit for bit, unless their dtypes differ, and as numbers, from one read."""
    if ours.dtype != theirs.dtype:
        return None, change_of(ours, theirs, progress=progress, threads=threads)

    def compare(begin: int, one: np.ndarray, two: np.ndarray) -> tuple[Difference, Change]:
        found = compare_bits(one, two, begin), change_of_bits((one, ours.dtype), (two, theirs.dtype))
        if progress:
            progress(ours.dtype.nbytes(one.size))
        return found

    difference, change = Difference(), Change()
    for bits, numbers in in_runs(ours, theirs, compare, threads):
        difference, change = difference.followed_by(bits), change + numbers
    return difference, change


def compare_bits(ours: np.ndarray, theirs: np.ndarray, begin: int, dropped: DType | None = None) -> Difference:
    """Compare bits of one shape, whose first element has number `begin` in its tensor.

    Args:
        dropped: the dtype, if negative zeros of `theirs` have become zeros in `ours`: that is counted in `signs` then.
    """
    if _are_equal(ours, theirs):
        return Difference()
    unequal = ours != theirs
    signs = 0
    if dropped is not None and dropped.negative_zero:
        cleared = unequal & (ours == 0) & (theirs == ours.dtype.type(dropped.negative_zero))
        signs = int(np.count_nonzero(cleared))
        unequal &= ~cleared
    elements = int(np.count_nonzero(unequal))
    if not elements:
        return Difference(signs=signs)
    first = int(unequal.argmax())
    bits = int(ours.reshape(-1)[first]), int(theirs.reshape(-1)[first])
    return Difference(elements, begin + first, bits, signs)


def _are_equal(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether bits of one shape are equal. numpy takes as long for a short element as for a long one."""
    if ours.nbytes % 8 == 0 and ours.flags.c_contiguous and theirs.flags.c_contiguous:
        ours, theirs = ours.reshape(-1).view(np.uint64), theirs.reshape(-1).view(np.uint64)
    return np.array_equal(ours, theirs)


def scaled_in_one(ours: Checkpoint, theirs: Checkpoint) -> dict[str, tuple[str, bool]]:
    """Weights that are scaled in one of two checkpoints, and floats of the same shape in the other.

    Returns:
        name to the name of the scales, and whether it is `theirs` that has them. None of a file whose scales no product
        could use.
    """
    found: dict[str, tuple[str, bool]] = {}
    for is_theirs, scaled, floats in ((False, ours, theirs), (True, theirs, ours)):
        for file in scaled.files:
            try:
                pairs = scales_in(file.metadata, file.names)
            except (FormatError, UnsupportedError):
                continue
            for name, scale in pairs.items():
                other = floats.rows_of(name) if name in floats.holder and scale not in floats.holder else None
                if other is not None and other.dtype.name in FLOATS and other.shape == scaled.rows_of(name).shape:
                    found[name] = scale, is_theirs
    return found


def errors_of_scaled(
    scaled: Checkpoint, name: str, scale: str, floats: Rows, threads: int | None = None
) -> tuple[float, float]:
    """The largest and the mean difference between a scaled weight and floats, the mean over those that are not zero.

    Raises:
        FormatError: the weight and its scales do not fit.
    """
    weights = multiplied_out(scaled, name, scale)

    def compare(run: tuple[int, int]) -> tuple[float, float, int]:
        wanted = floats.bits(*run).view(floats.dtype.numpy).astype(np.float64)
        differences = np.abs(weights.bits(*run).view(np.float32) - wanted)
        return float(differences.max(initial=0)), float(differences.sum()), int(np.count_nonzero(wanted))

    largest, total, count = 0.0, 0.0, 0
    for most, part, nonzeros in in_order(compare, list(weights.runs(0, weights.rows)), threads):
        largest, total, count = max(largest, most), total + part, count + nonzeros
    return largest, total / count if count else 0.0


def multiplied_out(scaled: Checkpoint, name: str, scale: str) -> Rows:
    """The elements of a weight times its scales, in float32.

    Raises:
        FormatError: the weight and its scales do not fit.
    """
    return dequantized(scaled.rows_of(name), read_scales(scaled, name, scale))


def compare_names(ours: Checkpoint, theirs: Checkpoint, without: Collection[str] = ()) -> tuple[list[str], set[str]]:
    """Sentences on tensors that only one has or whose dtype or shape differ, and the names of all other tensors.

    without: names that are compared otherwise.
    """
    differences = []
    comparable = set()
    for name in sorted({*ours.holder, *theirs.holder}.difference(without)):
        if name not in theirs.holder or name not in ours.holder:
            holder, other = (ours, theirs) if name in ours.holder else (theirs, ours)
            differences.append(f"tensor {name!r}: only in {holder.path}, not in {other.path}")
            continue
        one, two = ours.rows_of(name), theirs.rows_of(name)
        if one.dtype != two.dtype or one.shape != two.shape:
            differences.append(
                f"tensor {name!r}: {one.dtype.name} {list(one.shape)} in {ours.path}, "
                f"{two.dtype.name} {list(two.shape)} in {theirs.path}"
            )
        else:
            comparable.add(name)
    return differences, comparable


def compare_metadata(ours: Checkpoint, theirs: Checkpoint) -> list[str]:
    """Sentences on metadata that differs; that of several files is taken together."""
    one, two = _metadata(ours), _metadata(theirs)
    return [
        f"metadata {key!r}: {sorted(one.get(key, ()))} in {ours.path}, {sorted(two.get(key, ()))} in {theirs.path}"
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]


def _metadata(checkpoint: Checkpoint) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for file in checkpoint.files:
        for key, value in file.metadata.items():
            values.setdefault(key, set()).add(value)
    return values


def describe(name: str, dtype: DType, shape: tuple[int, ...], difference: Difference) -> str:
    """A sentence on a tensor whose elements differ."""
    position = [int(place) for place in np.unravel_index(difference.first, shape)] if shape else []
    ours, theirs = (f"0x{bits:0{max(dtype.nbits, 8) // 4}x}" for bits in difference.bits)
    return (
        f"tensor {name!r}: {difference.elements:,} of {prod(shape):,} elements differ, first at {position}: "
        f"bits {ours}, not {theirs}"
    )
