"""A tile: a run of rows of a tensor, laid out, and the signs of its zeros.

What differs between layouts is in their files. What is the same for all of them is here: above all negative zeros, of
which layouts know nothing (see `negative_zeros.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.layouts import negative_zeros, relayout
from sparsefmt.layouts.contract import Arrays, Layout
from sparsefmt.layouts.entries import COLUMN, Entries
from sparsefmt.layouts.in_rows import InRows, in_rows
from sparsefmt.layouts.memory import Allocate, empty, frozen, zeros
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.positions import Positions

_NOTHING = InRows(np.empty(0, np.int64), np.empty(0, np.int64), 0)
"""Of rows that nobody looks at: those of layout `dense`."""


class Tile:
    """A run of rows in one of the layouts. Nobody changes one that is made, whose arrays are read-only then.

    Whoever makes one of arrays from elsewhere calls `check` before anything that depends on what is in them.

    Attributes:
        layout, dtype: of the tensor.
        rows, cols: of the tile.
        arrays: those of the layout, by name.
        negative_zeros: a bit for each pruned position, in row-major order, set where it was -0.0; None if there is
            none, or if the signs are kept elsewhere.
    """

    __slots__ = ("_nnz", "_places", "arrays", "cols", "dtype", "layout", "negative_zeros", "rows")

    def __init__(
        self,
        layout: Layout,
        dtype: DType,
        shape: tuple[int, int],
        arrays: Arrays,
        signs: np.ndarray | None = None,
    ) -> None:
        """`shape`: rows and columns; `signs`: becomes `negative_zeros`."""
        self.layout, self.dtype, self.arrays, self.negative_zeros = layout, dtype, arrays, signs
        self.rows, self.cols = shape
        self._nnz: int | None = None
        self._places: np.ndarray | None = None

    @classmethod
    def from_dense(
        cls, layout: Layout, bits: np.ndarray, dtype: DType, empty: Allocate = empty, found: InRows | None = None
    ) -> Tile:
        """Lay out dense `bits` (rows, cols), unsigned integers of the element width, in memory that comes from `empty`.

        Two reads of them; one if it is known what was found in them.

        Raises:
            RowsChanged: what was found is not in them, since somebody writes to them.
        """
        if found is None:
            found = in_rows(bits, dtype) if layout.sparse else _NOTHING
        tile = cls(layout, dtype, bits.shape, layout.from_dense(bits, dtype, found, empty))
        if found.negative_zeros:
            pruned = bits.size - int(found.counts.sum())
            signs = negative_zeros.from_dense(bits, dtype, pruned, empty)
            # what was found may be in other rows
            tile.negative_zeros = signs if signs.any() else None
        return tile.frozen()

    @classmethod
    def from_entries(cls, layout: Layout, entries: Entries, dtype: DType, shape: tuple[int, int]) -> Tile:
        """Lay out `entries` in a sparse layout, for a tile of `shape` whose other elements are zero.

        The same tile as `from_dense` makes, in O(entries + rows) for `permuted`, and for `bitmask` beside its mask,
        which has a bit for each position.
        """
        values = entries.values
        negative = (values == dtype.negative_zero) if dtype.negative_zero else np.zeros(values.size, np.bool_)
        kept = (values != 0) & ~negative
        stored = Entries(*map(frozen, entries if kept.all() else entries.where(kept)))
        tile = cls(layout, dtype, shape, layout.from_entries(stored, dtype, shape))
        if negative.any():
            # the number of each among pruned positions: its position, less the values before it
            numbers = (entries.rows * tile.cols + entries.columns - np.cumsum(kept))[negative]
            tile.negative_zeros = negative_zeros.from_numbers(numbers, tile.pruned)
        return tile.frozen()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.cols

    def __getitem__(self, array: str) -> np.ndarray:
        """An array by name, `negative_zeros` too. Raises KeyError."""
        if array == NEGATIVE_ZEROS and self.negative_zeros is not None:
            return self.negative_zeros
        return self.arrays[array]

    def put(self, array: str, data: np.ndarray) -> None:
        """Add an array, of the layout or `negative_zeros`: for who fills a tile array by array."""
        if array == NEGATIVE_ZEROS:
            self.negative_zeros = data
        else:
            self.arrays[array] = data

    def all_arrays(self) -> Arrays:
        """All arrays by name, `negative_zeros` last if there is one."""
        return self.arrays if self.negative_zeros is None else {**self.arrays, NEGATIVE_ZEROS: self.negative_zeros}

    def array_dtype(self, array: str) -> np.dtype:
        """The type of the elements of an array, which need not be there yet."""
        if array == NEGATIVE_ZEROS:
            return negative_zeros.DTYPE
        return self.layout.array_dtype(array, self.dtype, self.cols)

    def positions(self, array: str) -> Positions | None:
        """As `Layout.positions`, also for `negative_zeros`."""
        return None if array == NEGATIVE_ZEROS else self.layout.positions(array, self)

    @property
    def nnz(self) -> int:
        """Number of stored values of a sparse layout, padding not counted. 0 in `dense`, where nobody has counted.

        Of a tile that has all its arrays. O(rows), but for `gaps` one read of the values, the first time.
        """
        if self._nnz is None:
            self._nnz = self.layout.nnz(self)
        return self._nnz

    def places(self) -> np.ndarray:
        """Of layout `permuted`: where in sorted order each row is, int64 (rows,). O(rows), the first time."""
        places = self._places
        if places is None:
            places = np.empty(self.rows, np.int64)
            places[self["row_permutation"]] = np.arange(self.rows)
            # not before it is whole: another thread may ask for it
            self._places = places
        return places

    @property
    def pruned(self) -> int:
        """Positions that a sparse layout leaves out."""
        return self.rows * self.cols - self.nnz

    def counts(self) -> np.ndarray:
        """Number of stored values in each row of a sparse layout, padding not counted; in any order of rows."""
        return self.layout.counts(self)

    def fillers(self) -> np.ndarray:
        """Fillers that each row has in `permuted` with gaps, whatever the layout is; rows as in `counts`."""
        return self.layout.fillers(self)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.all_arrays().values())

    @property
    def sign_nbytes(self) -> int:
        """Bytes of `negative_zeros`, if the tile has one or not."""
        return negative_zeros.nbytes(self.pruned)

    @property
    def has_negative_zeros(self) -> bool:
        """Whether `negative_zeros` marks any. One read of it."""
        return self.negative_zeros is not None and bool(self.negative_zeros.any())

    def check_sizes(self) -> None:
        """Refuse sizes of the layout's arrays that no tile of these rows and columns can have. Raises FormatError."""
        sizes = {array: data.nbytes for array, data in self.arrays.items()}
        self.layout.check_sizes(sizes, self.dtype, self.rows, self.cols)

    def check(self) -> None:
        """Verify every invariant of arrays whose sizes have been checked. One pass. Raises FormatError."""
        self.layout.check(self)
        if self.negative_zeros is not None:
            self.check_negative_zeros()

    def check_negative_zeros(self) -> None:
        """Verify `negative_zeros` alone, if there is one. O(1) or O(rows). Raises FormatError."""
        if self.negative_zeros is not None:
            negative_zeros.check(self.negative_zeros, self.pruned)

    def to_dense(self, begin: int, end: int) -> np.ndarray:
        """Dense bits (end - begin, cols) of rows `begin` to `end`, to the bit what was laid out."""
        bits = np.zeros((end - begin, self.cols), self.dtype.bits_dtype)
        self.fill(begin, 0, bits)
        return bits

    def fill(self, begin: int, first_col: int, bits: np.ndarray) -> None:
        """Fill zeroed dense `bits`, C-contiguous, with rows from `begin` on and columns from `first_col` on, as many as
        it has, to the bit what was laid out.

        Cost: O(elements of `bits`), beside finding them: in `permuted`, the entries of those rows before them. With
        `negative_zeros`, all columns of the rows.
        """
        if self.negative_zeros is None:
            self.layout.fill(self, begin, first_col, bits)
            return
        rows, cols = bits.shape
        # where a sign is depends on all zeros before it, row by row
        whole = bits if cols == self.cols else np.zeros((rows, self.cols), bits.dtype)
        self.layout.fill(self, begin, 0, whole)
        before = begin * self.cols - self.layout.nnz_before(self, begin)
        negative_zeros.restore(whole, self.negative_zeros, self.dtype, before)
        if whole is not bits:
            bits[:] = whole[:, first_col : first_col + cols]

    def counts_by_row(self) -> np.ndarray:
        """Number of stored values in each row of a sparse layout, padding not counted: int64, the rows in order."""
        return self.layout.counts_by_row(self)

    def to_rows(self, begins: np.ndarray, values: np.ndarray, columns: np.ndarray) -> None:
        """Put the stored values of a sparse layout and their columns where rows begin: see `Layout.to_rows`."""
        self.layout.to_rows(self, frozen(begins), values, columns)

    def entries(self) -> Entries:
        """The stored values of a sparse layout, and where they are. Negative zeros are not among them."""
        counts = self.counts_by_row()
        nnz = int(counts.sum())
        found = Entries(counts, np.empty(nnz, COLUMN), np.empty(nnz, self.dtype.bits_dtype))
        self.to_rows(found.begins, found.values, found.columns)
        return found

    def to_layout(self, layout: Layout, zeros: Allocate = zeros) -> Tile:
        """The tile in another layout, or form of it; itself if it has that one.

        Between the sparse layouts the zeros are never put back: O(nnz + mask), in memory that comes from `zeros`.
        O(rows * cols) to and from `dense`.
        """
        if layout.form == self.layout.form:
            return self
        if not (layout.sparse and self.layout.sparse):
            return Tile.from_dense(layout, self.to_dense(0, self.rows), self.dtype, zeros)
        arrays = relayout.between_sparse(self, layout, zeros)
        return Tile(layout, self.dtype, self.shape, arrays, self.negative_zeros).frozen()

    def moved(self, put: Callable[[np.ndarray], np.ndarray]) -> Tile:
        """The tile with each array as `put` gives it: in other memory, for instance."""
        arrays = {array: put(data) for array, data in self.arrays.items()}
        signs = None if self.negative_zeros is None else put(self.negative_zeros)
        return Tile(self.layout, self.dtype, self.shape, arrays, signs)

    def frozen(self) -> Tile:
        """The tile with read-only views of its arrays."""
        return self.moved(frozen)

    def with_negative_zeros(self, signs: np.ndarray | None) -> Tile:
        """The tile with this `negative_zeros`, which is not checked; without one for None."""
        return Tile(self.layout, self.dtype, self.shape, self.arrays, signs)

    def with_sign_array(self) -> Tile:
        """The tile; if it has no `negative_zeros`, with one that marks none, as a file has it for the other tiles."""
        if self.negative_zeros is not None:
            return self
        return self.with_negative_zeros(negative_zeros.none(self.pruned))
