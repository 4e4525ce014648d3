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


def scaled_linear_oracle(
    q: np.ndarray,
    scales: np.ndarray,
    x: np.ndarray,
    *,
    bias: np.ndarray | None = None,
    activations: str | None = None,
    input_scale: float | None = None,
    result: type | np.dtype | None = None,
) -> np.ndarray:
    """The product of a scaled weight by SPEC.md, section 6: (q times scales) x plus the bias.

    q: (rows, cols) of any real dtype. scales: (), (1,), (1, 1), (rows,), (rows, 1) or (rows, groups). x: (cols,) or
    (tokens, cols). bias: (rows,). activations: None, or "int8" with a static `input_scale`, or with one of each token.
    Returns (rows,) or (tokens, rows) of dtype `result`, which is the type of the sums by default.
    """
    tokens, scale = np.atleast_2d(x), scale_of_groups(scales, len(q))
    assert q.shape[1] % scale.shape[1] == 0
    if activations == "int8":
        assert q.dtype == np.int8
        a = np.float32
        y = np.stack([_times_quantized(q, scale, token, input_scale) for token in tokens])
    else:
        assert activations is None
        assert input_scale is None
        wide = (np.float64, np.int32, np.uint32, np.int64, np.uint64)
        a = np.float64 if q.dtype in wide or x.dtype in wide else np.float32
        y = _times_floats(q.astype(a), scale.astype(a), tokens.astype(a))
    with np.errstate(all="ignore"):
        if bias is not None:
            y = y + bias.astype(a)
        return rounded_to(y, np.dtype(result or a)).reshape(*x.shape[:-1], len(q))


def scale_of_groups(scales: np.ndarray, rows: int) -> np.ndarray:
    """Scales of any of their shapes as a float32 matrix, rows x groups."""
    scales = np.asarray(scales).astype(np.float32)
    if scales.shape in ((), (1,), (1, 1)):
        return np.full((rows, 1), scales.reshape(-1)[0])
    return scales if scales.ndim == 2 else scales.reshape(rows, 1)


def _times_floats(q: np.ndarray, scale: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Everything is of the type of the sums. y: (tokens, rows)."""
    group_cols = q.shape[1] // scale.shape[1]
    t = np.zeros((len(tokens), len(q)), q.dtype)
    for group in range(scale.shape[1]):
        s = np.zeros_like(t)
        for col in range(group * group_cols, (group + 1) * group_cols):
            added = fma(np.broadcast_to(q[:, col], s.shape), np.broadcast_to(tokens[:, col, None], s.shape), s)
            s = np.where(q[:, col] != 0, added, s)
        t = fma(s, np.broadcast_to(scale[:, group], s.shape), t)
    with np.errstate(all="ignore"):
        return t + q.dtype.type(0)


def _times_quantized(q: np.ndarray, scale: np.ndarray, token: np.ndarray, input_scale: float | None) -> np.ndarray:
    """y of one token with activations in eight bits: (rows,) of float32."""
    with np.errstate(all="ignore"):
        x = token.astype(np.float32)
        if not np.isfinite(x).all():
            return np.full(len(q), np.nan, np.float32)
        s = np.max(np.abs(x), initial=np.float32(0)) / np.float32(127)
        if input_scale is not None:
            s = np.float32(input_scale)
        a = np.zeros(len(x), np.int64) if s == 0 else np.clip(np.rint(x / s), -127, 127).astype(np.int64)
        t, group_cols = np.zeros(len(q), np.float32), q.shape[1] // scale.shape[1]
        for group in range(scale.shape[1]):
            columns = slice(group * group_cols, (group + 1) * group_cols)
            total = q[:, columns].astype(np.int64) @ a[columns]
            t = fma32(total.astype(np.float32), scale[:, group], t)
        return t * s + np.float32(0)


def rounded_to(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """y in another float type, rounded once: ml_dtypes rounds float64 to float32 before it rounds to bfloat16."""
    if y.dtype == np.float64 and dtype.itemsize < 4:
        with np.errstate(all="ignore"):
            y32 = y.astype(np.float32)
            exact = np.isnan(y) | np.isinf(y) | (y32 == y)
            inwards = np.where(np.abs(y32.astype(np.float64)) > np.abs(y), np.nextafter(y32, np.float32(0)), y32)
            y = np.where(exact, y32, (inwards.view(np.uint32) | 1).view(np.float32))  # rounded to odd
    with np.errstate(all="ignore"):
        return y.astype(dtype)


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
