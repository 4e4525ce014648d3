"""A product on its way to a kernel: activations laid out, rows cut into equal work, threads started.

`multiply` chooses by layout and by the number of tokens. What kernels refuse, activations with Inf or NaN, goes to the
slow kernels that skip pruned positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparsefmt.kernels import activations, bitmask_and_dense, expand, permuted
from sparsefmt.kernels.operand import VALUES, Operand
from sparsefmt.kernels.scratch import scratch
from sparsefmt.kernels.simd import BF16, F16, F32, F64, WIDTH, summed_kind
from sparsefmt.kernels.widening import widened_values
from sparsefmt.layouts.permuted import MAX_U16_COLS
from sparsefmt.threads import num_threads, share

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)

WORTH_A_THREAD = 1 << 19
"""Multiply-adds for one token for each thread below which handing work over, some 30 microseconds, costs more than it
saves (tools/bench/overhead.py)."""

TOKENS_LIKE_ONE = 10
"""Further tokens that cost as much as the first, for which the weights are loaded and spread."""

UNITS_PER_THREAD = 3
"""Units of work for each thread, so that one that was interrupted does not hold up the rest for long."""

MAX_TOKENS = 128
"""Tokens that `bitmask` and `dense` multiply at once: their sums and a block of activations share the L2 cache."""

MAX_PACKED_TOKENS = 1024
"""Tokens that `permuted` packs at once."""

BLOCK_BYTES = 1 << 19
"""Activations that stay in the L2 cache while all rows pass by."""

_KINDS = {"F32": F32, "BF16": BF16, "F16": F16, "F64": F64}
"""Element types that kernels widen in registers. Others are widened in memory, tile by tile, which is slower."""

Run = Callable[[np.ndarray, np.ndarray, int, int], Any]
"""A kernel with its activations and results: takes table, pieces, lo, hi."""

Do = Callable[[Run, int], bool]
"""Runs a kernel, which has that many tokens, over all rows. False if the kernel refused."""


def multiply(x: np.ndarray, w: Operand, y: np.ndarray, threads: int | None) -> None:
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


def _run(w: Operand, run: Run, tokens: int, threads: int | None) -> bool:
    total, work = w.work(1)
    useful = total * (TOKENS_LIKE_ONE + tokens) // (TOKENS_LIKE_ONE + 1) // WORTH_A_THREAD
    if useful > 1:
        useful = min(useful, num_threads(threads))
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
    """x as kernels take it: C-contiguous, aligned, of a type that is not read-only, which numba takes for another."""
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
        packed = scratch("activations", blocks * lanes * count * w.cols, y.dtype)
        pack = activations.in_tokens(summed, lanes, count, across)
        if not pack(address, pitch, first, tokens, w.cols, packed):
            _permuted_of_any_x(x[first : first + tokens], w, y[first : first + tokens], kind, do)
            continue
        sums = scratch("sums", blocks * lanes * count * w.rows, y.dtype)
        kernel = permuted.of_many(kind, wide, lanes, count)

        def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
            return kernel(table, pieces, lo, hi, packed, w.cols, w.rows, blocks, sums)  # noqa: B023

        do(run, tokens)
        activations.from_tokens(summed, lanes, count, y_across)(sums, y_flat, y_pitch, first, tokens, w.rows)


def _token_blocks(tokens: int, kind: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(first, tokens, shape of their blocks): the widest that are filled by more than half, then narrower ones."""
    first, shapes = 0, permuted.token_shapes(kind)
    for lanes, count in shapes:
        width = lanes * count
        while tokens - first > width // 2 or (first < tokens and (lanes, count) == shapes[-1]):
            left = tokens - first
            taken = left if left % width > width // 2 or (lanes, count) == shapes[-1] else left // width * width
            taken = min(taken, MAX_PACKED_TOKENS)
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
    _multiply_bitmask_or_dense(True, x, w, y, kind, do)


def _multiply_dense(x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    _multiply_bitmask_or_dense(False, x, w, y, kind, do)


def _multiply_bitmask_or_dense(masked: bool, x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    result = y if y.flags.c_contiguous else scratch("result", y.size, y.dtype).reshape(y.shape)
    tables = expand.tables(kind)
    for first in range(0, x.shape[0], MAX_TOKENS):
        some_x, some_y = x[first : first + MAX_TOKENS], result[first : first + MAX_TOKENS]
        tokens = some_x.shape[0]
        few = tokens <= bitmask_and_dense.FEW and (expand.in_registers(kind) or not masked)
        run = (_run_of_few if few else _run_of_many)(masked, some_x, w, some_y, kind, tables)
        if run is None or not do(run, tokens):
            _bitmask_of_any_x(some_x, w, some_y, kind, do)
    if result is not y:
        y[...] = result


def _run_of_few(masked: bool, x: np.ndarray, w: Operand, y: np.ndarray, kind: int, tables: int) -> Run:
    tokens = 1 << (x.shape[0] - 1).bit_length()
    padded = -(-w.cols // bitmask_and_dense.WORD) * bitmask_and_dense.WORD
    if tokens == 1 and padded == w.cols:
        x = _contiguous(x)
    else:
        wider = np.zeros((tokens, padded + bitmask_and_dense.PADDING), x.dtype)
        wider[: x.shape[0], : w.cols] = x
        x = wider
    kernel = bitmask_and_dense.of_few(masked, kind, tokens)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        return kernel(table, pieces, lo, hi, x, w.cols, tables, np.empty(2 * bitmask_and_dense.WORD, y.dtype), y)

    return run


def _run_of_many(masked: bool, x: np.ndarray, w: Operand, y: np.ndarray, kind: int, tables: int) -> Run | None:
    """None if pruned positions are to be skipped and x is not finite."""
    tokens, group = x.shape[0], bitmask_and_dense.TOKENS
    summed = summed_kind(kind)
    padded_tokens = -(-tokens // group) * group
    padded_cols = -(-w.cols // bitmask_and_dense.WORD) * bitmask_and_dense.WORD
    fitting = BLOCK_BYTES // (padded_tokens * WIDTH[summed]) // bitmask_and_dense.WORD * bitmask_and_dense.WORD
    block = min(max(fitting, bitmask_and_dense.WORD), padded_cols)
    packed = scratch("activations", padded_tokens * (-(-padded_cols // block) * block), y.dtype)
    finite = activations.in_columns(summed, group)(_contiguous(x).reshape(-1), tokens, w.cols, block, packed)
    if masked and not finite:
        return None
    kernel = bitmask_and_dense.of_many(masked, kind)
    scratch_size = bitmask_and_dense.scratch_bytes(kind, tokens, block) // 8 + 1

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        kernel(table, pieces, lo, hi, packed, w.cols, block, tables, scratch("weights", scratch_size, DOUBLE), y)

    return run


def _bitmask_of_any_x(x: np.ndarray, w: Operand, y: np.ndarray, kind: int, do: Do) -> None:
    kernel, x = bitmask_and_dense.of_any_x(kind), _contiguous(x)

    def run(table: np.ndarray, pieces: np.ndarray, lo: int, hi: int) -> Any:
        kernel(table, pieces, lo, hi, x, w.cols, np.empty(17, y.dtype), y)

    do(run, x.shape[0])


_MULTIPLY: dict[str, Callable[[np.ndarray, Operand, np.ndarray, int, Do], None]] = {
    "dense": _multiply_dense,
    "bitmask": _multiply_bitmask,
    "permuted": _multiply_permuted,
}
