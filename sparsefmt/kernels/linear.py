"""`linear`: checks the arguments, lays out activations, and sends the rows, cut into equal work, to a layout's kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from sparsefmt.dtypes import DType
from sparsefmt.kernels import activations, expand, partial_sums, permuted
from sparsefmt.kernels.operand import VALUES, Operand
from sparsefmt.kernels.simd import BF16, F16, F32, F64, WIDTH, summed_kind
from sparsefmt.kernels.widening import expect_product, widened_values
from sparsefmt.layouts.memory import empty
from sparsefmt.layouts.permuted import MAX_U16_COLS
from sparsefmt.threads import num_threads, share

WORTH_A_THREAD = 1 << 19
"""Multiply-adds for each thread below which handing work over, some 30 microseconds, costs more than it saves."""

UNITS_PER_THREAD = 3
"""Units of work for each thread, so that one that was interrupted does not hold up the rest for long."""

MAX_TOKENS = 128
"""Tokens that `bitmask` and `dense` multiply at once: their sums and a block of activations share the L2 cache."""

BLOCK_BYTES = 1 << 19
"""Activations that stay in the L2 cache while all rows pass by."""

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_KINDS = {"F32": F32, "BF16": BF16, "F16": F16, "F64": F64}
"""Element types that kernels widen in registers. Others are widened in memory, tile by tile, which is slower."""

Run = Callable[[np.ndarray, np.ndarray, int, int], Any]
"""A kernel with its activations and results: takes table, pieces, lo, hi."""


def linear(
    x: Any, w: Operand, bias: Any = None, out: np.ndarray | None = None, threads: int | None = None
) -> np.ndarray:
    """The product behind `sparsefmt.linear`, which documents it."""
    x = np.asarray(x)
    if x.ndim < 1 or x.shape[-1] != w.cols:
        raise ValueError(f"x has shape {x.shape}; its last dimension must be the {w.cols:,} columns of the weights")
    accumulator, result_dtype = product_dtypes(w.dtype, x.dtype)
    shape = (*x.shape[:-1], w.rows)
    if bias is not None:
        bias = np.asarray(bias)
        if bias.shape != (w.rows,):
            raise ValueError(f"bias has shape {bias.shape}; the weights have {w.rows:,} rows")
    if out is not None:
        _check_out(out, x, shape, result_dtype)
    count = num_threads(threads)

    if x.ndim != 2:
        x = x.reshape(_product(shape[:-1]), w.cols)
    direct = out is not None and result_dtype == accumulator
    y = out.reshape(x.shape[0], w.rows) if direct and out is not None else np.empty((x.shape[0], w.rows), accumulator)
    multiply(x, w, y, count)
    if bias is not None:
        y += bias.astype(accumulator, copy=False)
    if direct and out is not None:
        return out
    result = y.reshape(shape)
    if result_dtype != accumulator:
        result = result.astype(result_dtype)
    if out is None:
        return result
    out[...] = result
    return out


def matmul(w: Operand, x: np.ndarray) -> np.ndarray:
    """w @ x for x (cols, n): (rows, n), each column with the bits that it would have alone."""
    accumulator, result_dtype = product_dtypes(w.dtype, x.dtype)
    y = np.empty((w.rows, x.shape[1]), accumulator)
    multiply(x.T, w, y.T, num_threads())
    return y.astype(result_dtype, copy=False)


@lru_cache(maxsize=None)
def product_dtypes(weights: DType, x: np.dtype) -> tuple[np.dtype, np.dtype]:
    """dtypes of the sums and of the result.

    Sums: float64 if either side is float64 or an integer of 32 bits or more, else float32. Result: the same; or the
    dtype of x, if that is float16 or bfloat16 and the weights are neither a wider float nor the other of the two.
    """
    expect_product(weights)
    if x.kind == "c" or (x.kind not in "biuf" and x.name not in _extended_floats()):
        raise ValueError(f"x has dtype {x}; it must be real numbers")
    wide = weights.name in ("F64", "I32", "U32", "I64", "U64")
    wide |= x.kind in "iuf" and x.itemsize * 8 > 16 and x.newbyteorder("=") != SINGLE
    if not wide and x in _HALVES and weights.name != "F32" and weights.numpy not in set(_HALVES) - {x}:
        return SINGLE, x
    return (DOUBLE, DOUBLE) if wide else (SINGLE, SINGLE)


def _extended_floats() -> tuple[str, ...]:
    return ("bfloat16", *(name for name in dir(ml_dtypes) if name.startswith("float")))


def _product(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def _check_out(out: np.ndarray, x: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a numpy array {dtype} {shape}, not {got}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be C-contiguous and writable")
    if np.may_share_memory(out, x):
        raise ValueError("out must not share memory with x")


def multiply(x: np.ndarray, w: Operand, y: np.ndarray, threads: int) -> None:
    """Fill y (tokens, rows), of the accumulator's dtype, with x (tokens, cols) times the rows of w.

    y or its transpose is C-contiguous; x is anything.
    """
    tokens = x.shape[0]
    if not tokens or not w.tiles:
        y[...] = 0
        return
    if x.dtype != y.dtype:
        x = x.astype(y.dtype)
    summed = F32 if y.dtype == SINGLE else F64
    kind = _KINDS.get(w.dtype.name)
    widens = kind is None or summed_kind(kind) != summed

    def do(run: Run, tokens: int) -> bool:
        """Run a kernel over all rows; False if it refused."""
        return _run(w, _widening(run, w, y.dtype) if widens else run, tokens, threads)

    _MULTIPLY[w.layout](x, w, y, summed if kind is None or widens else kind, do)


Do = Callable[[Run, int], bool]


def _run(w: Operand, run: Run, tokens: int, threads: int) -> bool:
    total, work = w.work(1)
    useful = min(threads, total * tokens // WORTH_A_THREAD) if threads > 1 else 1
    if useful <= 1:
        return run(w.table, work.pieces, 0, len(work.pieces)) is not False
    _, work = w.work(useful * UNITS_PER_THREAD)
    units = work.units
    refused = []

    def unit(number: int) -> None:
        if run(w.table, work.pieces, units[number], units[number + 1]) is False:
            refused.append(number)

    share(unit, len(units) - 1, useful)
    return not refused


def _widening(run: Run, w: Operand, accumulator: np.dtype) -> Run:
    """`run` for element types that kernels do not know: one tile after the other, widened in memory."""

    def run_tiles(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        for tile, begin, end in pieces[lo:hi].tolist():
            values = widened_values(w.tiles[tile]["values"], w.dtype, w.height(tile) * w.cols, accumulator)
            line = table[tile : tile + 1].copy()
            line[0, VALUES] = values.ctypes.data
            if run(line, np.array([[0, begin, end]], np.int64), 0, 1) is False:
                return False
        return True

    return run_tiles


def _contiguous(x: np.ndarray) -> np.ndarray:
    """x as kernels take it: C-contiguous, aligned, of a type that is not read-only, which jitted code takes for another."""
    if x.flags.c_contiguous and x.flags.writeable and x.flags.aligned:
        return x
    return np.array(x, order="C")


def _multiply_permuted(x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    wide = w.cols > MAX_U16_COLS
    if x.shape[0] == 1:
        single, result = _contiguous(x), y.reshape(1, w.rows)
        kernel = permuted.of_one(kind, wide)
        if not do(lambda table, pieces, lo, hi: kernel(table, pieces, lo, hi, single, result), 1):
            _permuted_of_any_x(x, w, y, kind, do)
        return
    summed = summed_kind(kind)
    across = not x.flags.c_contiguous and x.T.flags.c_contiguous
    if not (x.flags.aligned and (across or x.flags.c_contiguous)):
        x = np.array(x, order="C")
    pitch = x.shape[0] if across else w.cols
    y_across = not y.flags.c_contiguous
    y_pitch, y_flat = (x.shape[0], y.T.reshape(-1)) if y_across else (w.rows, y.reshape(-1))
    address = x.ctypes.data
    for first, tokens, (lanes, count) in _token_blocks(x.shape[0], kind):
        blocks = -(-tokens // (lanes * count))
        packed = empty(blocks * lanes * count * w.cols, y.dtype)
        pack = activations.in_tokens(summed, lanes, count, across)
        if not pack(address, pitch, first, tokens, w.cols, packed):
            _permuted_of_any_x(x[first : first + tokens], w, y[first : first + tokens], kind, do)
            continue
        sums = empty(blocks * lanes * count * w.rows, y.dtype)
        kernel = permuted.of_many(kind, wide, lanes, count)

        def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
            return kernel(table, pieces, lo, hi, packed, w.cols, w.rows, blocks, sums)  # noqa: B023

        do(run, tokens)
        activations.from_tokens(summed, lanes, count, y_across)(sums, y_flat, y_pitch, first, tokens, w.rows)


def _token_blocks(tokens: int, kind: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(first, tokens, shape of their blocks): the widest that are filled by more than half, then narrower ones."""
    first, shapes = 0, permuted.token_shapes(kind)
    for lanes, count in shapes:
        width, left = lanes * count, tokens - first
        taken = left // width * width
        if left - taken > width // 2 or (lanes, count) == shapes[-1]:
            taken = left
        if taken:
            yield first, taken, (lanes, count)
            first += taken


def _permuted_of_any_x(x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    kernel = permuted.of_any_x(kind, w.cols > MAX_U16_COLS)
    x, result = _contiguous(x), np.empty(y.shape, y.dtype)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        kernel(table, pieces, lo, hi, x, np.empty(1, y.dtype), result)

    do(run, x.shape[0])
    y[...] = result


def _multiply_bitmask(x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    _multiply_partial_sums(True, x, w, y, kind, do)


def _multiply_dense(x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    _multiply_partial_sums(False, x, w, y, kind, do)


def _multiply_partial_sums(masked: bool, x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    result = y if y.flags.c_contiguous else np.empty(y.shape, y.dtype)
    tables = expand.tables(kind)
    for first in range(0, x.shape[0], MAX_TOKENS):
        some_x, some_y = x[first : first + MAX_TOKENS], result[first : first + MAX_TOKENS]
        tokens = some_x.shape[0]
        if tokens <= partial_sums.FEW and (expand.in_registers(kind) or not masked):
            run = _run_of_few(masked, some_x, w, some_y, kind, tables)
        else:
            run = _run_of_many(masked, some_x, w, some_y, kind, tables)
        if run is None or not do(run, tokens):
            _bitmask_of_any_x(some_x, w, some_y, kind, do)
    if result is not y:
        y[...] = result


def _run_of_few(masked: bool, x: np.ndarray, w: Operand, y: np.ndarray, kind: int, tables: int) -> Run:
    tokens = 1 << (x.shape[0] - 1).bit_length()
    padded = -(-w.cols // partial_sums.WORD) * partial_sums.WORD
    if tokens == 1 and padded == w.cols:
        x = _contiguous(x)
    else:
        wider = np.zeros((tokens, padded + partial_sums.PADDING), x.dtype)
        wider[: x.shape[0], : w.cols] = x
        x = wider
    kernel = partial_sums.of_few(masked, kind, tokens)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        return kernel(table, pieces, lo, hi, x, w.cols, tables, np.empty(2 * partial_sums.WORD, y.dtype), y)

    return run


def _run_of_many(masked: bool, x: np.ndarray, w: Operand, y: np.ndarray, kind: int, tables: int) -> Run | None:
    """None if pruned positions are to be skipped and x is not finite."""
    tokens, group = x.shape[0], partial_sums.TOKENS
    summed = summed_kind(kind)
    padded_tokens = -(-tokens // group) * group
    padded_cols = -(-w.cols // partial_sums.WORD) * partial_sums.WORD
    fitting = BLOCK_BYTES // (padded_tokens * WIDTH[summed]) // partial_sums.WORD * partial_sums.WORD
    block = min(max(fitting, partial_sums.WORD), padded_cols)
    packed = empty(padded_tokens * (-(-padded_cols // block) * block), y.dtype)
    finite = activations.in_columns(summed, group)(_contiguous(x).reshape(-1), tokens, w.cols, block, packed)
    if masked and not finite:
        return None
    kernel = partial_sums.of_many(masked, kind)
    scratch_size = partial_sums.scratch_bytes(kind, tokens, block) // 8 + 1

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        kernel(table, pieces, lo, hi, packed, w.cols, block, tables, empty(scratch_size, DOUBLE), y)

    return run


def _bitmask_of_any_x(x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    kernel, x = partial_sums.of_any_x(kind), _contiguous(x)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        kernel(table, pieces, lo, hi, x, w.cols, np.empty(17, y.dtype), y)

    do(run, x.shape[0])


_MULTIPLY: dict[str, Callable[[np.ndarray, Operand, np.ndarray, int, Do], None]] = {
    "dense": _multiply_dense,
    "bitmask": _multiply_bitmask,
    "permuted": _multiply_permuted,
}
