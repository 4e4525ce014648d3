"""What a layout is.

A layout says how the values and positions of a tensor lie in flat arrays. A tensor is cut into tiles, runs of
consecutive rows of its matrix view; a layout knows one tile at a time and nothing of files.

The rules every layout keeps:

1. For a given tile of dense bits there is exactly one set of arrays. `from_dense` makes it; `check` accepts no other.
2. `fill` undoes `from_dense`, except that a sparse layout prunes -0.0 like +0.0. The tile keeps the sign,
   in the same way for every sparse layout (see `tile.py`): layouts know nothing of it.
3. `check_sizes` runs before anything is allocated and imports no numba; `check` runs before a kernel sees arrays from
   a file. Both raise FormatError.
4. An array that says where the elements of another stand, or from which another follows, comes before it by name: that
   is the order in which arrays are decoded.
5. Arrays are flat, little-endian, aligned, followed by 64 readable bytes (`memory.py`), and read-only once checked.

Adding a layout is a file beside `bitmask.py`, its entry in `__init__.py`, its kernel in `kernels/`, and SPEC.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.errors import FormatError
from sparsefmt.layouts.entries import Entries
from sparsefmt.layouts.in_rows import InRows
from sparsefmt.layouts.memory import Allocate, empty, zeros
from sparsefmt.positions import Positions

if TYPE_CHECKING:
    from sparsefmt.layouts.tile import Tile

Arrays = dict[str, np.ndarray]
"""Arrays of one tile by name."""


class Layout(ABC):
    """One way to lay out a tile. Stateless; the instances are in `sparsefmt.layouts.FORMS`.

    Attributes:
        name: name in files and in the API.
        form: a name of its own for each: `permuted` has two sets of arrays, `columns` and `gaps`.
        arrays: names of the arrays that are always there, sorted.
        sparse: whether zeros are left out.
        mask: the array with a bit for each position, whose bytes lie as `positions/masks.py` says.
        derived: arrays that follow from others, which codecs may leave out.
    """

    name: str
    form: str
    arrays: tuple[str, ...]
    sparse: bool
    mask: str | None = None
    derived: frozenset[str] = frozenset()

    @abstractmethod
    def array_dtype(self, array: str, dtype: DType, cols: int) -> np.dtype:
        """The type of the elements of `array`."""

    def positions(self, array: str, tile: Tile) -> Positions | None:
        """Where the elements of `array` stand; None if they are not those of positions of the matrix.

        tile: has at least the arrays that come before this one by name, of the right sizes, not yet checked.
        """
        return None

    def derive(self, array: str, tile: Tile, out: np.ndarray) -> None:
        """Fill flat `out` with one of the arrays that are `derived`. tile: as in `positions`."""
        raise NotImplementedError

    @abstractmethod
    def check_sizes(self, sizes: Mapping[str, int], dtype: DType, rows: int, cols: int) -> None:
        """Refuse array sizes (in bytes) that no tile of `rows` x `cols` can have. O(1)."""

    @abstractmethod
    def check(self, tile: Tile) -> None:
        """Verify every invariant of the arrays in one pass at memory speed."""

    def nnz(self, tile: Tile) -> int:
        """Number of stored values of a sparse layout, padding not counted. 0 in `dense`, where nobody has counted."""
        return 0

    def nnz_before(self, tile: Tile, row: int) -> int:
        """Number of stored values of a sparse layout in the rows before `row`, padding not counted."""
        raise NotImplementedError

    def counts(self, tile: Tile) -> np.ndarray:
        """Number of stored values in each row of a sparse layout, padding not counted; in any order of rows."""
        raise NotImplementedError

    def fillers(self, tile: Tile) -> np.ndarray:
        """Fillers that each row has in `permuted` with gaps (`gaps.py`), whatever this layout is; rows as in `counts`.

        One read of what says where values stand.
        """
        raise NotImplementedError

    @abstractmethod
    def from_dense(self, bits: np.ndarray, dtype: DType, found: InRows, empty: Allocate = empty) -> Arrays:
        """Lay out dense `bits` (rows, cols), unsigned integers of the element width. One read of them.

        found: what was in them when they were looked at. empty: gives memory for the arrays, with anything in it.

        Raises:
            RowsChanged: that is no longer in them. Bits that change meanwhile do no harm: there is this error, or the
                layout of what was there once.
        """

    @abstractmethod
    def fill(self, tile: Tile, begin: int, first_col: int, bits: np.ndarray) -> None:
        """Fill zeroed dense `bits`, C-contiguous, from a checked tile: with rows from `begin` on and columns from
        `first_col` on, as many as `bits` has."""

    def from_entries(self, entries: Entries, dtype: DType, shape: tuple[int, int], zeros: Allocate = zeros) -> Arrays:
        """The arrays of a sparse layout for rows and columns `shape` whose other elements are zero.

        entries: read-only, none of them a zero. zeros: gives memory for the arrays.
        """
        raise NotImplementedError

    def counts_by_row(self, tile: Tile) -> np.ndarray:
        """As `counts`, int64, with the rows in their order."""
        return self.counts(tile)

    def to_rows(self, tile: Tile, begins: np.ndarray, values: np.ndarray, columns: np.ndarray) -> None:
        """Put the stored values of a checked tile of a sparse layout, and their columns, row by row.

        begins: int64 (rows,), read-only: where each row begins in flat `values` (bits) and `columns` (COLUMN). They are
            written to at the places of stored values alone.
        """
        raise NotImplementedError


def expect_size(sizes: Mapping[str, int], array: str, expected: int) -> None:
    """Refuse an array that is not exactly `expected` bytes."""
    if sizes[array] != expected:
        raise FormatError("array-size", f"array {array!r} of a tile has {sizes[array]:,} bytes, not {expected:,}")


def expect_at_most(sizes: Mapping[str, int], array: str, most: int, unit: int) -> None:
    """Refuse an array that is over `most` bytes or no multiple of `unit` bytes."""
    if sizes[array] > most or sizes[array] % unit:
        raise FormatError(
            "array-size",
            f"array {array!r} of a tile has {sizes[array]:,} bytes: over {most:,} or no multiple of {unit}",
        )
