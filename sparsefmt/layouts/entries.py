"""The entries of a run of rows: what is not zero, and where it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Entries(NamedTuple):
    """Elements of a run of rows, ordered by row and then by column, each at most once.

    Attributes:
        rows: int64 (n,), counted from the first of the run.
        columns: int64 (n,).
        values: bits (n,). May be zeros, of either sign.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
