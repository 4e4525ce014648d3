"""What moves elements in registers, as a step that an emulated ARM processor runs: see tools/arm.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

ROUNDS = 300
"""Masks that are tried."""

PITCH = 512
"""Bytes of the results of a round."""


@dataclass
class Moves:
    """Elements of a width, masks, and what this machine makes of them.

    Attributes:
        arrays: elements, masks (int64) and tables.
        y: the bytes of the results.
    """

    width: int
    arrays: list[np.ndarray]
    y: np.ndarray

    @property
    def name(self) -> str:
        return f"elements of {self.width} bytes"


def cases() -> list[Moves]:
    """For each width, run on this machine."""
    from sparsefmt.layouts.jitted.registers import compressing, expanding, places

    found = []
    for width in (1, 2, 4, 8):
        rng = np.random.default_rng(width)
        elements = rng.integers(0, 256, 64 * 9, np.uint8)
        elements[: 64 * width].view(f"u{width}")[rng.random(64) < 0.4] = 0
        masks = rng.integers(-(1 << 63), 1 << 63, ROUNDS)
        masks[:4] = 0, -1, 1, -(1 << 63)
        like = elements.view(f"u{width}")
        arrays = [elements, masks, compressing(like).copy(), expanding(like).copy(), places().copy()]
        y = np.zeros((ROUNDS + 1) * PITCH, np.uint8)
        addresses = np.array([array.ctypes.data for array in (*arrays, y)], np.int64)
        step(width)(addresses.ctypes.data, 0, ROUNDS, 0)
        found.append(Moves(width, arrays, y))
    return found


@cache
def step(width: int) -> Callable[..., Any]:
    """The jitted step: (addresses of the arrays and of the results, -, rounds, -)."""
    from llvmlite import ir
    from numba import njit, types
    from numba.extending import intrinsic

    from sparsefmt.bits_of_words import deposited_bits, extracted_bits, store_word
    from sparsefmt.kernels.raw_memory import load_u64
    from sparsefmt.layouts.jitted import compared
    from sparsefmt.layouts.jitted import registers as moving

    array_type = types.Array(types.Integer.from_bitwidth(8 * width, signed=False), 1, "C")

    @intrinsic
    def like_elements(typingctx):
        """An array whose type alone is used."""

        def codegen(context, builder, signature, args):
            return ir.Constant(context.get_value_type(array_type), None)

        return array_type(), codegen

    @njit(nogil=True)
    def run(job, first, units, scratch):
        like = like_elements()
        elements, masks, compressing = load_u64(job), load_u64(job + 8), load_u64(job + 16)
        expanding, columns, results = load_u64(job + 24), load_u64(job + 32), load_u64(job + 40)
        for number in range(units):
            bits, out = load_u64(masks + 8 * number), results + PITCH * number
            end = moving.compress(elements, bits, 16, out, compressing, like)
            moving.compress(elements, bits, 8, end, compressing, like)
            moving.expand(elements, bits, 16, out + 192, expanding, like)
            moving.compress_columns(bits, 70_000, out + 320, columns)
            word = np.uint64(bits)
            store_word(out + 384, np.uint64(compared.nonzero(elements, 64, bits, like)))
            store_word(out + 392, np.uint64(compared.equal(elements, 64, load_u64(elements), like)))
            store_word(out + 400, extracted_bits(np.uint64(load_u64(elements)), word))
            store_word(out + 408, deposited_bits(np.uint64(load_u64(elements)), word))
            # where the results of a round end, since less was written than was asked for
            store_word(out + 416, np.uint64(end - out))
        moving.turn(elements, 16, results + PITCH * units, 32, like)

    return run
