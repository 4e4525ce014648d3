"""What the instruction for dot products of bytes does at most: a loop of nothing else, whose operands are in registers.

A kernel that multiplies zeros, too, takes at least its multiply-adds over this rate, however it gets at its weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from sparsefmt.kernels import panel
from sparsefmt.kernels.dots import SIGNS, dots
from sparsefmt.kernels.kinds import F32
from sparsefmt.kernels.llvm import opaque
from sparsefmt.kernels.simd import VECTOR_BYTES, joined, load, store, vectors_of
from sparsefmt.llvm import I8, I32, constant_of
from tools.bench.harness import in_turns

SUMS = 16 if VECTOR_BYTES == 64 else 12
"""Vectors that are added to in turns: more than the processor has on the way at once, and they fit into registers."""

ADDITIONS = 64
"""In one turn of the loop that counts cycles."""

MULTIPLY_ADDS = SUMS * VECTOR_BYTES
"""In one turn of the loop of dot products."""

TURN_SECONDS = 0.05


class Roof(NamedTuple):
    """Multiply-adds of the instruction on one thread, and its cycles, which a chain of additions counts."""

    multiply_adds_a_second: float
    cycles_a_second: float

    @property
    def multiply_adds_a_cycle(self) -> float:
        return self.multiply_adds_a_second / self.cycles_a_second

    def seconds(self, rows: int, cols: int, tokens: int) -> float:
        """The least that a product of this shape takes."""
        return rows * cols * tokens / self.multiply_adds_a_second


@intrinsic(prefer_literal=True)
def _dots(typingctx, way, operands, sums):
    """sums[i] + the dot products of the two vectors of operands, whose bits are bytes."""

    def codegen(context, builder, signature, args):
        words, single = ir.VectorType(I32, sums.lanes), sums.llvm
        taken = vectors_of(builder, args[1], operands)
        weights, activations = (builder.bitcast(one, ir.VectorType(I8, VECTOR_BYTES)) for one in taken)
        totals = [builder.bitcast(total, words) for total in vectors_of(builder, args[2], sums)]
        totals = [dots[constant_of(way)](builder, weights, activations, total) for total in totals]
        return joined(builder, [builder.bitcast(total, single) for total in totals])

    return sums(way, operands, sums), codegen


@intrinsic
def _additions(typingctx, number, other):
    """number + ADDITIONS * other, each addition waiting for the one before."""

    def codegen(context, builder, signature, args):
        total = args[0]
        for _ in range(ADDITIONS):
            total = opaque(builder, builder.add(total, args[1]), "r")
        return total

    return types.int64(types.int64, types.int64), codegen


def _loops(way: int) -> tuple[Callable[..., None], Callable[..., int]]:
    kind, lanes, count, two, size = F32, VECTOR_BYTES // 4, SUMS, 2, VECTOR_BYTES

    @njit(nogil=True)
    def multiply(operands, sums, turns):
        # sums are read, too: LLVM would make one of those that are the same
        taken, totals = load(operands, size, kind, lanes, two), load(sums, size, kind, lanes, count)
        for _ in range(turns):
            totals = _dots(way, taken, totals)
        store(sums, size, totals)

    @njit(nogil=True)
    def add(other, turns):
        number = 0
        for _ in range(turns):
            number = _additions(number, other)
        return number

    return multiply, add


def sums_of(turns: int) -> np.ndarray:
    """Sums after some turns, int32 (SUMS, lanes), weights being 3 and activations 2: 24 times the turns."""
    multiply, _ = _loops(_way())
    operands, sums = np.full((2, VECTOR_BYTES), 3, np.int8), np.zeros((SUMS, VECTOR_BYTES // 4), np.int32)
    operands[1] = 2
    multiply(operands.ctypes.data, sums.ctypes.data, turns)
    return sums


def _way() -> int:
    """Raises ValueError: there is no instruction."""
    way = panel.dots_way()
    if way is None or way == SIGNS:
        raise ValueError("this processor has no instruction for dot products of bytes, or SPARSEFMT_DOTS hides it")
    return way


def measure(turns: int = 5) -> Roof:
    """Time both loops in turns, on this thread.

    Raises:
        ValueError: there is no instruction.
    """
    multiply, add = _loops(_way())
    operands, sums = np.ones((2, VECTOR_BYTES), np.int8), np.zeros((SUMS, VECTOR_BYTES // 4), np.int32)
    multiply(operands.ctypes.data, sums.ctypes.data, 1)
    add(1, 1)

    def rate(run: Callable[[int], object], units: int) -> float:
        """Units a second: of so many turns as take TURN_SECONDS."""
        turns, seconds = 1 << 10, 0.0
        while seconds < TURN_SECONDS:
            turns *= 2
            start = time.thread_time()
            run(turns)
            seconds = time.thread_time() - start
        return units * turns / seconds

    rates = in_turns(
        {
            "multiply": lambda: rate(
                lambda turns: multiply(operands.ctypes.data, sums.ctypes.data, turns), MULTIPLY_ADDS
            ),
            "add": lambda: rate(lambda turns: add(1, turns), ADDITIONS),
        },
        turns,
    )
    return Roof(*(statistics.median(rates[name]) for name in ("multiply", "add")))
