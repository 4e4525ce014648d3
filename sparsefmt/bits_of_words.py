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


def _word_type(word: types.Type) -> types.Type:
    if word not in (types.int64, types.uint64):
        raise TypeError(f"{word} is not a word of 64 bits")
    return word
