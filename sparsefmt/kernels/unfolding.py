"""Activations of a convolution laid out as columns of a matrix: each a run of consecutive elements of its planes."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit


@jit
def fill_columns(planes, begins, first, columns):
    """Fill columns (cols, tokens) with elements `begins[col] + first` and following of the planes, a flat array."""
    tokens = np.uint64(columns.shape[1])
    for col in range(np.uint64(columns.shape[0])):
        begin = np.uint64(begins[col] + first)
        # slices of their own, so that the loop needs no index but its counter
        source, target = planes[begin : begin + tokens], columns[col]
        for token in range(tokens):
            target[token] = source[token]
