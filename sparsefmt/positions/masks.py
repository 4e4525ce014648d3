"""Masks: a bit for each position of a tile, in slices of 16 rows, column by column.

The bytes of a mask hold, slice by slice and column by column, an unsigned integer whose bit i is row i of the slice: of
16 bits, or of 8 if the slice is the last one and has 8 rows or fewer. Passes see all of it as uint16 (slices, cols): a
view of the bytes, or, where the last slice has 8 bits, a copy. A tile of 8 rows or fewer may have up to 2^31 columns.
If it has many, a copy for each pass would take too much memory: passes then see the bytes as they are, uint8 (1, cols),
and are compiled for these, too.
"""

from __future__ import annotations

import numpy as np

SLICE_ROWS = 16
"""Rows in a slice."""

U16 = np.dtype("<u2")

MOST_WIDENED = 1 << 20
"""Most columns of a tile of 8 rows or fewer whose mask is widened to 16 bits."""

BLOCK = 1 << 20
"""Columns that are widened together."""


def slices_of(rows: int) -> int:
    """Slices of a tile of so many rows."""
    return -(-rows // SLICE_ROWS)


def mask_bytes(rows: int, cols: int) -> int:
    """Bytes of the mask of a tile."""
    last = rows % SLICE_ROWS
    return cols * (2 * (rows // SLICE_ROWS) + (0 if not last else 1 if last <= 8 else 2))


def _viewed(raw: np.ndarray, rows: int, cols: int) -> np.ndarray | None:
    """The bytes of a mask as passes see them, (slices, cols), without a copy; None if they have to be widened."""
    slices = slices_of(rows)
    if raw.size == 2 * slices * cols:
        return raw.view(U16).reshape(slices, cols)
    return raw.reshape(1, cols) if slices == 1 and cols > MOST_WIDENED else None


def in_slices(raw: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The bytes of a mask as passes see them: uint16 or uint8 (slices, cols), read-only. A view, or a widened copy."""
    mask, slices = _viewed(raw, rows, cols), slices_of(rows)
    if mask is None:
        mask, last = np.zeros((slices, cols), U16), raw[2 * (slices - 1) * cols :]
        mask[:-1] = raw[: 2 * (slices - 1) * cols].view(U16).reshape(slices - 1, cols)
        for begin in range(0, cols, BLOCK):
            part = last[begin : begin + BLOCK]
            if part.any():  # what is not written to takes no memory
                mask[-1, begin : begin + BLOCK] = part
    view = mask.view()
    view.flags.writeable = False
    return view


def room_for_slices(raw: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """What a pass may fill, to be given to `put_slices` then: uint16 or uint8 (slices, cols).

    A view of `raw`, with what stands there; or zeros, if they have to be narrowed.
    """
    mask = _viewed(raw, rows, cols)
    return np.zeros((slices_of(rows), cols), U16) if mask is None else mask


def put_slices(mask: np.ndarray, rows: int, raw: np.ndarray) -> None:
    """Fill the bytes of a mask of `rows` rows from what `in_slices` or `room_for_slices` gives."""
    slices, cols = mask.shape
    view = _viewed(raw, rows, cols)
    if view is not None:
        if not np.may_share_memory(view, mask):
            view[...] = mask
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
