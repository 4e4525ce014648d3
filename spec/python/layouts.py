"""Section 4 of SPEC.md: the arrays of a tile, what they must be, and the dense bytes that they stand for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from dtypes import DType
from faults import require

LAYOUTS = {  # the arrays, in each form
    "dense": [{"values"}],
    "bitmask": [{"mask", "slice_offsets", "values"}],
    "permuted": [
        {"columns", "row_counts", "row_permutation", "slice_offsets", "values"},
        {"gaps", "row_counts", "row_permutation", "slice_offsets", "values"},
    ],
}
Arrays = dict[str, np.ndarray]  # the arrays of a tile, by name
Stored = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, column and bits of each value of a sparse layout
HEIGHT = 16  # rows of a slice


class Tile(NamedTuple):
    arrays: Arrays
    shape: tuple[int, int]  # rows and columns
    stored: Stored | None  # None in layout `dense`


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def array_width(array: str, dtype: DType, c: int) -> int:
    """Bytes of one element of an array, for a matrix of c columns."""
    wide = {"row_counts": 4, "slice_offsets": 4, "row_permutation": 2}
    return {**wide, "columns": 2 if c <= 65536 else 4, "values": dtype.width}.get(array, 1)


def check_sizes(layout: str, dtype: DType, r: int, c: int, sizes: dict[str, int]) -> None:
    """The bytes of each array of a tile, as far as they follow from each other."""
    w = dtype.width
    n = min(sizes["values"] // w, r * c)
    slices = ceil_div(r, HEIGHT)
    slots = min(sizes["values"] // (HEIGHT * w), slices * c)
    where = "gaps" if "gaps" in sizes else "columns"
    expected = {
        "dense": {"values": ceil_div(r * c * dtype.bits, 8)},
        "bitmask": {"mask": c * ceil_div(r, 8), "slice_offsets": 4 * (slices + 1), "values": n * w},
        "permuted": {
            where: HEIGHT * slots * array_width(where, dtype, c),
            "row_counts": 4 * r,
            "row_permutation": 2 * r,
            "slice_offsets": 4 * (slices + 1),
            "values": HEIGHT * slots * w,
        },
    }
    for array, size in expected[layout].items():
        require(sizes[array] == size, "array-size", f"`{array}` of {sizes[array]} bytes, not {size}")
    if "negative_zeros" in sizes:
        most = ceil_div(r * c, 8)  # 4.4 has the rest
        require(sizes["negative_zeros"] <= most, "array-size", f"`negative_zeros` of {sizes['negative_zeros']} bytes")


def check_tile(layout: str, dtype: DType, arrays: Arrays, shape: tuple[int, int]) -> Tile:
    if layout == "dense":
        check_dense(dtype, arrays["values"], shape[0] * shape[1])
        return Tile(arrays, shape, None)
    stored = (check_bitmask if layout == "bitmask" else check_permuted)(arrays, *shape)
    values = stored[2]
    zeros = (values == 0) | (values == (dtype.negative_zero or 0))
    require(not zeros.any(), "stored-zero", "stored value that is zero")
    if "negative_zeros" in arrays:
        check_negative_zeros(arrays["negative_zeros"], shape[0] * shape[1] - len(values))
    return Tile(arrays, shape, stored)


def dense_bytes(dtype: DType, tile: Tile) -> bytes:
    """All elements of a tile in row-major order."""
    if tile.stored is None:
        return tile.arrays["values"].tobytes()
    rows, columns, values = tile.stored
    matrix = np.zeros(tile.shape, values.dtype)
    matrix[rows, columns] = values
    if "negative_zeros" in tile.arrays:  # 4.4
        pruned = matrix == 0
        signs = np.unpackbits(tile.arrays["negative_zeros"], count=int(pruned.sum()), bitorder="little")
        matrix[pruned] = signs.astype(matrix.dtype) * matrix.dtype.type(dtype.negative_zero)
    return matrix.tobytes()


# ---------------------------------------------------------------------------------------------------------- 4.1 dense


def check_dense(dtype: DType, values: np.ndarray, elements: int) -> None:
    require(dtype.name != "BOOL" or bool((values <= 1).all()), "bool-invalid", "BOOL element other than 0 and 1")
    used = elements * dtype.bits % 8  # bits of the last byte, if not all
    require(used == 0 or values[-1] >> used == 0, "values-padding", "bits behind the last element not zero")


# -------------------------------------------------------------------------------------------------------- 4.2 bitmask


def check_bitmask(arrays: Arrays, r: int, c: int) -> Stored:
    mask = read_mask(arrays["mask"], r, c)
    expected = offsets_of_slices(mask)
    require(np.array_equal(arrays["slice_offsets"], expected), "slice-offsets", "slice offsets other than `mask` gives")
    require(len(arrays["values"]) == expected[-1], "slice-offsets", "slice offsets other than `values` has")
    rows, columns = positions_of_values(mask)
    return rows, columns, arrays["values"]


def read_mask(array: np.ndarray, r: int, c: int) -> np.ndarray:
    """Which positions are not pruned: (r, c)."""
    mask = np.zeros((r, c), bool)
    for first in range(0, r, HEIGHT):
        height, at = min(HEIGHT, r - first), c * first // 8
        integers = np.frombuffer(array, "<u2" if height > 8 else "u1", c, at).astype(int)
        require(int(integers.max()) < 1 << height, "mask-padding", f"mask bit of a row beyond {r - 1}")
        mask[first : first + height] = integers >> np.arange(height)[:, None] & 1
    return mask


def write_mask(mask: np.ndarray) -> bytes:
    """The array that `read_mask` reads."""
    slices = [mask[first : first + HEIGHT] for first in range(0, len(mask), HEIGHT)]
    integers = [(rows.astype(int) << np.arange(len(rows))[:, None]).sum(axis=0) for rows in slices]
    types = ["<u2" if len(rows) > 8 else "u1" for rows in slices]
    return b"".join(of_slice.astype(type_).tobytes() for of_slice, type_ in zip(integers, types, strict=True))


def offsets_of_slices(mask: np.ndarray) -> np.ndarray:
    """The number of values before each slice."""
    counts = np.add.reduceat(mask.sum(axis=1), np.arange(0, len(mask), HEIGHT))
    return np.concatenate([[0], np.cumsum(counts)])


def positions_of_values(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of each value: slice by slice, column by column, by ascending row."""
    rows, columns = np.nonzero(mask)
    order = np.lexsort((rows, columns, rows // HEIGHT))  # the last key counts most
    return rows[order], columns[order]


# ------------------------------------------------------------------------------------------------------- 4.3 permuted


def check_permuted(arrays: Arrays, r: int, c: int) -> Stored:
    permutation, counts = arrays["row_permutation"].astype(np.int64), arrays["row_counts"].astype(np.int64)
    require(np.array_equal(np.sort(permutation), np.arange(r)), "row-permutation", "no permutation of the rows")
    fall = -np.diff(counts)
    require(bool((fall >= 0).all()) and counts[0] <= c, "row-counts", "counts ascending, or over the columns")
    stable = (fall > 0) | (np.diff(permutation) > 0)
    require(bool(stable.all()), "row-permutation", "rows of equal count out of order")
    slots = counts[::HEIGHT]  # of each slice
    first = np.concatenate([[0], np.cumsum(slots)])
    require(np.array_equal(arrays["slice_offsets"], first), "slice-offsets", "slice offsets other than the counts give")
    require(len(arrays["values"]) == HEIGHT * first[-1], "slice-offsets", "slice offsets other than `values` has")
    where, values = arrays["gaps" if "gaps" in arrays else "columns"], arrays["values"].reshape(-1, HEIGHT)
    where = where.reshape(-1, HEIGHT).astype(np.int64)
    k = np.arange(first[-1]) - np.repeat(first[:-1], slots)  # of each slot in its slice
    position = np.repeat(np.arange(len(slots)) * HEIGHT, slots)[:, None] + np.arange(HEIGHT)  # of each slot and lane
    last = np.pad(counts, (0, -r % HEIGHT))[position] - 1  # slot of the row
    taken = k[:, None] <= last
    require(not (where[~taken].any() or values[~taken].any()), "slot-padding", "padding lane not zero")
    columns = columns_of_gaps(where, first) if "gaps" in arrays else where
    require(bool((columns < c).all()), "column-range", f"column not below {c}")
    follows = (k[1:] > 0)[:, None] & taken[1:]
    require(bool((np.diff(columns, axis=0)[follows] > 0).all()), "column-order", "columns of a row not ascending")
    if "gaps" in arrays:
        fillers = taken & (values == 0)
        good = (where == 255) & (k[:, None] < last)
        require(bool(good[fillers].all()), "stored-zero", "value of bits 0 where no filler can be")
        taken &= ~fillers
    return permutation[position[taken]], columns[taken], values[taken]


def columns_of_gaps(gaps: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The columns of all slots, of slices that begin at the slots `first`: of each lane the sum of the gaps so far."""
    sums = np.concatenate([np.zeros((1, HEIGHT), np.int64), np.cumsum(gaps, axis=0)])
    return sums[1:] - np.repeat(sums[first[:-1]], np.diff(first), axis=0)


# ------------------------------------------------------------------------------------------------- 4.4 negative_zeros


def check_negative_zeros(signs: np.ndarray, pruned: int) -> None:
    require(len(signs) == ceil_div(pruned, 8), "array-size", f"`negative_zeros` of {len(signs)} bytes")
    bits = np.unpackbits(signs, bitorder="little")
    require(not bits[pruned:].any(), "negative-zeros-padding", f"bit beyond pruned position {pruned - 1}")
