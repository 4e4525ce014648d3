"""SparseTensor: what a user holds."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsefmt import indexing, notebooks, slicing
from sparsefmt.adapters import Rows, is_scipy_sparse, rows_of
from sparsefmt.as_array import AsArray
from sparsefmt.container.budget import NO_BUDGET, Budget
from sparsefmt.container.stored_signs import Signs, SignsOfMatrix
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import SparsefmtError, UnsupportedError
from sparsefmt.layouts import FORMS, LAYOUTS, heights, layout_of
from sparsefmt.layouts.auto import layout_for
from sparsefmt.layouts.contract import Arrays
from sparsefmt.layouts.memory import Arena, padded_copy
from sparsefmt.layouts.sizes import Filling, stored_by_form
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.patterns import Mask, Pattern, is_looked_at, mask_of_runs, pattern_of, thumbnail
from sparsefmt.threads import in_order

if TYPE_CHECKING:
    import scipy.sparse

    from sparsefmt.kernels.operand import Operand


_POSITIONS_AT_ONCE = 1 << 20
"""Dense elements to hold while one goes through the rows."""


@cache
def products() -> ModuleType:
    """`kernels/linear.py`, imported on first use. An import statement takes a microsecond each time, which small
    products notice."""
    from sparsefmt.kernels import linear

    return linear


class SparseTensor(AsArray):
    """An immutable tensor that stays compressed in memory.

    `from_dense`, `from_scipy` and loading a file make it. Its arrays are read-only and have been checked, so that
    kernels can trust them. Arrays that the file stores raw are the mapped file itself.

    `w @ x` and `sparsefmt.linear(x, w)` compute on the arrays as they are. `w[rows]` and `todense()` give dense numpy
    arrays, bit for bit what was stored, negative zeros included.

    Other operators and functions of numpy give the same dense arrays as for `todense()`: `w == 0`, `abs(w) < 1`,
    `numpy.mean(w == 0)`, `numpy.count_nonzero(w)`. `w.nnz` and `w.sparsity` cost less. Use `is` to find out whether two
    tensors are the same object; hashes go by identity.

    Example:
        >>> w = sparsefmt.SparseTensor.from_dense(np.eye(512, dtype=np.float32))
        >>> y = w @ np.ones(512, np.float32)
    """

    __slots__ = (
        "__weakref__",
        "_budget",
        "_nnz",
        "_operand",
        "_signs",
        "_tiles",
        "_tiling",
    )

    def __init__(
        self, tiling: Tiling, tiles: Sequence[Tile], budget: Budget = NO_BUDGET, signs: Signs | None = None
    ) -> None:
        """For the library itself: trusts that the tiles are checked and frozen.

        Args:
            budget: of the file they come from.
            signs: where `negative_zeros` is, if the tiles do not have it.
        """
        self._signs = signs
        self._budget = budget
        self._tiling = tiling
        self._tiles = tuple(tiles)
        self._nnz: int | None = None
        self._operand: Operand | None = None

    @classmethod
    def from_dense(
        cls, array: Any, layout: str = "auto", *, row_dims: int | None = None, threads: int | None = None
    ) -> SparseTensor:
        """Lay out a dense array, or anything else that `sparsefmt.save_file` takes.

        Args:
            array: anything that numpy takes, of a dtype that the format has, in any byte order and memory order; or a
                tensor of torch. Sparse tensors of torch, scipy and pydata are taken too, and only single tiles of them
                are made dense. It is not changed.
            layout: "auto" (see docs/guide.md, "Choosing a layout"), "dense", "bitmask" or "permuted".
            row_dims: how many leading dimensions make rows; by default as in `sparsefmt.save_file`.
            threads: the number of threads; by default all usable cores.

        Raises:
            UnsupportedError: the format does not have the dtype, or the layout cannot hold dtype or shape.
            FormatError: a tensor of that shape cannot have these row_dims.

        Cost: two reads of the array and one write of the result.
        """
        matrix = rows_of(array)
        if row_dims is not None:
            heights.expect_row_dims(row_dims, matrix.shape, matrix.dtype)
            matrix.stack(row_dims)
        return cls._from_rows(matrix, layout, threads)

    @classmethod
    def from_scipy(
        cls, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix, layout: str = "auto", *, threads: int | None = None
    ) -> SparseTensor:
        """Lay out a scipy.sparse matrix, or array of any number of dimensions, in any of its formats.

        Entries with equal indices are summed, as scipy does. Explicit zeros are pruned, and -0.0 keeps its sign. Only
        single tiles are made dense.

        Raises:
            UnsupportedError: as in `from_dense`.
            FormatError: indices outside the matrix.
            TypeError: it is not from scipy.sparse.
        """
        if not is_scipy_sparse(matrix):
            raise TypeError(f"from_scipy takes a matrix or array of scipy.sparse, not {type(matrix).__name__}")
        return cls._from_rows(rows_of(matrix), layout, threads)

    @classmethod
    def _from_rows(
        cls, matrix: Rows, wanted: str, threads: int | None = None, budget: Budget = NO_BUDGET
    ) -> SparseTensor:
        survey = matrix.survey(threads)
        filling = matrix.filling(survey)
        layout = layout_for(wanted, "computing", matrix.shape, filling)
        if wanted not in ("auto", layout.name):
            raise UnsupportedError(
                "layout-invalid",
                f"layout {wanted!r} cannot hold {matrix.dtype.name} tensors of shape {list(matrix.shape)}: use 'dense'",
            )
        tiling = matrix.tiling(layout, survey.nnz + survey.negative_zeros)
        nbytes = replace(filling, tile_rows=tiling.tile_rows).nbytes(layout) if tiling.tiles else 0
        budget.ask(nbytes)
        arena = Arena(nbytes)
        tiles = list(in_order(matrix.tile_maker(tiling, arena=arena), range(tiling.tiles), threads))
        return cls(tiling, tiles, budget)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense tensor."""
        return self._tiling.shape

    @property
    def dtype(self) -> np.dtype:
        """numpy dtype of the elements. bfloat16, fp8 and sub-byte types are those of ml_dtypes."""
        return self._tiling.dtype.numpy

    @property
    def ndim(self) -> int:
        return len(self._tiling.shape)

    @property
    def size(self) -> int:
        """Elements of the dense tensor."""
        return self._tiling.elements

    @property
    def layout(self) -> str:
        """ "dense", "bitmask" or "permuted"."""
        return self._tiling.layout.name

    @property
    def nnz(self) -> int:
        """Elements that are neither 0 nor -0.0. O(tiles) for sparse layouts, one read of the values for `dense`."""
        if self._nnz is None:
            if self._tiling.layout.sparse:
                self._nnz = sum(tile.nnz for tile in self._tiles)
            else:
                self._nnz = int(np.count_nonzero(self.todense()))
        return self._nnz

    @property
    def sparsity(self) -> float:
        """Share of the elements that is zero, 0.0 to 1.0. It is 0.0 for a tensor without elements."""
        return 1 - self.nnz / self.size if self.size else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory or mapped. Signs of zeros that stay in the file do not count."""
        return sum(tile.nbytes for tile in self._tiles)

    def __repr__(self) -> str:
        dense = self._tiling.dtype.nbytes(self.size)
        return (
            f"SparseTensor(shape={self.shape}, dtype={self.dtype}, layout={self.layout!r}, "
            f"sparsity={self.sparsity:.3f}, nbytes={self.nbytes:,} of {dense:,})"
        )

    def _repr_html_(self) -> str:
        """What notebooks show: shape, zeros, layout, bytes and, up to 64 Mi elements, where the nonzeros are."""
        return notebooks.box((f"SparseTensor {self.shape} {self.dtype}", *self.described()), self.picture())

    def described(self) -> tuple[str, ...]:
        """Zeros, layout and bytes in a line each. For the library itself."""
        dense = self._tiling.dtype.nbytes(self.size)
        return (
            f"{notebooks.percent(self.sparsity)} zeros",
            f"layout {self.layout}",
            f"{self.nbytes:,} of {dense:,} bytes",
        )

    def picture(self, width: int = notebooks.PIXELS) -> str:
        """An <img> of where the nonzeros are; "" if it would take too long. For the library itself."""
        if self.size <= notebooks.MOST_DRAWN and is_looked_at(self._tiling.dtype):
            with suppress(SparsefmtError):  # the limit of the file; or it has been changed in place
                return thumbnail(self.mask(), width)
        return ""

    def __len__(self) -> int:
        if not self._tiling.shape:
            raise TypeError("len() of a 0-d tensor")
        return self._tiling.shape[0]

    def todense(self, threads: int | None = None, *, max_decoded_bytes: int | None = None) -> np.ndarray:
        """The dense array, bit for bit. O(rows * cols); tiles are expanded in parallel.

        Args:
            max_decoded_bytes: the most bytes that a tensor from a file may take; by default the limit of the file that
                it was loaded from. `w[rows]`, `numpy.asarray(w)` and `to_scipy()` keep to that limit too.

        Raises:
            LimitError: it takes more than that, or more than the memory of the machine.
        """
        tiles = slicing.Tiles(self._tiling, self.tile, self._budget.with_limit(max_decoded_bytes))
        return tiles.dense_rows(range(self._tiling.rows), slice(None), threads).reshape(self._tiling.shape)

    def __iter__(self) -> Iterator[Any]:
        """The rows, as `todense()` would give them, made dense some at a time; of a stack, its matrices."""
        if self._tiling.row_dims > 1:
            yield from map(self._matrix, range(len(self)))
            return
        at_once = max(_POSITIONS_AT_ONCE // max(self.size // max(len(self), 1), 1), 1)
        for begin in range(0, len(self), at_once):
            yield from self[begin : begin + at_once]

    def __getitem__(self, key: Any) -> Any:
        """Dense elements, as `todense()[key]` gives them. Only the rows that `key` asks for are expanded.

        Of a stack of matrices, `w[e]` with an integer is matrix e as a SparseTensor on the same arrays, without a copy.

        `key` is any index of numpy whose first part is an integer, a slice, or a one-dimensional array of integers or
        booleans. A row costs O(cols) to expand; in `permuted`, a run of rows costs O(rows of its tile) to find.
        """
        if self._tiling.row_dims > 1 and isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            return self._matrix(operator.index(key))
        return indexing.index(key, self._tiling, slicing.Tiles(self._tiling, self.tile, self._budget).dense_rows)

    def _matrix(self, number: int) -> SparseTensor:
        """A matrix of a stack, or a lower stack."""
        count, tiling = self._tiling.shape[0], self._tiling
        if not -count <= number < count:
            raise IndexError(f"index {number} is out of bounds for a stack of {count} matrices")
        tiles = tiling.tiles // count
        first = number % count * tiles
        signs = None if self._signs is None else SignsOfMatrix(self._signs, range(first, first + tiles))
        part = replace(tiling, shape=tiling.shape[1:], row_dims=tiling.row_dims - 1)
        return SparseTensor(part, self._tiles[first : first + tiles], self._budget, signs)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """The matrix view as scipy.sparse.csr_array, (rows, cols), columns ascending.

        Types that scipy cannot hold are widened exactly: bfloat16, float16 and fp8 to float32. The matrix has no
        explicit zeros, so that -0.0 becomes 0.0.

        Raises:
            LimitError: the tensor comes from a file, and the matrix takes more than `max_decoded_bytes`.

        Cost: O(entries) time and memory; of layout `dense`, O(rows * cols) time. Tiles are moved in parallel.
        """
        from sparsefmt.adapters import scipy

        if not self._tiling.dtype.prunable:
            return scipy.csr_array_of_dense(self.todense().reshape(self._tiling.rows, self._tiling.cols))
        return scipy.csr_array_of(self._tiling, self._tiles, self._budget)

    def pattern(self, *, threads: int | None = None) -> Pattern:
        """Which pattern the zeros have: N:M, blocks, whole rows or columns, heads, a band, a triangle, or none.

        `str()` of it says so in a few words. It also counts -0.0, NaNs and infinities.

        Raises:
            UnsupportedError: the dtype has no zeros that could be pruned.
            LimitError: a bit for each element takes more than `max_decoded_bytes` of the file that it comes from.

        Cost: expands the tensor once, a few tiles at a time; a bit for each element is kept meanwhile.
        """
        return pattern_of(self.mask(threads))

    def mask(self, threads: int | None = None) -> Mask:
        """A bit for each element, row by row. For the library itself. Raises and costs as `pattern`."""
        tiling = self._tiling
        self._budget.ask(tiling.rows * -(-tiling.cols // 64) * 8)

        def read(run: tuple[int, int]) -> np.ndarray:
            number, begin = divmod(run[0], tiling.tile_rows)
            return self.tile(number).to_dense(begin, begin + run[1] - run[0])

        tiles = map(tiling.tile_range, range(tiling.tiles))
        runs = [run for tile in tiles for run in slicing.runs(*tile, tiling.cols)]
        return mask_of_runs(tiling.dtype, (tiling.rows, tiling.cols, tiling.matrix_rows), (runs, read), threads)

    def to_layout(self, layout: str, *, threads: int | None = None) -> SparseTensor:
        """The tensor in another layout; itself if it has that layout. It is not made dense between sparse layouts.

        Raises:
            UnsupportedError: the layout cannot hold this dtype or shape.
        """
        if layout == self.layout:
            return self
        if not self._tiling.layout.sparse or layout not in LAYOUTS:
            matrix = rows_of(self.todense(threads))
            matrix.stack(self._tiling.row_dims)
            return SparseTensor._from_rows(matrix, layout, threads, self._budget)
        filling = self.filling()
        target = filling.permuted if layout == "permuted" else FORMS[layout]
        signs = self._signs if target.sparse else None
        nbytes = filling.nbytes(target)
        self._budget.ask(nbytes)
        arena = Arena(nbytes)

        def laid_out(number: int) -> Tile:
            made = (self._tiles[number] if signs else self.tile(number)).to_layout(target, arena.zeros)
            # all arrays lie together
            kept = made.negative_zeros
            return made if kept is None else made.with_negative_zeros(arena.moved(kept))

        tiles = list(in_order(laid_out, range(len(self._tiles)), threads))
        return SparseTensor(self._tiling.with_layout(target), tiles, self._budget, signs)

    def __matmul__(self, x: Any) -> np.ndarray:
        """The product of the matrix view and x: x (cols,) gives (rows,), x (cols, n) gives (rows, n).

        Each column of x gives the same bits as it would alone. dtypes, order of additions and errors are those of
        `sparsefmt.linear`.
        """
        x = np.asarray(x)
        if x.ndim == 1:
            return products().linear(x, self.operand())
        cols = self._tiling.cols
        if x.ndim != 2 or x.shape[0] != cols:
            raise ValueError(f"w @ x takes x of shape ({cols},) or ({cols}, n), not {x.shape}")
        return products().matmul(self.operand(), x)

    def __copy__(self) -> SparseTensor:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseTensor:
        """The tensor itself, since it cannot change."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        tiles = tuple(self.tile(number).all_arrays() for number in range(len(self._tiles)))
        tiling = self._tiling
        return _unpickle, (tiling.dtype.name, tiling.shape, self.layout, (tiling.tile_rows, tiling.row_dims), tiles)

    def operand(self) -> Operand:
        """The tensor as kernels take it; made once. For the library itself."""
        if self._operand is None:
            from sparsefmt.kernels.operand import Operand

            self._operand = Operand(self._tiling, self._tiles)
        return self._operand

    def filling(self) -> Filling:
        """How full a sparse tensor is, which gives the sizes of its arrays. One read of what says where values stand.

        For the library itself.
        """
        tiling = self._tiling
        stored = stored_by_form((tile.counts(), tile.fillers()) for tile in self._tiles)
        return Filling(tiling.dtype, tiling.rows, tiling.cols, tiling.tile_rows, self.nnz, stored)

    @property
    def tiling(self) -> Tiling:
        """How it is cut into tiles. For the library itself."""
        return self._tiling

    def tile(self, number: int) -> Tile:
        """Tile `number`, with `negative_zeros` if there are any. For the library itself.

        Raises:
            ChecksumError, FormatError, OSError: signs are read from the file, and the file has been changed in place.
        """
        tile = self._tiles[number]
        if self._signs is None:
            return tile
        tile = tile.with_negative_zeros(self._signs.tile(number))
        tile.check_negative_zeros()
        return tile

    @property
    def budget(self) -> Budget:
        """Of the file that it comes from: what is made of the tensor keeps to it. For the library itself."""
        return self._budget

    @property
    def signs(self) -> Signs | None:
        """Where `negative_zeros` is, if it is not in the tiles. For the library itself."""
        return self._signs

    def with_signs(self, signs: Signs | None) -> SparseTensor:
        """The tensor with `negative_zeros` from elsewhere, where its tiles have none. For the library itself."""
        made = SparseTensor(self._tiling, self._tiles, self._budget, signs)
        made._operand = self._operand
        return made


def _unpickle(
    dtype_name: str, shape: tuple[int, ...], layout: str, cut: tuple[int, int], tiles: tuple[Arrays, ...]
) -> SparseTensor:
    """Copy arrays to memory that kernels can read past the end of, which pickling does not keep, and check them."""
    found = layout_of(layout, tiles[0] if tiles else ())
    assert found is not None
    tiling, restored = Tiling(DTYPES[dtype_name], shape, found, cut[0], row_dims=cut[1]), []
    for number, arrays in enumerate(tiles):
        tile = tiling.tile(number, arrays).moved(padded_copy)
        tile.check_sizes()
        tile.check()
        restored.append(tile.frozen())
    return SparseTensor(tiling, restored)
