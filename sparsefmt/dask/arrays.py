"""A tensor of a file as a dask array: a block for each tile, read by the worker that needs it; products by blocks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import dask.array
import numpy as np
from dask.base import tokenize
from dask.delayed import Delayed, delayed

import sparsefmt
from sparsefmt.container.entry import TensorEntry
from sparsefmt.errors import UnsupportedError
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.urls import Url, as_place

_MOST_OPEN = 8
"""Files that a worker keeps open."""

if dask.array.ARRAY_EXPR_ENABLED:
    raise UnsupportedError("dask-arrays", "arrays with dask's setting array.query-planning are not supported: unset it")


class FileArray(dask.array.Array):
    """A tensor of a .sparsefmt file as a dask array, a block of dense elements for each tile. `from_file` makes it.

    It is a dask array, and what is made of it (`w[8:16]`, `w + 1`, `w.sum()`, `w.persist()`) is a plain one; so is it
    itself after pickling. One thing differs: `x @ w.T`, for a matrix w, does not make w dense. It multiplies by each
    tile as it is stored, and gives the bits of `sparsefmt.linear(x, w)`.

    Attributes:
        tiles: a delayed SparseTensor for each tile, of its rows; a delayed numpy array if the tensor is stored dense.
            Tiles of a stack of matrices have the shape of their part of one matrix.
    """

    tiles: Sequence[Delayed]

    @property
    def T(self) -> Any:
        if self.ndim != 2:
            return super().T
        plain = self.transpose()
        made = _Transposed(plain.dask, plain.name, plain.chunks, plain.dtype, plain._meta)
        made.of = self
        return made

    def linear(self, x: Any, bias: Any = None) -> dask.array.Array:
        """`x @ w.T + bias`, with the bits of `sparsefmt.linear`, by blocks: those of rows of x, and the tiles of w.

        Args:
            x: activations (..., cols), a dask array or one of numpy. A dask array may have several blocks of rows.
            bias: (rows,), of numpy.

        Returns:
            a dask array (..., rows), whose blocks are those of x times the tiles.

        Raises:
            ValueError: shapes do not fit, or w is no matrix.
        """
        if self.ndim != 2:
            raise ValueError(f"products are by matrices; this has {self.ndim} dimensions")
        rows, cols = self.shape
        if not np.ndim(x) or x.shape[-1] != cols:
            raise ValueError(
                f"x has shape {np.shape(x)}; its last dimension must be {cols}, as w has shape {self.shape}"
            )
        given = x if isinstance(x, dask.array.Array) else dask.array.from_array(np.asarray(x), chunks=-1)
        given = given.rechunk({given.ndim - 1: -1})
        shares = _shares_of(bias, rows, self.chunks[0])
        dtype = sparsefmt.linear(np.empty((0, 1), given.dtype), np.empty((0, 1), self.dtype)).dtype
        products = [
            given.map_blocks(_product, tile, share, dtype=dtype, chunks=(*given.chunks[:-1], (height,)))
            for tile, share, height in zip(self.tiles, shares, self.chunks[0], strict=True)
        ]
        return dask.array.concatenate(products, axis=-1)


class _Transposed(dask.array.Array):
    """The transposed array, by which products are computed with the tiles of the array itself."""

    of: FileArray

    def __rmatmul__(self, x: Any) -> Any:
        return self.of.linear(x)

    def __array_ufunc__(self, numpy_ufunc: Any, method: Any, *inputs: Any, **kwargs: Any) -> Any:
        is_product = numpy_ufunc is np.matmul and method == "__call__" and not kwargs
        if is_product and len(inputs) == 2 and inputs[1] is self:
            return self.of.linear(inputs[0])
        return super().__array_ufunc__(numpy_ufunc, method, *inputs, **kwargs)

    @property
    def T(self) -> Any:
        return self.of


def from_file(
    file: str | os.PathLike[str] | SparseFile, name: str, *, storage_options: dict[str, Any] | None = None
) -> FileArray:
    """A tensor of a .sparsefmt file as a dask array. Reads the index; tiles are read when and where they are needed.

    Args:
        file: a path, which workers see, too, or a URL; or an open file of one.
        name: of the tensor.
        storage_options: for a URL, what fsspec's file system takes.

    Raises:
        KeyError: there is no such tensor.
        as `sparsefmt.open_file`; workers as `sparsefmt.load_file`, and FormatError (`file-changed`) for a file that has
            been replaced since.

    Cost: a worker reads a tile for each block, and has the last few files open. The scales of quantized weights are
        tensors of their own, and are not multiplied by.

    Example:
        >>> w = sparsefmt.dask.from_file("s3://models/llama.sparsefmt", "layers.0.weight")
        >>> y = (x @ w.T).compute()
    """
    if not isinstance(file, SparseFile):
        with sparsefmt.open_file(as_place(file, storage_options)) as opened:
            return from_file(opened, name)
    place = _OpenedAgain(file)
    entry = file.reader.index.entry(name) if name in file else _missing(file, name)
    chunks = _chunks_of(entry)
    token = tokenize(place.key, name)
    numbers = np.arange(max(entry.tiles, 1)).reshape([len(sizes) for sizes in chunks])
    graph: dict[Any, Any] = {
        (f"tile-{token}", *map(int, where)): (_block, place, name, int(number))
        for where, number in np.ndenumerate(numbers)
    }
    made = FileArray(graph, f"tile-{token}", chunks, entry.dtype.numpy)
    tile = delayed(_tile, pure=True)
    made.tiles = [
        tile(place, name, number, dask_key_name=(f"sparse_tile-{token}", number)) for number in range(numbers.size)
    ]
    return made


class _OpenedAgain:
    """An open file, which goes to other processes as what opens it there, once for all of its tiles."""

    def __init__(self, file: SparseFile) -> None:
        _, (pickled, _) = file.__reduce__()
        self.key = tuple(pickled._replace(path=_hashable(pickled.path)))
        self._pickled = pickled

    def file(self) -> SparseFile:
        return _opened(self)

    def open(self) -> SparseFile:
        return SparseFile(self._pickled, threads=1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OpenedAgain) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __dask_tokenize__(self) -> Any:
        return self.key


@lru_cache(_MOST_OPEN)
def _opened(place: _OpenedAgain) -> SparseFile:
    return place.open()


def _hashable(path: Any) -> Any:
    return (path.url, repr(sorted(path.options.items(), key=str))) if isinstance(path, Url) else path


def _missing(file: SparseFile, name: str) -> TensorEntry:
    raise KeyError(f"no tensor {name!r} in this file; it has {len(file)} others")


def _chunks_of(entry: TensorEntry) -> tuple[tuple[int, ...], ...]:
    """A block for each tile: leading dimensions of a stack one by one, then rows by tiles, then all else."""
    if not entry.tiles:
        return tuple((size,) for size in entry.shape)
    dims, height = max(entry.row_dims, 1), entry.tile_rows
    if not entry.shape:
        return ()
    rows = entry.shape[dims - 1]
    cuts = tuple(min(height, rows - begin) for begin in range(0, rows, height))
    return (*((1,) * size for size in entry.shape[: dims - 1]), cuts, *((size,) for size in entry.shape[dims:]))


def _block(place: _OpenedAgain, name: str, number: int) -> np.ndarray:
    """The dense elements of a tile, in the shape of a block."""
    file = place.file()
    entry = file.reader.index.entry(name)
    if not entry.tiles:
        return np.empty(entry.shape, entry.dtype.numpy)
    blocks = [len(sizes) for sizes in _chunks_of(entry)]
    where = np.unravel_index(number, blocks) if blocks else ()
    index = tuple(
        slice(sum(sizes[:part]), sum(sizes[: part + 1]))
        for part, sizes in zip(map(int, where), _chunks_of(entry), strict=True)
    )
    return np.asarray(file.get_slice(name)[index])


def _tile(place: _OpenedAgain, name: str, number: int) -> SparseTensor | np.ndarray:
    file = place.file()
    entry = file.reader.index.entry(name)
    if not entry.layout.sparse or not entry.tiles:
        block = _block(place, name, number)
        return block.reshape(-1, entry.cols) if len(entry.shape) > 1 else block
    tile = file.reader.tile(entry, number)
    shape = (tile.rows, *entry.shape[entry.row_dims :])
    return SparseTensor(Tiling(entry.dtype, shape, entry.layout, tile.rows), [tile], file.reader.budget)


def _product(x: np.ndarray, w: SparseTensor | np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return sparsefmt.linear(x, w, bias, threads=1)


def _shares_of(bias: Any, rows: int, heights: Sequence[int]) -> Sequence[np.ndarray | None]:
    if bias is None:
        return [None] * len(heights)
    bias = np.asarray(bias)
    if bias.shape != (rows,):
        raise ValueError(f"bias has shape {bias.shape}, and must have ({rows},)")
    return np.split(bias, np.cumsum(heights)[:-1])
