"""What is in dense rows, found by one read of them, before they are laid out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts.memory import frozen


class InRows(NamedTuple):
    """What there is in some rows.

    Attributes:
        counts: nonzeros of each row, int64 (rows,).
        fillers: those that each row has in `permuted` with gaps (`gaps.py`), int64 (rows,).
        negative_zeros: how many -0.0 there are in all; of a part of a tensor, how many it may have.
    """

    counts: np.ndarray
    fillers: np.ndarray
    negative_zeros: int


class RowsChanged(Exception):
    """Rows that were laid out are not those in which something was found: somebody has written to them meanwhile."""


def in_rows(bits: np.ndarray, dtype: DType) -> InRows:
    """What there is in dense `bits` (rows, cols), unsigned integers of the element width. At about memory speed."""
    from sparsefmt.layouts.jitted import scan

    counts, fillers = np.empty(bits.shape[0], np.int64), np.empty(bits.shape[0], np.int64)
    negatives = scan.survey(frozen(bits), dtype.kept_bits, dtype.negative_zero_word, counts, fillers)
    return InRows(counts, fillers, int(negatives))
