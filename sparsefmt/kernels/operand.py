"""The matrix that a kernel multiplies by: addresses of its arrays, and its slices cut into pieces of equal work."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparsefmt.kernels.simd import VECTOR_BYTES
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.positions.masks import SLICE_ROWS
from sparsefmt.scales import BEYOND, Scales

FIRST_ROW, HEIGHT = 0, 1
"""Where kernels find numbers of a tile in its line of `Operand.table`: its first row, and how many rows it has."""

VALUES = 2
SLICE_OFFSETS = 3
MASK = 4
WHERE, ROW_PERMUTATION, ROW_COUNTS = 4, 5, 6
"""Where they find the addresses of its arrays: `values` of every layout, `slice_offsets` of the sparse ones, then those
that only `bitmask` has, or only `permuted`: WHERE is `columns` or `gaps`."""

SCALES = 7
"""Where they find the address of the scales of the tile's rows for the first group of columns, if there are several.
Those of the next group are as many elements behind them as the matrix has rows."""

ROW_SUMS = 5
"""Where kernels for integers of eight bits find the address of 128 times the sum of each row of the tile, int32: for
each group of columns as they find SCALES. Only of `bitmask`."""

LINE = 64
"""Bytes of a line of the table."""

_ARRAYS = {
    "dense": ("values",),
    "bitmask": ("values", "slice_offsets", "mask"),
    "columns": ("values", "slice_offsets", "columns", "row_permutation", "row_counts"),
    "gaps": ("values", "slice_offsets", "gaps", "row_permutation", "row_counts"),
}
"""By form of the layout, the arrays whose addresses are in the table, in that order, behind FIRST_ROW and HEIGHT."""


class Work(NamedTuple):
    """The rows of an operand, cut up for threads: by slices in every layout.

    Attributes:
        multiply_adds: about how many all rows take for one token.
        pieces: int64 (pieces, 3): tile, first slice of it, one past the last.
        address: of the pieces.
        units: int64, bounds in `pieces`: unit u is pieces[units[u]:units[u + 1]], about as much work as any other.
    """

    multiply_adds: int
    pieces: np.ndarray
    address: int
    units: np.ndarray


class Matrix(NamedTuple):
    """What a plan needs to know of a matrix to name its kernel.

    Attributes:
        layout, form: names.
        dtype: name of the stored type.
        density: share of elements that are stored, to two digits.
        groups: of columns that have scales of their own.
    """

    layout: str
    form: str
    dtype: str
    rows: int
    cols: int
    density: float
    groups: int = 1


class Operand:
    """A matrix in one of the layouts, its arrays checked and read-only. Immutable, but for what it remembers.

    Attributes:
        tiling: how it is cut into tiles.
        tiles: those of the tensor. Kept, so that `table` stays valid.
        table: int64 (tiles, 8). A line for each tile: see FIRST_ROW and VALUES.
        address: of the table.
        whole: all rows as one unit.
        matrix: what plans need to know of it.
        recipes: what `multiply.py` remembers.
        sums_are_exact, infinite_rows: what `scaled.py` remembers, once it was asked.
        scales: of groups of columns, at the addresses in `table`; None without groups.
        grouped: the last one that `with_groups` made, and of what.
        row_sums: at the addresses in `table`; None without.
        with_sums: what `scaled.py` remembers, once it was asked.
    """

    __slots__ = (
        *(
            "_work",
            "address",
            "cols",
            "dtype",
            "grouped",
            "scales",
            "infinite_rows",
            "layout",
            "matrix",
            "recipes",
            "row_sums",
            "rows",
            "sums_are_exact",
            "table",
        ),
        *("tiles", "tiling", "whole", "with_sums"),
    )

    def __init__(self, tiling: Tiling, tiles: tuple[Tile, ...]) -> None:
        self.tiling, self.tiles = tiling, tiles
        # looked at by every product
        self.dtype, self.rows, self.cols, self.layout = tiling.dtype, tiling.rows, tiling.cols, tiling.layout.name
        names = _ARRAYS[tiling.layout.form]
        self.table = np.zeros((len(tiles), LINE // 8), np.int64)
        for number, tile in enumerate(tiles):
            line = number * tiling.tile_rows, self.height(number), *(tile[name].ctypes.data for name in names)
            self.table[number, : len(line)] = line
        self.address = self.table.ctypes.data
        self.recipes: dict[Any, Any] = {}
        self.sums_are_exact: bool | None = None
        self.infinite_rows: np.ndarray | None = None
        self.scales: np.ndarray | None = None
        self.grouped: tuple[Scales, np.dtype, Operand] | None = None
        self.row_sums: np.ndarray | None = None
        self.with_sums: Operand | None = None
        self._work: dict[int, Work] = {}
        self.whole = self.work(1)
        stored = sum(tile["values"].size for tile in tiles)
        density = float(f"{stored / max(self.rows * self.cols, 1):.2g}")
        self.matrix = Matrix(self.layout, tiling.layout.form, self.dtype.name, self.rows, self.cols, density)

    def with_groups(self, scales: Scales, dtype: np.dtype) -> Operand:
        """The same matrix with scales of several groups of columns, whose sums are of `dtype`. The last is kept."""
        kept = self.grouped
        if kept is None or kept[0] is not scales or kept[1] != dtype:
            made = Operand(self.tiling, self.tiles)
            values = scales.values
            if dtype != values.dtype:
                values = np.zeros(scales.values.size + BEYOND, dtype)
                values[: scales.values.size] = scales.values.reshape(-1)
            made.table[:, SCALES] = values.ctypes.data + made.table[:, FIRST_ROW] * dtype.itemsize
            made.matrix = made.matrix._replace(groups=scales.groups)
            # by it, and not here: another thread may ask for other scales while a product runs
            made.scales = values
            self.grouped = kept = scales, dtype, made
        return kept[2]

    def with_row_sums(self, row_sums: np.ndarray) -> Operand:
        """The same matrix, and scales, with 128 times the sums of rows: int32 (groups, rows)."""
        made = Operand(self.tiling, self.tiles)
        values = np.zeros(row_sums.size + BEYOND, np.int32)
        values[: row_sums.size] = row_sums.reshape(-1)
        made.table[...] = self.table
        made.table[:, ROW_SUMS] = values.ctypes.data + made.table[:, FIRST_ROW] * values.itemsize
        made.matrix, made.scales, made.row_sums = self.matrix, self.scales, values
        return made

    def height(self, number: int) -> int:
        """Rows of tile `number`."""
        return self.tiling.height(number)

    def work(self, unit_count: int) -> Work:
        """The rows cut into `unit_count` units at most. Remembered."""
        found = self._work.get(unit_count)
        if found is None:
            ends = [self._work_of_tile(number) for number in range(len(self.tiles))]
            # two slices fill a vector of AVX-512 twice: `panel.py` takes them together
            together = max(VECTOR_BYTES // (2 * SLICE_ROWS), 1) if self.layout != "permuted" else 1
            found = self._work[unit_count] = cut(ends, unit_count, together)
        return found

    def _work_of_tile(self, number: int) -> np.ndarray:
        """Work up to and with each slice of a tile: int64, strictly ascending."""
        if self.layout == "permuted":
            ends = self.tiles[number]["slice_offsets"][1:].astype(np.int64) * SLICE_ROWS
        else:
            ends = np.arange(1, -(-self.height(number) // SLICE_ROWS) + 1, dtype=np.int64) * SLICE_ROWS * self.cols
        if self.layout == "bitmask":
            # expanding costs about the same at every sparsity
            ends //= 2
        return ends + np.arange(1, ends.size + 1)


def cut(ends: list[np.ndarray], unit_count: int, together: int = 1) -> Work:
    """Units of about equal work, `unit_count` at most, given the work up to each slice of each tile.

    So many slices of a tile stay `together`, from its first on.
    """
    total = sum(int(tile_ends[-1]) for tile_ends in ends)
    share = -(-total // unit_count)
    pieces, units, filled = [], [0], 0
    for number, tile_ends in enumerate(ends):
        begin, done = 0, 0
        while begin < tile_ends.size:
            end = int(np.searchsorted(tile_ends, done + share - filled)) + 1
            end = min(-(-end // together) * together, tile_ends.size)
            pieces.append((number, begin, end))
            filled += int(tile_ends[end - 1]) - done
            begin, done = end, int(tile_ends[end - 1])
            if filled >= share:
                units.append(len(pieces))
                filled = 0
    if filled:
        units.append(len(pieces))
    table = np.array(pieces, np.int64).reshape(-1, 3)
    return Work(total, table, table.ctypes.data, np.array(units, np.int64))
