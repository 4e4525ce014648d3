"""A SparseTensor as two torch tensors, and back: what a module holds, an operator takes, and torch saves.

    arrays   uint8 (n,)   all arrays of all tiles, wherever in it they lie, and 64 readable bytes behind the last
    table    int64 (m,)   VERSION, dtype, rows, cols, layout in its form, tile_rows; then, for each tile and each array
                          of that in order of names, `negative_zeros` last: where it begins in `arrays`, its bytes

Arrays that lie together in memory, as those of large tensors and of mapped files do, are not copied: `arrays` is a view
of them. Nobody may write to it: the pages of a mapped file are read-only.
"""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from sparsefmt.container.stored_signs import HeldSigns, Signs
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.layouts import FORMS, auto
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.memory import ALIGNMENT, OVERREAD, SMALL_ALIGNMENT, frozen, padded_copy
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.limits import MAX_SPARSE_TILE_POSITIONS, MAX_SPARSE_TILE_ROWS, MAX_TENSOR_BITS
from sparsefmt.tensor import SparseTensor

VERSION = 2
"""Of the arrays and the table. 1 had slices of 8 rows, and `bitmask` row by row."""

_HEADER = 6
"""Numbers in the table before those of the tiles."""

# places in these tuples are what is saved: new names go to the end
_FORMS = ("dense", "bitmask", "columns", "gaps")
_DTYPES = (
    *("F32", "BF16", "F16", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I8", "U8", "I16", "I32", "I64", "U16", "U32", "U64", "F8_E8M0", "BOOL"),
)


class WeightTensors(NamedTuple):
    """A matrix as two tensors on the CPU. See the head of this file."""

    arrays: torch.Tensor
    table: torch.Tensor


def to_tensors(weight: SparseTensor, *, copy: bool = False) -> WeightTensors:
    """The two tensors for a matrix. Its arrays are shared where they lie together, else copied.

    Args:
        copy: copy them in any case.

    Raises:
        UnsupportedError: a dtype that has no product here.
    """
    operand = weight.operand()
    if operand.dtype.name not in _DTYPES:
        raise UnsupportedError("dtype-product", f"weights of dtype {operand.dtype.name} cannot be multiplied")
    numbers = [VERSION, _DTYPES.index(operand.dtype.name), operand.rows, operand.cols]
    numbers += [_FORMS.index(operand.tiling.layout.form), operand.tiling.tile_rows]
    # weights that are set in inference mode shall serve outside of it as well
    with torch.inference_mode(False):
        arrays, places = (None if copy else _together(operand.tiles)) or _copied(operand.tiles)
        for number, tile in enumerate(operand.tiles):
            arrays_of_tile = tile.all_arrays()
            for name in _names(operand.tiling.layout):
                found = name in arrays_of_tile
                numbers += (places[number, name], arrays_of_tile[name].nbytes) if found else (-1, 0)
        return WeightTensors(arrays, torch.tensor(numbers, dtype=torch.int64, device="cpu"))


def from_tensors(memory: np.ndarray, table: torch.Tensor, *, check: bool) -> SparseTensor:
    """The matrix whose arrays are views of `memory`, those of `arrays`.

    Args:
        memory: uint8, aligned to 64 bytes.
        check: verify everything, as for a file. False if these two were made by `to_tensors`.

    Raises:
        FormatError: the two are not a matrix.
    """
    tiling, numbers = _read_table(table)
    names = _names(tiling.layout)
    if check:
        _check_tiling(tiling, len(numbers))
    tiles: list[Tile] = []
    for number in range(tiling.tiles):
        begins, sizes = (numbers[2 * len(names) * number + part :: 2] for part in (0, 1))
        places = {
            name: (begin, nbytes)
            for name, begin, nbytes in zip(names, begins, sizes, strict=False)
            if name != NEGATIVE_ZEROS or begin >= 0
        }
        if check:
            if NEGATIVE_ZEROS in places and not tiling.layout.sparse:
                raise FormatError("weight-table", f"tile {number} has signs of zeros beside dense values")
            _check_places(places, number, memory.size)
            sizes_by_name = {name: nbytes for name, (_, nbytes) in places.items()}
            tiling.layout.check_sizes(sizes_by_name, tiling.dtype, tiling.height(number), tiling.cols)
        tile = tiling.tile(number, {})
        for name, (begin, nbytes) in places.items():
            tile.put(name, frozen(memory[begin : begin + nbytes].view(tile.array_dtype(name))))
        if check:
            tile.check()
        tiles.append(tile)
    return SparseTensor(tiling, tiles)


def values_of(weights: WeightTensors, dtype: torch.dtype) -> torch.Tensor:
    """The values of a matrix of one tile as a flat tensor: the memory of `arrays`, which may be written to, and a
    storage of its own, which is no larger. It keeps `arrays` alive."""
    tiling, numbers = _read_table(weights.table)
    at = 2 * _names(tiling.layout).index("values")
    begin, nbytes = numbers[at : at + 2]
    memory = weights.arrays.numpy()[begin : begin + nbytes]
    return torch.from_numpy(memory.view(f"i{dtype.itemsize}")).view(dtype)


def signs_of(tensor: SparseTensor, signs: torch.Tensor) -> Signs:
    """The arrays `negative_zeros` of all tiles of a tensor that has none, one after the other in a tensor of uint8.

    Raises:
        FormatError: they are not.
    """
    memory, tiles = signs.detach().cpu().numpy(), tensor.operand().tiles
    ends = np.cumsum([0, *(tile.sign_nbytes for tile in tiles)]).tolist()
    if memory.dtype != np.uint8 or ends[-1] != memory.size:
        raise FormatError("weight-table", f"signs of zeros take {memory.size:,} bytes, and not {ends[-1]:,}")
    held = HeldSigns([memory[begin:end] for begin, end in pairwise(ends)])
    for number, tile in enumerate(tiles):
        tile.with_negative_zeros(held.tile(number)).check_negative_zeros()
    return held


def memory_of(arrays: torch.Tensor) -> np.ndarray:
    """The bytes of `arrays` as numpy takes them, aligned; copied only if they are not. Keeps them alive."""
    memory = arrays.detach().numpy()
    return memory if memory.ctypes.data % ALIGNMENT == 0 else padded_copy(memory)


def borrowed_memory_of(arrays: torch.Tensor) -> np.ndarray:
    """Like `memory_of`, but valid only as long as someone else keeps `arrays` alive."""
    if arrays.data_ptr() % ALIGNMENT or not arrays.numel():
        return padded_copy(arrays.detach().numpy())
    return np.frombuffer((ctypes.c_uint8 * arrays.numel()).from_address(arrays.data_ptr()), np.uint8)


def _names(layout: Layout) -> tuple[str, ...]:
    return (*layout.arrays, NEGATIVE_ZEROS)


def _read_table(table: torch.Tensor) -> tuple[Tiling, list[int]]:
    """What is true for all tiles, and the numbers of the tiles. Raises FormatError."""
    numbers = table.tolist()
    if len(numbers) < _HEADER or numbers[0] != VERSION:
        raise FormatError("weight-table", "this is not a weight table, or another version of the library wrote it")
    _, dtype, rows, cols, layout, tile_rows = numbers[:_HEADER]
    if dtype not in range(len(_DTYPES)) or layout not in range(len(_FORMS)):
        raise FormatError("weight-table", f"the table has dtype {dtype} and layout {layout}, which are not known")
    tiling = Tiling(DTYPES[_DTYPES[dtype]], (rows, cols), FORMS[_FORMS[layout]], tile_rows)
    return tiling, numbers[_HEADER:]


def _check_tiling(tiling: Tiling, number_count: int) -> None:
    """Refuse what no tensor of the format can have: it must not come to kernels that rely on it."""
    rows, cols, tile_rows = tiling.rows, tiling.cols, tiling.tile_rows
    fits = rows >= 0 and cols >= 0 and max(rows, 1) * max(cols, 1) * tiling.dtype.nbits <= MAX_TENSOR_BITS
    # without elements, there are no tiles
    fits &= 1 <= tile_rows <= rows if rows and cols else tile_rows == 0
    if fits and tiling.layout.sparse:
        fits = auto.can_be_sparse(tiling.dtype, (rows, cols), cols)
        fits &= tile_rows <= MAX_SPARSE_TILE_ROWS and tile_rows * cols <= MAX_SPARSE_TILE_POSITIONS
    if not fits or number_count != 2 * len(_names(tiling.layout)) * tiling.tiles:
        raise FormatError(
            "weight-table",
            f"the table does not fit {rows} rows and {cols} columns, with {tile_rows} rows in a tile, in layout"
            f" {tiling.layout.name!r}",
        )


def _check_places(places: dict[str, tuple[int, int]], number: int, size: int) -> None:
    for name, (begin, nbytes) in places.items():
        if begin < 0 or nbytes < 0 or begin % SMALL_ALIGNMENT or begin + nbytes + OVERREAD > size:
            raise FormatError("weight-table", f"array {name!r} of tile {number} does not lie in the {size:,} bytes")


Places = dict[tuple[int, str], int]
"""Where the array of a tile begins, by number of the tile and name of the array."""


def _together(tiles: tuple[Tile, ...]) -> tuple[torch.Tensor, Places] | None:
    """A view of the memory that all arrays lie in; None if they lie apart."""
    arrays = [array for tile in tiles for array in tile.all_arrays().values() if array.size]
    if not arrays:
        return None
    owner = _owner(arrays[0])
    # large arrays are aligned, and stay so in what is made of these bytes
    begin = min(array.ctypes.data for array in arrays) // ALIGNMENT * ALIGNMENT
    end = max(array.ctypes.data + array.nbytes for array in arrays) + OVERREAD
    total = sum(array.nbytes for array in arrays)
    if (
        any(_owner(array) is not owner or array.ctypes.data % SMALL_ALIGNMENT for array in arrays)
        or begin < owner.ctypes.data
        or end > owner.ctypes.data + owner.nbytes
        or end - begin > total + total // 8 + ALIGNMENT * len(arrays)
    ):
        return None
    places = {
        (number, name): array.ctypes.data - begin if array.size else 0
        for number, tile in enumerate(tiles)
        for name, array in tile.all_arrays().items()
    }
    view = (ctypes.c_uint8 * (end - begin)).from_address(begin)
    # torch keeps the array, which keeps the view, which keeps the memory; for a read-only array, torch would warn
    view.owner = owner  # type: ignore[attr-defined]
    return torch.from_numpy(np.frombuffer(view, np.uint8)), places


def _owner(array: np.ndarray) -> np.ndarray:
    """The array that has the memory of this one."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _copied(tiles: tuple[Tile, ...]) -> tuple[torch.Tensor, Places]:
    """All arrays one after the other in fresh memory."""
    places: Places = {}
    size = 0
    for number, tile in enumerate(tiles):
        for name, array in tile.all_arrays().items():
            places[number, name] = size
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    # torch aligns what it allocates to 64 bytes
    arrays = torch.zeros(size + OVERREAD, dtype=torch.uint8, device="cpu")
    memory = arrays.numpy()
    for number, tile in enumerate(tiles):
        for name, array in tile.all_arrays().items():
            begin = places[number, name]
            memory[begin : begin + array.nbytes] = array.view(np.uint8)
    return arrays, places
