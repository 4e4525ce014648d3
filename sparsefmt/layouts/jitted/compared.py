"""Which elements of a dense row are something: not zero, a number, in a range. A bit for each, in a word of 64.

Elements are unsigned integers of 1, 2, 4 or 8 bytes, as many as those of `like` have, an array of which nothing else is
used. They lie at a plain int64 address, and nothing is checked. Counts of elements must be constants, up to 64.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.llvm import I64, constant_of, everywhere, load_as


def _loaded(builder, address, element, count: int):
    """`count` elements at an address, as an LLVM vector."""
    return load_as(builder, address, ir.VectorType(element, count), element.width // 8)


def _as_word(builder, found, count: int):
    """The answers for `count` elements as the lowest bits of an int64."""
    bits = builder.bitcast(found, ir.IntType(count))
    return bits if count == 64 else builder.zext(bits, I64)


@intrinsic(prefer_literal=True)
def nonzero(typingctx, address, count, kept, like):
    """Bit i of an int64 is set where element i of `count` has a bit of those in `kept`, an int64."""
    elements, element = constant_of(count), ir.IntType(like.dtype.bitwidth)

    def codegen(context, builder, signature, args):
        found = _loaded(builder, args[0], element, elements)
        found = builder.and_(found, everywhere(builder, args[2], element, elements))
        present = builder.icmp_unsigned("!=", found, ir.Constant(found.type, None))
        return _as_word(builder, present, elements)

    return types.int64(types.int64, count, types.int64, like), codegen


@intrinsic(prefer_literal=True)
def equal(typingctx, address, count, number, like):
    """Bit i of an int64 is set where element i of `count` is `number`, an int64."""
    elements, element = constant_of(count), ir.IntType(like.dtype.bitwidth)

    def codegen(context, builder, signature, args):
        found = _loaded(builder, args[0], element, elements)
        present = builder.icmp_unsigned("==", found, everywhere(builder, args[2], element, elements))
        return _as_word(builder, present, elements)

    return types.int64(types.int64, count, types.int64, like), codegen


@intrinsic(prefer_literal=True)
def in_range(typingctx, address, kept, low, width, like):
    """Bit i of an int64 is set where element i of 64 is in a range: (element & kept) - low, which wraps, is at most
    `width`. These are int64."""
    element = ir.IntType(like.dtype.bitwidth)

    def codegen(context, builder, signature, args):
        found = _loaded(builder, args[0], element, 64)
        kept, low, width = (everywhere(builder, number, element, 64) for number in args[1:4])
        inside = builder.icmp_unsigned("<=", builder.sub(builder.and_(found, kept), low), width)
        return _as_word(builder, inside, 64)

    int64 = types.int64
    return int64(int64, int64, int64, int64, like), codegen
