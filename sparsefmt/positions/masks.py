"""Masks: a bit for each position of a tile, in slices of 16 rows, column by column.

The bytes of a mask hold, slice by slice and column by column, an unsigned integer whose bit i is row i of the slice: of
16 bits, or of 8 if the slice is the last one and has 8 rows or fewer. Passes see all of it as uint16 (slices, cols).
"""

from __future__ import annotations

import numpy as np

SLICE_ROWS = 16
"""Rows in a slice."""

U16 = np.dtype("<u2")

BLOCK = 1 << 20
"""Columns that are widened together."""


def slices_of(rows: int) -> int:
    """Slices of a tile of so many rows."""
    return -(-rows // SLICE_ROWS)


def mask_bytes(rows: int, cols: int) -> int:
    """Bytes of the mask of a tile."""
    last = rows % SLICE_ROWS
    return cols * (2 * (rows // SLICE_ROWS) + (0 if not last else 1 if last <= 8 else 2))


def in_slices(raw: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The bytes of a mask as uint16 (slices, cols), read-only. A view, unless the last slice has bytes."""
    slices = slices_of(rows)
    if raw.size == 2 * slices * cols:
        mask = raw.view(U16).reshape(slices, cols)
    else:
        mask, last = np.zeros((slices, cols), U16), raw[2 * (slices - 1) * cols :]
        mask[:-1] = raw[: 2 * (slices - 1) * cols].view(U16).reshape(slices - 1, cols)
        for begin in range(0, cols, BLOCK):
            part = last[begin : begin + BLOCK]
            if part.any():  # what is not written to takes no memory
                mask[-1, begin : begin + BLOCK] = part
    view = mask.view()
    view.flags.writeable = False
    return view


def put_slices(mask: np.ndarray, rows: int, raw: np.ndarray) -> None:
    """Fill the bytes of a mask of `rows` rows from uint16 (slices, cols). Undoes `in_slices`."""
    slices, cols = mask.shape
    if raw.size == 2 * slices * cols:
        raw.view(U16)[:] = mask.reshape(-1)
    else:
        raw[: 2 * (slices - 1) * cols].view(U16)[:] = mask[:-1].reshape(-1)
        raw[2 * (slices - 1) * cols :] = mask[-1]


def row_bytes(mask: np.ndarray, rows: int, multiple: int = 1) -> np.ndarray:
    """The mask row by row: uint8 (rows, ceil(cols / 8), rounded up to a multiple).

    Column c is bit c % 8 of byte c // 8; what is beyond the columns is 0.
    """
    from sparsefmt.positions.jitted import masks as jitted

    groups = -(-mask.shape[1] // 8)
    out = np.zeros((rows, -(-groups // multiple) * multiple), np.uint8)
    jitted.to_row_bytes(mask, out)
    return out
