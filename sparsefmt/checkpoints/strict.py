"""Writes again what was read, and compares: the format has one form for each content, and a file must have that one.

Reading checks as much by rules, one by one. This asks the writing side instead, which shares no code with those rules:
an array or an index that passes all of them and is not what writing would make shows here.
"""

from __future__ import annotations

import numpy as np

from sparsefmt import layouts
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.envelope import MINOR
from sparsefmt.container.reader import Reader
from sparsefmt.errors import FormatError
from sparsefmt.layouts import auto
from sparsefmt.layouts.contract import NEGATIVE_ZEROS, Tile
from sparsefmt.layouts.entries import from_entries, to_entries


def check_index(reader: Reader) -> None:
    """Encode the index again, and compare it with the bytes in the file.

    Raises:
        FormatError: they differ (`not-canonical`). An index of a later minor version does if it says what this version
            does not know.
    """
    stored, again = reader.encoded_index(), reader.index.encode()
    if stored != again and reader.minor > MINOR:
        raise FormatError("not-canonical", f"the index has keys of format 1.{reader.minor}, which this version ignores")
    if stored != again:
        raise FormatError(
            "not-canonical",
            f"the index has {len(stored):,} bytes, and {len(again):,} others when it is written again by this version",
        )


def check_tile(entry: TensorEntry, tile: Tile, number: int) -> None:
    """Lay the content of a tile out again, and compare all arrays. Large tiles that are nearly empty stay sparse.

    Raises:
        FormatError: an array differs (`not-canonical`).
    """
    begin, end = entry.tile_range(number)
    rows, nnz = end - begin, entry.layout.nnz(tile) if entry.layout.sparse else 0
    if entry.layout.sparse and auto.is_very_sparse(rows, entry.cols, nnz) and NEGATIVE_ZEROS not in tile:
        entries = to_entries(entry.layout.name, tile, rows)
        again = from_entries(entry.layout.name, entries, entry.dtype, rows, entry.cols)
    else:
        bits = entry.layout.to_dense(tile, entry.dtype, entry.cols, 0, rows)
        again = layouts.from_dense(entry.layout, bits, entry.dtype)
    if NEGATIVE_ZEROS in tile and NEGATIVE_ZEROS not in again:  # other tiles of the tensor have some
        again[NEGATIVE_ZEROS] = np.zeros_like(tile[NEGATIVE_ZEROS])
    for array in sorted(tile.keys() | again.keys()):
        if array not in tile or array not in again or not np.array_equal(tile[array], again[array]):
            raise FormatError(
                "not-canonical",
                f"array {array!r} of tile {number} is not what the tile's elements give when they are laid out again",
                tensor=entry.name,
            )
