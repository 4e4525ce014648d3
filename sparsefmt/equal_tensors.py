"""Finds tensors that have the same elements as one that is written already, so that these are stored once.

Nothing is held but a fingerprint of each: what counting its zeros told, and a checksum of its first rows. Tensors with
equal fingerprints are compared, element by element, for which the earlier one is read again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash

from sparsefmt.adapters import Rows, Survey, rows_of

WORTH_FINDING = 1 << 10
"""Bytes of a dense tensor from which on a second one is worth looking for: below that, a name takes as much."""

_FINGERPRINT_BYTES = 1 << 16
"""Of the first rows, about."""

_MOST_COMPARED = 4
"""Tensors with one fingerprint that are compared with the next one that has it, those that came last."""


Fingerprint = tuple[str, tuple[int, ...], bool, Survey, bytes]


class EqualTensors:
    """The tensors that were written, and how to read them again.

    Args:
        again: gives a tensor that was written before, by its name, as it was.
    """

    def __init__(self, again: Callable[[str], Any]) -> None:
        self._again = again
        self._names: dict[Fingerprint, list[str]] = defaultdict(list)

    def find(self, name: str, matrix: Rows, fingerprint: Fingerprint | None) -> str | None:
        """The name of a tensor with the same dtype, shape and elements; None if there is none, or none worth it.

        fingerprint: of the matrix.
        """
        if fingerprint is None:
            return None
        candidates = self._names[fingerprint]
        for other in candidates[-_MOST_COMPARED:]:
            if _are_equal(matrix, rows_of(self._again(other))):
                return other
        candidates.append(name)
        return None


def fingerprint_of(matrix: Rows, survey: Survey) -> Fingerprint | None:
    """What equal tensors have in common; None of one that is too small to look for another."""
    if matrix.dense_nbytes < WORTH_FINDING:
        return None
    row_bytes = max(matrix.cols * matrix.dtype.bits_dtype.itemsize, 1)
    digest = xxhash.xxh3_128()
    for part in _parts(matrix, 0, min(matrix.rows, max(_FINGERPRINT_BYTES // row_bytes, 1))):
        digest.update(np.ascontiguousarray(part).data)
    return matrix.dtype.name, matrix.shape, matrix.is_sparse, survey, digest.digest()


def _are_equal(one: Rows, other: Rows) -> bool:
    if (one.dtype, one.shape, one.is_sparse) != (other.dtype, other.shape, other.is_sparse):
        return False  # it is no longer what it was
    if other.row_dims != one.row_dims:
        other.stack(one.row_dims)
    return all(
        all(map(np.array_equal, _parts(one, begin, end), _parts(other, begin, end)))
        for begin, end in one.runs(0, one.rows)
    )


def _parts(matrix: Rows, begin: int, end: int) -> tuple[np.ndarray, ...]:
    """The elements of some rows: all of them, or those of a sparse matrix with their places."""
    return tuple(matrix.entries(begin, end)) if matrix.is_sparse else (matrix.bits(begin, end),)
