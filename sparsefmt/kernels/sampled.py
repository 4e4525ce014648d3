"""Gradients of a product y = x W^T with layout `bitmask`, whose positions are fixed and whose values are trained.

    of the values   at each stored position, the sum over tokens of g[token, row] * x[token, col]
    of x            for each token, g W, as the product with the transposed weights

Both go through the mask once for each block of tokens, and compute at stored positions alone. Tokens lie in the lanes
of vectors. Each column of x and g has its tokens side by side, and is read as a whole.

Sums of the values: tokens go in blocks of 64. Within a block, lane l of 16 adds tokens l, l + 16, l + 32, l + 48 in
one chain of fused multiply-adds; lane l and lane l + 8 are added, then those 4, 2 and 1 apart. Blocks are added in
ascending order. What is missing of a block counts as zeros. Sums of x: as those of every product, in one chain of fused
multiply-adds, in ascending order of rows. So the bits depend neither on threads nor on the machine.

Sums are float32, or float64 for values of float64. Kernels see checked arrays only, release the GIL, and get what
`job.py` says, with their own meanings of its places.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import lowest_bit
from sparsefmt.dtypes import DOUBLE, SINGLE
from sparsefmt.jit import jit
from sparsefmt.kernels import scratch
from sparsefmt.kernels.job import BYTES
from sparsefmt.kernels.kinds import F32, F64, WIDTH, summed_kind
from sparsefmt.kernels.llvm import fused
from sparsefmt.kernels.native import native
from sparsefmt.kernels.operand import VALUES, Operand, Work
from sparsefmt.kernels.raw_memory import load_scalar, load_u16, load_u32, load_u64, store_scalar
from sparsefmt.kernels.recipe import kind_of
from sparsefmt.kernels.simd import fma_entry, load, store, vectors_of
from sparsefmt.kernels.team import nbytes_of, run_on_threads
from sparsefmt.llvm import integer, lanes_of, load_as
from sparsefmt.positions.masks import SLICE_ROWS, in_slices
from sparsefmt.threads import num_threads

LANES = 16
"""Tokens in a vector."""

MOST_VECTORS = 4
"""Vectors of a block of tokens."""

COLUMNS_AT_ONCE = 64
"""Columns of x whose gradients one thread makes at once: with their tokens, they stay in the nearest cache."""

WORTH_A_THREAD = 1 << 17
"""Multiply-adds for each thread below which handing work over costs more than it saves."""

UNITS_PER_THREAD = 4

_MASK, _WHERE, _X, _G, _RESULT, _COLS, _ROWS, _BLOCKS, _SLICES, _PARTS, _VALUES = (8 * number for number in range(11))
"""Addresses of the masks, 16 bits each; of where values stand; of x, of g and of the result; columns, rows up to whole
slices, blocks of tokens, slices, and parts of the columns; the address of the values."""


@intrinsic
def _dot(typingctx, vectors, address):
    """The sum of all lanes of vectors times those at an address: see the head of this file."""

    def codegen(context, builder, signature, args):
        total = None
        for number, vector in enumerate(vectors_of(builder, args[0], vectors)):
            at = builder.add(args[1], integer(vectors.itemsize * vectors.lanes * number))
            other = load_as(builder, at, vectors.llvm, vectors.itemsize)
            total = fused(builder, vector, other, vector.type(None) if total is None else total)
        lanes = vectors.lanes
        while lanes > 1:
            lanes //= 2
            low = builder.shuffle_vector(total, total, lanes_of(list(range(lanes))))
            high = builder.shuffle_vector(total, total, lanes_of(list(range(lanes, 2 * lanes))))
            total = builder.fadd(low, high)
        return builder.extract_element(total, integer(0))

    return vectors.dtype(vectors, types.int64), codegen


@cache
def _of_values(summed: int, vectors: int) -> Callable[..., Any]:
    """Kernel for slices lo to hi: fills their values in the result, of the type of the sums."""
    size, lanes = WIDTH[summed], LANES
    vector_bytes, block_bytes = lanes * size, lanes * size * vectors

    @jit
    def kernel(job, lo, hi, scratch):
        cols, rows, blocks = load_u64(job + _COLS), load_u64(job + _ROWS), load_u64(job + _BLOCKS)
        for slice_ in range(lo, hi):
            first = load_u64(job + _RESULT) + size * load_u32(load_u64(job + _WHERE) + 4 * slice_)
            masks = load_u64(job + _MASK) + 2 * cols * slice_
            for block in range(blocks):
                at, x = first, load_u64(job + _X) + block * cols * block_bytes
                g = load_u64(job + _G) + (block * rows + SLICE_ROWS * slice_) * block_bytes
                for col in range(cols):
                    bits = load_u16(masks + 2 * col)
                    if bits != 0:
                        activations = load(x + col * block_bytes, vector_bytes, summed, lanes, vectors)
                        while bits != 0:
                            total = _dot(activations, g + lowest_bit(bits) * block_bytes)
                            if block != 0:
                                total += load_scalar(at, total)
                            store_scalar(at, total)
                            at += size
                            bits &= bits - 1

    return kernel


@cache
def _of_x(kind: int, vectors: int) -> Callable[..., Any]:
    """Kernel for parts of the columns, of one block of tokens after the other: adds to the result, which is zeros."""
    width, summed, lanes = WIDTH[kind], summed_kind(kind), LANES
    size = WIDTH[summed]
    vector_bytes, block_bytes, at_once = lanes * size, lanes * size * vectors, COLUMNS_AT_ONCE

    @jit
    def kernel(job, lo, hi, scratch):
        cols, rows, slices = load_u64(job + _COLS), load_u64(job + _ROWS), load_u64(job + _SLICES)
        parts = load_u64(job + _PARTS)
        for unit in range(lo, hi):
            block, part = unit // parts, unit % parts
            begin, end = part * at_once, min(cols, part * at_once + at_once)
            result = load_u64(job + _RESULT) + block * cols * block_bytes
            g = load_u64(job + _G) + block * rows * block_bytes
            where = load_u64(job + _WHERE) + 4 * part * slices
            for slice_ in range(slices):
                at = load_u64(job + _VALUES) + width * load_u32(where + 4 * slice_)
                masks = load_u64(job + _MASK) + 2 * cols * slice_
                for col in range(begin, end):
                    bits = load_u16(masks + 2 * col)
                    if bits != 0:
                        to = result + col * block_bytes
                        sums = load(to, vector_bytes, summed, lanes, vectors)
                        while bits != 0:
                            sums = fma_entry(at, kind, g + lowest_bit(bits) * block_bytes, sums)
                            at += width
                            bits &= bits - 1
                        store(to, vector_bytes, sums)
                g += SLICE_ROWS * block_bytes

    return kernel


@jit
def _put_side_by_side(rows, out):
    """out[block, col, token] = rows[block * tokens + token, col], for what there is of rows (tokens, cols)."""
    tokens, width = rows.shape[0], out.shape[2]
    for block in range(out.shape[0]):
        for first in range(0, rows.shape[1], 16):
            for token in range(min(width, tokens - block * width)):
                for col in range(first, min(first + 16, rows.shape[1])):
                    out[block, col, token] = rows[block * width + token, col]


@jit
def _put_in_rows(blocks, out):
    """Undo `_put_side_by_side`, and add 0.0, which makes zeros positive."""
    tokens, width = out.shape[0], blocks.shape[2]
    for block in range(blocks.shape[0]):
        for first in range(0, out.shape[1], 16):
            for token in range(min(width, tokens - block * width)):
                for col in range(first, min(first + 16, out.shape[1])):
                    out[block * width + token, col] = blocks[block, col, token] + blocks.dtype.type(0)


class Sampled:
    """What gradients need of the positions of an operand, made once. Reads its values anew each time.

    Args:
        operand: of one tile in layout `bitmask`, of floats.

    Cost: two bytes for each column of a slice, if masks have to be widened; four for each slice and COLUMNS_AT_ONCE.
    """

    def __init__(self, operand: Operand) -> None:
        (tile,) = operand.tiles
        assert operand.layout == "bitmask"
        self._operand, self._values = operand, int(operand.table[0, VALUES])
        self._mask = np.ascontiguousarray(in_slices(tile["mask"], tile.rows, tile.cols), np.uint16)
        self._offsets = np.ascontiguousarray(tile["slice_offsets"], np.uint32)
        slices, cols = self._mask.shape
        begins = np.arange(0, cols, COLUMNS_AT_ONCE)
        counts = np.add.reduceat(np.bitwise_count(self._mask), begins, axis=1, dtype=np.uint32)
        before = np.cumsum(counts, axis=1, dtype=np.uint32) - counts + self._offsets[:-1, None]
        self._starts = np.ascontiguousarray(before.T)
        self._slices, self._parts = slices, begins.size
        self._sums = DOUBLE if operand.dtype.name == "F64" else SINGLE
        self._kind = kind_of(operand.dtype.name, F64 if self._sums == DOUBLE else F32).values

    def of_values(self, x: np.ndarray, g: np.ndarray, threads: int | None = None) -> np.ndarray:
        """For x (tokens, cols) and g (tokens, rows): the gradient of each value, in the order of `values`."""
        result = np.zeros(int(self._offsets[-1]), self._sums)
        if not result.size or not len(x):
            return result
        vectors, x_blocks, g_blocks = self._blocks(x, g)
        job = self._job(g_blocks, result)
        job[_X // 8], job[_WHERE // 8] = x_blocks.ctypes.data, self._offsets.ctypes.data
        work = result.size * len(x_blocks) * LANES * vectors
        count = _thread_count(work, threads)
        shares = np.linspace(0, result.size, count * UNITS_PER_THREAD + 1)
        bounds = np.unique(np.searchsorted(self._offsets, shares).clip(0, self._slices))
        bounds[-1] = self._slices
        _run(_of_values(self._summed, vectors), job, bounds, count)
        return result

    def of_x(self, g: np.ndarray, threads: int | None = None) -> np.ndarray:
        """For g (tokens, rows): g W, (tokens, cols), with the bits of the product with the transposed weights."""
        result = np.zeros((len(g), self._operand.cols), self._sums)
        if not self._offsets[-1] or not len(g):
            return result
        vectors, _, g_blocks = self._blocks(None, g)
        blocks = np.zeros((len(g_blocks), self._operand.cols, LANES * vectors), self._sums)
        job = self._job(g_blocks, blocks)
        job[_WHERE // 8], job[_PARTS // 8], job[_VALUES // 8] = self._starts.ctypes.data, self._parts, self._values
        count = _thread_count(int(self._offsets[-1]) * len(g_blocks) * LANES * vectors, threads)
        units = len(g_blocks) * self._parts
        bounds = np.unique(np.linspace(0, units, count * UNITS_PER_THREAD + 1).astype(np.int64))
        _run(_of_x(self._kind, vectors), job, bounds, count)
        _put_in_rows(blocks, result)
        return result

    @property
    def _summed(self) -> int:
        return summed_kind(self._kind)

    def _blocks(self, x: np.ndarray | None, g: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """Vectors of a block of tokens, and x and g with the tokens of each column side by side; g in whole slices."""
        vectors = 1 if len(g) <= LANES else MOST_VECTORS
        width = LANES * vectors
        count = -(-len(g) // width)
        x_blocks = np.zeros((count, self._operand.cols if x is not None else 0, width), self._sums)
        g_blocks = np.zeros((count, SLICE_ROWS * self._slices, width), self._sums)
        if x is not None:
            _put_side_by_side(np.array(x, self._sums, order="C", copy=None), x_blocks)
        _put_side_by_side(np.array(g, self._sums, order="C", copy=None), g_blocks)
        return vectors, x_blocks, g_blocks

    def _job(self, g: np.ndarray, result: np.ndarray) -> array[int]:
        job = array("q", bytes(BYTES))
        job[_MASK // 8], job[_G // 8], job[_RESULT // 8] = self._mask.ctypes.data, g.ctypes.data, result.ctypes.data
        job[_COLS // 8], job[_ROWS // 8] = self._operand.cols, g.shape[1]
        job[_BLOCKS // 8], job[_SLICES // 8] = g.shape[0], self._slices
        return job


def _thread_count(multiply_adds: int, threads: int | None) -> int:
    return max(1, min(multiply_adds // WORTH_A_THREAD, num_threads(threads)))


def _run(kernel: Any, job: array[int], bounds: np.ndarray, count: int) -> None:
    """Run a kernel over units, on so many threads."""
    if count == 1:
        kernel(job.buffer_info()[0], int(bounds[0]), int(bounds[-1]), 0)
        return
    nothing = SimpleNamespace(arranged=0, scratch=0)
    recipe: Any = SimpleNamespace(steps=[(kernel, native(kernel), None)], plan=nothing, scratch_at=0)
    work = Work(0, np.empty((0, 3), np.int64), 0, np.ascontiguousarray(bounds, np.int64))
    run_on_threads(recipe, job, work, count, scratch.room("product", nbytes_of(recipe, count)).address)
