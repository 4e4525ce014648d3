"""`linear`: checks the arguments, cuts the rows into pieces of equal work, and sends them to the layout's kernel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sparsefmt.dtypes import DType, unpack
from sparsefmt.kernels import bitmask, dense, permuted
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.simd import EXPANDS
from sparsefmt.kernels.widening import expect_product, kernel_values
from sparsefmt.layouts.bitmask import mask_words
from sparsefmt.layouts.memory import frozen
from sparsefmt.layouts.permuted import LANES
from sparsefmt.threads import in_order, num_threads

WORTH_A_THREAD = 1 << 19
"""Multiply-adds below which handing work to another thread, some 100 microseconds, costs more than it saves."""

PIECES_PER_THREAD = 3
"""Pieces of work for each thread, so that one that was interrupted does not hold up the rest for long."""

STRIDE = 16
"""Partial sums per row in layouts `dense` and `bitmask`; x is padded with zeros to a multiple of it."""

MANY_TOKENS = 4
"""Tokens from which `permuted` is multiplied with tokens instead of rows in the lanes of a vector, and from which it
pays to expand rows of `bitmask` in cache, once for all tokens."""

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Piece(NamedTuple):
    """Rows (in `permuted`, slices) `begin` to `end` of one tile."""

    tile: int
    begin: int
    end: int


def linear(
    x: Any, w: Operand, bias: Any = None, out: np.ndarray | None = None, threads: int | None = None
) -> np.ndarray:
    """The product behind `sparsefmt.linear`, which documents it."""
    expect_product(w.dtype)
    x = np.asarray(x)
    if x.ndim < 1 or x.shape[-1] != w.cols:
        raise ValueError(f"x has shape {x.shape}; its last dimension must be the {w.cols:,} columns of the weights")
    accumulator = accumulator_dtype(w.dtype, x.dtype)
    result_dtype = output_dtype(w.dtype, x.dtype)
    shape = (*x.shape[:-1], w.rows)
    if bias is not None:
        bias = np.asarray(bias)
        if bias.shape != (w.rows,):
            raise ValueError(f"bias has shape {bias.shape}; the weights have {w.rows:,} rows")
    if out is not None:
        _check_out(out, x, shape, result_dtype)

    tokens = int(np.prod(shape[:-1], dtype=np.int64))
    activations = _activations(x.reshape(tokens, w.cols), accumulator)
    y = np.zeros((tokens, w.rows), accumulator)
    if tokens and w.tiles:
        _run(w, activations, y, num_threads(threads))
    if bias is not None:
        y += bias.astype(accumulator)
    result = y.astype(result_dtype, copy=False).reshape(shape)
    if out is None:
        return result
    out[...] = result
    return out


def accumulator_dtype(weights: DType, x: np.dtype) -> np.dtype:
    """float64 if either side is float64 or an integer of 32 bits or more, else float32."""
    if x.kind == "c" or (x.kind not in "biuf" and x.name not in _extended_floats()):
        raise ValueError(f"x has dtype {x}; it must be real numbers")
    wide = weights.name in ("F64", "I32", "U32", "I64", "U64") or (x.kind in "iuf" and x.itemsize * 8 > 16 and x != F32)
    return F64 if wide else F32


def output_dtype(weights: DType, x: np.dtype) -> np.dtype:
    """The accumulator's dtype; or that of x, if x is float16 or bfloat16 and w neither a wider float nor the other."""
    accumulator = accumulator_dtype(weights, x)
    if accumulator == F32 and x in _HALVES and weights.name != "F32" and weights.numpy not in set(_HALVES) - {x}:
        return x
    return accumulator


def _extended_floats() -> tuple[str, ...]:
    return ("bfloat16", *(name for name in dir(ml_dtypes) if name.startswith("float")))


def _check_out(out: np.ndarray, x: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a numpy array {dtype} {shape}, not {got}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be C-contiguous and writable")
    if np.may_share_memory(out, x):
        raise ValueError("out must not share memory with x")


def _activations(x: np.ndarray, accumulator: np.dtype) -> np.ndarray:
    """x (tokens, cols) in the accumulator's dtype, aligned, contiguous, read-only, padded to STRIDE columns."""
    tokens, cols = x.shape
    padded_cols = -(-cols // STRIDE) * STRIDE
    if padded_cols == cols and x.dtype == accumulator and x.flags.c_contiguous and x.flags.aligned:
        return frozen(x)
    padded = np.zeros((tokens, padded_cols), accumulator)
    padded[:, :cols] = x
    return frozen(padded)


def _run(w: Operand, x: np.ndarray, y: np.ndarray, thread_count: int) -> None:
    """Fill y (tokens, rows), piece by piece."""
    layout = _LAYOUTS[w.layout]
    multiply = layout.multiplier(w, x, y)
    work = [layout.work(w, number) for number in range(len(w.tiles))]
    total = sum(int(ends[-1]) for ends in work) * x.shape[0]
    useful = max(1, min(thread_count, total // WORTH_A_THREAD))
    if useful == 1:
        for number, ends in enumerate(work):
            multiply(Piece(number, 0, ends.size))
        return
    for _ in in_order(multiply, _pieces(work, useful * PIECES_PER_THREAD), useful):
        pass


def _pieces(work: list[np.ndarray], count: int) -> list[Piece]:
    """About `count` pieces of about equal work, given the work up to each row (or slice) of each tile."""
    share = max(1, sum(int(ends[-1]) for ends in work) // count)
    pieces = []
    for number, ends in enumerate(work):
        cuts = np.searchsorted(ends, np.arange(share, int(ends[-1]), share)) + 1
        bounds = np.unique(np.concatenate([[0], cuts, [ends.size]]))
        pieces += [Piece(number, int(begin), int(end)) for begin, end in pairwise(bounds)]
    return pieces


class _Layout(NamedTuple):
    """How to cut and multiply a layout.

    Attributes:
        work: (operand, tile) to the work up to and with each row (or slice) of the tile, ascending, int64.
        multiplier: (operand, x, y) to a function that does one piece.
    """

    work: Callable[[Operand, int], np.ndarray]
    multiplier: Callable[[Operand, np.ndarray, np.ndarray], Callable[[Piece], None]]


def _height(w: Operand, number: int) -> int:
    return min(w.tile_rows, w.rows - number * w.tile_rows)


def _dense_work(w: Operand, number: int) -> np.ndarray:
    return np.arange(1, _height(w, number) + 1, dtype=np.int64) * w.cols


def _dense_multiplier(w: Operand, x: np.ndarray, y: np.ndarray) -> Callable[[Piece], None]:
    def multiply(piece: Piece) -> None:
        start, height = piece.tile * w.tile_rows, _height(w, piece.tile)
        values = w.tiles[piece.tile]["values"]
        if w.dtype.packed:
            values = unpack(values, w.dtype, height * w.cols)
        values = frozen(kernel_values(values, w.dtype, x.dtype))
        target = y[:, start + piece.begin : start + piece.end]
        dense.product(values, w.cols, piece.begin, piece.end, x, target)

    return multiply


def _bitmask_work(w: Operand, number: int) -> np.ndarray:
    return w.tiles[number]["row_offsets"][1:].astype(np.int64) + np.arange(1, _height(w, number) + 1) * (
        w.cols // 8 + 1
    )


def _bitmask_multiplier(w: Operand, x: np.ndarray, y: np.ndarray) -> Callable[[Piece], None]:
    finite = bool(np.isfinite(x).all())

    def multiply(piece: Piece) -> None:
        start, tile = piece.tile * w.tile_rows, w.tiles[piece.tile]
        values = kernel_values(tile["values"], w.dtype, x.dtype)
        in_registers = x.shape[0] < MANY_TOKENS and EXPANDS[values.itemsize * 8]
        arguments = (
            mask_words(tile, _height(w, piece.tile)),
            frozen(tile["row_offsets"]),
            frozen(values),
            piece.begin,
            piece.end,
            x,
            finite,
            y[:, start + piece.begin : start + piece.end],
        )
        if in_registers:
            bitmask.product_in_registers(*arguments, 0)
        else:
            bitmask.product(*arguments)

    return multiply


def _permuted_work(w: Operand, number: int) -> np.ndarray:
    return w.tiles[number]["slice_offsets"][1:].astype(np.int64) * LANES + 1


def _sixteen_tokens_at_a_time(x: np.ndarray) -> np.ndarray:
    """x (tokens, cols) as (ceil(tokens / 16), cols, 16), filled up with zeros."""
    tokens, cols = x.shape
    padded = np.zeros((-(-tokens // 16) * 16, cols), x.dtype)
    padded[:tokens] = x
    return frozen(np.ascontiguousarray(padded.reshape(-1, 16, cols).transpose(0, 2, 1)))


def _permuted_multiplier(w: Operand, x: np.ndarray, y: np.ndarray) -> Callable[[Piece], None]:
    product = permuted.product
    if x.shape[0] >= MANY_TOKENS:
        product = permuted.product_of_many
        x = _sixteen_tokens_at_a_time(x)

    def multiply(piece: Piece) -> None:
        start, tile = piece.tile * w.tile_rows, w.tiles[piece.tile]
        product(
            frozen(kernel_values(tile["values"], w.dtype, x.dtype)),
            frozen(tile["columns"]),
            frozen(tile["row_permutation"]),
            frozen(tile["row_counts"]),
            frozen(tile["slice_offsets"]),
            piece.begin,
            piece.end,
            x,
            y[:, start : start + _height(w, piece.tile)],
        )

    return multiply


_LAYOUTS = {
    "dense": _Layout(_dense_work, _dense_multiplier),
    "bitmask": _Layout(_bitmask_work, _bitmask_multiplier),
    "permuted": _Layout(_permuted_work, _permuted_multiplier),
}
