"""The one pass over dense bits: which elements are zero, as a bit each, and how many are special."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.bits_of_words import popcount
from sparsefmt.jit import jit

ZERO, ONE = np.uint64(0), np.uint64(1)


@intrinsic
def sixty_four_in_range(typingctx, array, index, kept, low, width):
    """Which of the elements `index` to `index + 63` of a flat array of unsigned integers are in a range, as bits.

    Bit i of the word is set if (array[index + i] & kept) - low, which wraps, is at most width. uint64. The elements
    must exist: nothing is checked.
    """
    if not isinstance(array.dtype, types.Integer) or array.dtype.signed or array.ndim != 1:
        raise TypeError(f"{array} is not a flat array of unsigned integers")
    element = ir.IntType(array.dtype.bitwidth)
    vector = ir.VectorType(element, 64)

    def codegen(context, builder, signature, args):
        def everywhere(number):
            first = builder.insert_element(
                ir.Constant(vector, ir.Undefined), _truncated(builder, number, element), ir.Constant(ir.IntType(32), 0)
            )
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes)

        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())
        found = builder.load(place, align=array.dtype.bitwidth // 8)
        kept, low, width = map(everywhere, args[2:])
        inside = builder.icmp_unsigned("<=", builder.sub(builder.and_(found, kept), low), width)
        return builder.bitcast(inside, ir.IntType(64))

    return types.uint64(array, types.int64, types.uint64, types.uint64, types.uint64), codegen


def _truncated(builder, number, element):
    return number if element.width == 64 else builder.trunc(number, element)


@jit
def _is_in(bits, kept, low, width):
    """Whether an element is in a range, as `sixty_four_in_range` finds it; the numbers have the width of elements."""
    return ((np.uint64(bits) & kept) - low) & kept <= width


@jit
def mark(bits, ranges, words, special):
    """Set in `words`, uint64 (rows, ceil(cols / 64)), bit c % 64 of word c // 64 where an element is not zero.

    Args:
        bits: unsigned integers (rows, cols), C-contiguous.
        ranges: uint64 (4, 3): kept bits, lowest, and width of the range of what is not zero, of -0.0, of NaN and of
            infinity. The last three are left out where no bits are kept. A range and what it keeps begin at bit 0, or
            the range is a single element.
        special: int64 (3,), to which the number of -0.0, NaN and infinities is added.
    """
    rows, cols = bits.shape
    flat = bits.reshape(-1)
    whole = cols & -64
    for row in range(rows):
        start = row * cols
        for column in range(0, whole, 64):
            words[row, column >> 6] = sixty_four_in_range(
                flat, start + column, ranges[0, 0], ranges[0, 1], ranges[0, 2]
            )
            for kind in range(3):
                if ranges[kind + 1, 0] != ZERO:
                    special[kind] += popcount(
                        sixty_four_in_range(
                            flat, start + column, ranges[kind + 1, 0], ranges[kind + 1, 1], ranges[kind + 1, 2]
                        )
                    )
        if whole < cols:
            word = ZERO
            for column in range(whole, cols):
                element = flat[start + column]
                if _is_in(element, ranges[0, 0], ranges[0, 1], ranges[0, 2]):
                    word |= ONE << np.uint64(column - whole)
                for kind in range(3):
                    if ranges[kind + 1, 0] != ZERO and _is_in(
                        element, ranges[kind + 1, 0], ranges[kind + 1, 1], ranges[kind + 1, 2]
                    ):
                        special[kind] += 1
            words[row, whole >> 6] = word
