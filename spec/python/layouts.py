"""Section 4 of SPEC.md: the arrays of a tile, what they must be, and the dense bytes that they stand for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from dtypes import DType
from faults import require

LAYOUTS = {
    "dense": {"values"},
    "bitmask": {"mask", "row_offsets", "values"},
    "permuted": {"columns", "row_counts", "row_permutation", "slice_offsets", "values"},
}
Arrays = dict[str, np.ndarray]  # the arrays of a tile, by name
Stored = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, column and bits of each value of a sparse layout


class Tile(NamedTuple):
    arrays: Arrays
    shape: tuple[int, int]  # rows and columns
    stored: Stored | None  # None in layout `dense`


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def array_width(array: str, dtype: DType, c: int) -> int:
    """Bytes of one element of an array, for a matrix of c columns."""
    wide = {"row_offsets": 4, "row_counts": 4, "slice_offsets": 4, "row_permutation": 2}
    return {**wide, "columns": 2 if c <= 65536 else 4, "values": dtype.width}.get(array, 1)


def check_sizes(layout: str, dtype: DType, r: int, c: int, sizes: dict[str, int]) -> None:
    """The bytes of each array of a tile, as far as they follow from each other."""
    w = dtype.width
    n = min(sizes["values"] // w, r * c)
    slots = min(sizes["values"] // (8 * w), ceil_div(r, 8) * c)
    expected = {
        "dense": {"values": ceil_div(r * c * dtype.bits, 8)},
        "bitmask": {"mask": r * 8 * ceil_div(c, 64), "row_offsets": 4 * (r + 1), "values": n * w},
        "permuted": {
            "columns": 8 * slots * array_width("columns", dtype, c),
            "row_counts": 4 * r,
            "row_permutation": 2 * r,
            "slice_offsets": 4 * (ceil_div(r, 8) + 1),
            "values": 8 * slots * w,
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
    mask = mask_bits(arrays["mask"], r, c)
    expected = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    require(np.array_equal(arrays["row_offsets"], expected), "row-offsets", "row offsets other than the mask gives")
    require(len(arrays["values"]) == expected[-1], "row-offsets", "row offsets other than `values` has")
    rows, columns = np.nonzero(mask)
    return rows, columns, arrays["values"]


def mask_bits(mask: np.ndarray, r: int, c: int) -> np.ndarray:
    bits = np.unpackbits(mask.reshape(r, -1), axis=1, bitorder="little").astype(bool)
    require(not bits[:, c:].any(), "mask-padding", f"mask bit beyond column {c - 1}")
    return bits[:, :c]


# ------------------------------------------------------------------------------------------------------- 4.3 permuted


def check_permuted(arrays: Arrays, r: int, c: int) -> Stored:
    permutation, counts = arrays["row_permutation"].astype(np.int64), arrays["row_counts"].astype(np.int64)
    require(np.array_equal(np.sort(permutation), np.arange(r)), "row-permutation", "no permutation of the rows")
    fall = -np.diff(counts)
    require(bool((fall >= 0).all()) and counts[0] <= c, "row-counts", "counts ascending, or over the columns")
    stable = (fall > 0) | (np.diff(permutation) > 0)
    require(bool(stable.all()), "row-permutation", "rows of equal count out of order")
    slots = counts[::8]  # of each slice
    first = np.concatenate([[0], np.cumsum(slots)])
    require(np.array_equal(arrays["slice_offsets"], first), "slice-offsets", "slice offsets other than the counts give")
    require(len(arrays["values"]) == 8 * first[-1], "slice-offsets", "slice offsets other than `values` has")
    columns, values = arrays["columns"].reshape(-1, 8).astype(np.int64), arrays["values"].reshape(-1, 8)
    k = np.arange(first[-1]) - np.repeat(first[:-1], slots)  # of each slot in its slice
    position = np.repeat(np.arange(len(slots)) * 8, slots)[:, None] + np.arange(8)  # of each slot and lane
    stored = k[:, None] < np.pad(counts, (0, -r % 8))[position]
    require(bool((columns < c).all()), "column-range", f"column not below {c}")
    require(not (columns[~stored].any() or values[~stored].any()), "slot-padding", "padding lane not zero")
    follows = (k[1:] > 0)[:, None] & stored[1:]
    require(bool((np.diff(columns, axis=0)[follows] > 0).all()), "column-order", "columns of a row not ascending")
    return permutation[position[stored]], columns[stored], values[stored]


# ------------------------------------------------------------------------------------------------- 4.4 negative_zeros


def check_negative_zeros(signs: np.ndarray, pruned: int) -> None:
    require(len(signs) == ceil_div(pruned, 8), "array-size", f"`negative_zeros` of {len(signs)} bytes")
    bits = np.unpackbits(signs, bitorder="little")
    require(not bits[pruned:].any(), "negative-zeros-padding", f"bit beyond pruned position {pruned - 1}")
