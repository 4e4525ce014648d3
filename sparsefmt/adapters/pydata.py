"""Arrays of pydata/sparse, the package `sparse`: COO, GCXS and DOK."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsefmt.adapters.blocks import BlocksRows, as_blocks, flat_places
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
    coo = array.asformat("coo")
    fill = as_bits(np.asarray(coo.fill_value, coo.dtype), dtype)
    places = flat_places(list(coo.coords), coo.shape)
    return BlocksRows(dtype, tuple(coo.shape), places, as_blocks(as_bits(coo.data, dtype)), int(fill))
