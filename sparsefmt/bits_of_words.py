"""Instructions on 64-bit words, for jitted code: a mask is such words, with a bit for each column."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def popcount(typingctx, word):
    """Number of set bits of a word, int64 or uint64, as int64."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(_word_type(word)), codegen


@intrinsic
def lowest_bit(typingctx, word):
    """Position of the lowest set bit of a word, int64 or uint64, that is not 0, as int64."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(_word_type(word)), codegen


@intrinsic
def four_of(typingctx, array, index):
    """Elements `index` to `index + 3` of a flat array of uint16 as one word, the first in its lowest bits. uint64.

    Those of an array of uint8 have 16 bits each, too. They must exist: nothing is checked.
    """
    if array.dtype not in (types.uint8, types.uint16) or array.ndim != 1:
        raise TypeError(f"{array} is not a flat array of uint8 or uint16")
    word, width = ir.IntType(64), array.dtype.bitwidth

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(4 * width).as_pointer())
        found = builder.load(place, align=width // 8)
        if width == 16:
            return found
        found = builder.zext(found, word)
        for distance, kept in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF)):
            moved = builder.shl(found, ir.Constant(word, distance))
            found = builder.and_(builder.or_(found, moved), ir.Constant(word, kept))
        return found

    return types.uint64(array, types.int64), codegen


def _word_type(word: types.Type) -> types.Type:
    if word not in (types.int64, types.uint64):
        raise TypeError(f"{word} is not a word of 64 bits")
    return word
