"""Slow, obvious references: what the layouts hold and what the products are, straight from SPEC.md, in plain numpy.

Nothing here shares code with the library.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import struct

import ml_dtypes
import numpy as np

NEGATIVE_ZERO = {
    np.dtype(np.float64): 1 << 63,
    np.dtype(np.float32): 1 << 31,
    np.dtype(np.float16): 1 << 15,
    np.dtype(ml_dtypes.bfloat16): 1 << 15,
    np.dtype(ml_dtypes.float8_e4m3fn): 1 << 7,
    np.dtype(ml_dtypes.float8_e5m2): 1 << 7,
}

SLICE_ROWS = 16


def bits_of(array: np.ndarray) -> np.ndarray:
    """Matrix view of `array` as unsigned integers."""
    matrix = array.reshape(array.shape[0], -1) if array.ndim else array.reshape(1, 1)
    return np.ascontiguousarray(matrix).view(f"u{array.dtype.itemsize}")


def stored(array: np.ndarray) -> np.ndarray:
    """Boolean matrix: which positions a sparse layout keeps."""
    bits = bits_of(array)
    return (bits != 0) & (bits != NEGATIVE_ZERO.get(array.dtype, 0))


def bitmask_arrays(array: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of SPEC.md 4.2 and 4.4 for one tile."""
    keep, bits = stored(array), bits_of(array)
    rows, cols = keep.shape
    mask, values, offsets = b"", [], [0]
    for first in range(0, rows, SLICE_ROWS):
        of_slice = range(first, min(first + SLICE_ROWS, rows))
        for col in range(cols):
            integer = sum(1 << row - first for row in of_slice if keep[row, col])
            mask += integer.to_bytes(1 if len(of_slice) <= 8 else 2, "little")
            values += [bits[row, col] for row in of_slice if keep[row, col]]
        offsets.append(len(values))
    arrays = {
        "mask": np.frombuffer(mask, np.uint8),
        "slice_offsets": np.array(offsets, np.uint32),
        "values": np.array(values, bits.dtype),
    }
    return arrays | negative_zeros_array(array)


def entries_of(keep: np.ndarray, bits: np.ndarray, gaps: bool) -> list[tuple[int, int]]:
    """Where each entry of a row stands, by its column or by its gap, and its value."""
    entries, reached = [], 0
    for col in np.nonzero(keep)[0].tolist():
        if gaps:
            while col - reached > 255:
                entries.append((255, 0))
                reached += 255
        entries.append((col - reached if gaps else col, int(bits[col])))
        reached = col
    return entries


def permuted_arrays(array: np.ndarray, gaps: bool = False) -> dict[str, np.ndarray]:
    """The arrays of SPEC.md 4.3 and 4.4 for one tile, in the form with columns or with gaps."""
    keep, bits = stored(array), bits_of(array)
    rows, cols = keep.shape
    entries = [entries_of(keep[row], bits[row], gaps) for row in range(rows)]
    order = sorted(range(rows), key=lambda row: -len(entries[row]))
    values, where, offsets = [], [], [0]
    for first in range(0, rows, SLICE_ROWS):
        lanes = [entries[row] for row in order[first : first + SLICE_ROWS]]
        slots = len(lanes[0])
        for slot in range(slots):
            for lane in range(SLICE_ROWS):
                filled = lane < len(lanes) and slot < len(lanes[lane])
                place, value = lanes[lane][slot] if filled else (0, 0)
                where.append(place)
                values.append(value)
        offsets.append(offsets[-1] + slots)
    columns = np.uint16 if cols <= 65536 else np.uint32
    arrays = {
        "gaps" if gaps else "columns": np.array(where, np.uint8 if gaps else columns),
        "row_counts": np.array([len(entries[row]) for row in order], np.uint32),
        "row_permutation": np.array(order, np.uint16),
        "slice_offsets": np.array(offsets, np.uint32),
        "values": np.array(values, bits.dtype),
    }
    return arrays | negative_zeros_array(array)


def negative_zeros_array(array: np.ndarray) -> dict[str, np.ndarray]:
    """The array of SPEC.md 4.4, if there is one."""
    pruned = bits_of(array)[~stored(array)]
    signs = pruned != 0
    return {"negative_zeros": np.packbits(signs, bitorder="little")} if signs.any() else {}


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 arrays with one rounding: exact product in float64, sum rounded to odd, then to float32."""
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
        addend = np.broadcast_to(c.astype(np.float64), product.shape)
        total = product + addend
        virtual = total - product
        error = (product - (total - virtual)) + (addend - virtual)
        even = total.view(np.int64) & 1 == 0
        adjust = np.isfinite(total) & (error != 0) & even
        # one step toward the exact sum: away from zero if the error has the sign of the total
        away = (error > 0) == (total > 0)
        stepped = (total.view(np.int64) + np.where(away, 1, -1)).view(np.float64)
        return np.where(adjust, stepped, total).astype(np.float32)


_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fma.restype = ctypes.c_double
_libm.fma.argtypes = [ctypes.c_double] * 3
_fma64 = np.frompyfunc(_libm.fma, 3, 1)


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float64 arrays with one rounding."""
    with np.errstate(all="ignore"):
        return np.asarray(_fma64(a, b, c), np.float64)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (fma32 if np.asarray(c).dtype == np.float32 else fma64)(a, b, c)


def product(array: np.ndarray, x: np.ndarray, accumulator: type) -> np.ndarray:
    """W x in the order of additions of SPEC.md, section 6, for one vector x, or for each row of a matrix x.

    Made once for each W and x: it is the same for all layouts that W may be stored in.
    """
    digests = (hashlib.sha256(given.tobytes()).digest() for given in (array, x))
    key = (array.dtype, array.shape, x.dtype, x.shape, accumulator, *digests)
    if key not in _products:
        _products[key] = _product(array, x, accumulator)
    return _products[key].copy()


_products: dict[tuple[object, ...], np.ndarray] = {}


def _product(array: np.ndarray, x: np.ndarray, accumulator: type) -> np.ndarray:
    weights = (array.reshape(array.shape[0], -1)).astype(accumulator)
    activations = x.astype(accumulator)
    rows, cols = weights.shape
    sums = np.zeros((*x.shape[:-1], rows), accumulator)
    for col in range(cols):
        added = fma(weights[:, col], np.broadcast_to(activations[..., col, None], sums.shape), sums)
        sums = np.where(weights[:, col] != 0, added, sums)
    with np.errstate(all="ignore"):
        return sums + accumulator(0)


def rans_symbols(stream: bytes, count: int, tables: list[list[int]], precision: int, contexts: list[int]) -> list[int]:
    """The symbols of a stream, as SPEC.md 5.3.2 has it. `tables`: frequencies; `contexts`: the table of each symbol."""
    lanes = 1 if count < 1024 else 8 if count < 65536 else 32
    states = list(struct.unpack_from(f"<{lanes}I", stream)) if count else []
    words = iter(struct.unpack(f"<{(len(stream) - 4 * len(states)) // 2}H", stream[4 * len(states) :]))
    symbols = []
    for number in range(count):
        frequencies, state = tables[contexts[number]], states[number % lanes]
        slot, symbol, start = state % 2**precision, 0, 0
        while slot >= start + frequencies[symbol]:
            start += frequencies[symbol]
            symbol += 1
        state = frequencies[symbol] * (state >> precision) + slot - start
        states[number % lanes] = state * 2**16 + next(words) if state < 2**16 else state
        symbols.append(symbol)
    assert set(states) <= {2**16}
    assert list(words) == []
    return symbols
