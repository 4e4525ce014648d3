"""Dense rows of tiles. Only the tiles that have rows which are asked for are touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sparsefmt.container.budget import Budget
from sparsefmt.dtypes import DType
from sparsefmt.errors import LimitError
from sparsefmt.layouts import heights
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.threads import in_order

TileGetter = Callable[[int], Tile]

RowNumbers = range | np.ndarray
"""Numbers of rows: int64 in any order, repeated or not; or a range, whose numbers may be more than fit in memory."""


class Tiles(NamedTuple):
    """A tensor, whose rows are made dense on demand.

    Attributes:
        get_tile: gives tile t, checked.
        budget: asked for the rows.
        name: of the tensor, for errors.
    """

    tiling: Tiling
    get_tile: TileGetter
    budget: Budget
    name: str | None = None

    def dense_rows(self, wanted: RowNumbers, cols: slice, threads: int | None = None) -> np.ndarray:
        """Elements (len(wanted), columns in `cols`) of the matrix view, as a new array of the tensor's numpy dtype.

        `get_tile` is called once for each tile that has a wanted row.

        Args:
            wanted: numbers of rows.

        Raises:
            LimitError: the rows, with all columns between the first and the last that are wanted, exceed the budget, or
                memory.
        """
        dtype, tile_rows, all_cols = self.tiling.dtype, self.tiling.tile_rows, self.tiling.cols
        wanted_cols = range(*cols.indices(all_cols))
        ends = (wanted_cols[0], wanted_cols[-1]) if wanted_cols else (0, -1)
        first_col, width = min(ends), max(ends) - min(ends) + 1
        # of the columns that are expanded
        cut = slice(None) if wanted_cols.step == 1 else slice(wanted_cols.start - first_col, None, wanted_cols.step)
        self.budget.ask(len(wanted) * width * dtype.numpy.itemsize, self.name)
        out = dense_array(len(wanted), len(wanted_cols), dtype)
        if not out.size:
            return out.view(dtype.numpy)

        def fill(piece: _Piece) -> None:
            tile = self.get_tile(piece.tile)
            for begin, end, target in piece.runs:
                for first, last in runs(begin, end, width):
                    if isinstance(target, slice):
                        place = out[target][first - begin : last - begin]
                        if wanted_cols.step == 1 and place.flags.c_contiguous:
                            tile.fill(first, first_col, place)
                            continue
                    bits = np.zeros((last - first, width), out.dtype)
                    tile.fill(first, first_col, bits)
                    if isinstance(target, slice):
                        place[:] = bits[:, cut]
                    else:
                        out[target[first - begin : last - begin]] = bits[:, cut]

        for _ in in_order(fill, _pieces(wanted, tile_rows), threads):
            pass
        return out.view(dtype.numpy)


def tiles_of(wanted: RowNumbers, tile_rows: int) -> list[int]:
    """The tiles that have a wanted row, ascending."""
    if not len(wanted):
        return []
    if isinstance(wanted, range) and abs(wanted.step) <= tile_rows:
        first, last = sorted((wanted[0], wanted[-1]))
        return list(range(first // tile_rows, last // tile_rows + 1))
    found: list[int] = np.unique(np.asarray(wanted) // tile_rows).tolist()
    return found


class _Piece(NamedTuple):
    """The part of one tile that is wanted.

    Attributes:
        runs: the first and one past the last of consecutive rows of the tile, and their place in the result.
    """

    tile: int
    runs: Iterator[tuple[int, int, slice | np.ndarray]]


def _pieces(wanted: RowNumbers, tile_rows: int) -> Iterator[_Piece]:
    return _pieces_of_range(wanted, tile_rows) if isinstance(wanted, range) else _pieces_of_array(wanted, tile_rows)


def _pieces_of_range(wanted: range, tile_rows: int) -> Iterator[_Piece]:
    """The pieces of a range, without an array of its numbers."""
    # a descending range is an ascending one that fills the result from its end
    ascending = wanted if wanted.step > 0 else wanted[::-1]
    step = ascending.step

    def target_of(first: int, last: int) -> slice:
        """The places in the result of the ascending rows number `first` to `last`."""
        if ascending is wanted:
            return slice(first, last)
        stop = len(wanted) - 1 - last
        return slice(len(wanted) - 1 - first, stop if stop >= 0 else None, -1)

    def runs_of(tile: int, first: int, last: int) -> Iterator[tuple[int, int, slice | np.ndarray]]:
        height = last - first if step == 1 else 1
        for number in range(first, last, height):
            begin = ascending[number] - tile * tile_rows
            yield begin, begin + height, target_of(number, number + height)

    done = 0
    while done < len(ascending):
        tile = ascending[done] // tile_rows
        last = min(len(ascending), done + -(-((tile + 1) * tile_rows - ascending[done]) // step))
        yield _Piece(tile, runs_of(tile, done, last))
        done = last


def _pieces_of_array(wanted: np.ndarray, tile_rows: int) -> Iterator[_Piece]:
    order = None if (np.diff(wanted) >= 0).all() else np.argsort(wanted, kind="stable")
    ascending = wanted if order is None else wanted[order]
    tiles = ascending // tile_rows

    def runs_of(tile: int, first: int, last: int) -> Iterator[tuple[int, int, slice | np.ndarray]]:
        rows = ascending[first:last] - tile * tile_rows
        # runs of consecutive rows are expanded together
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for begin, end in pairwise([*starts.tolist(), rows.size]):
            target = slice(first + begin, first + end)
            yield int(rows[begin]), int(rows[end - 1]) + 1, target if order is None else order[target]

    starts = np.flatnonzero(np.diff(tiles, prepend=-1))
    for first, last in pairwise([*starts.tolist(), wanted.size]):
        tile = int(tiles[first])
        yield _Piece(tile, runs_of(tile, first, last))


def runs(begin: int, end: int, cols: int) -> Iterator[tuple[int, int]]:
    """Rows `begin` to `end` in runs that take little memory: a very sparse tile would be too large when dense."""
    height = 4 * heights.tile_rows(end - begin, cols) or 1
    for first in range(begin, end, height):
        yield first, min(first + height, end)


def dense_array(rows: int, cols: int, dtype: DType) -> np.ndarray:
    """Zeros (rows, cols), as unsigned integers. Raises LimitError if they do not fit in memory."""
    try:
        return np.zeros((rows, cols), dtype.bits_dtype)
    except (MemoryError, ValueError):
        raise LimitError("memory", f"{rows:,} dense rows of {cols:,} columns do not fit in memory") from None
