"""Arrays of pydata/sparse, the package `sparse`: COO, GCXS and DOK."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsefmt.adapters.blocks import BlocksRows, as_blocks, flat_places
from sparsefmt.adapters.elements import matrix_by_columns, matrix_by_coordinates, matrix_by_rows
from sparsefmt.adapters.numpy import ArrayRows
from sparsefmt.adapters.rows import Rows
from sparsefmt.dtypes import as_bits, dtype_of


def rows_of(array: Any) -> Rows:
    """An array with any fill value as it is to be stored: to the bit what its `todense` gives.

    Raises:
        UnsupportedError: the format does not have the dtype.
    """
    dtype = dtype_of(array.dtype)
    if not array.ndim:
        return ArrayRows(array.todense())
    fill, shape = as_bits(np.asarray(array.fill_value, array.dtype), dtype), tuple(array.shape)
    if array.ndim == 2 and not fill and hasattr(array, "compressed_axes"):  # GCXS
        matrix_of = matrix_by_rows if tuple(array.compressed_axes) == (0,) else matrix_by_columns
        return matrix_of(dtype, shape, array.indptr, array.indices, as_bits(array.data, dtype))
    coo = array.asformat("coo")
    if array.ndim == 2 and not fill:
        rows, columns = coo.coords
        return matrix_by_coordinates(dtype, shape, rows, columns, as_bits(coo.data, dtype))
    places = flat_places(list(coo.coords), coo.shape)
    return BlocksRows(dtype, shape, places, as_blocks(as_bits(coo.data, dtype)), int(fill))
