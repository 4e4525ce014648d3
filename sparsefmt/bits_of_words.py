"""Instructions on 64-bit words, for jitted code: a mask is such words, with a bit for each column."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.isa import ISA
from sparsefmt.llvm import call, store_at

BMI2 = ISA != "portable"
"""Whether there are instructions that extract bits of a word and deposit them."""

_WORD = ir.IntType(64)


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
def highest_bit(typingctx, word):
    """Position of the highest set bit of a word, int64 or uint64, that is not 0, as int64."""

    def codegen(context, builder, signature, args):
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

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


@intrinsic
def store_word(typingctx, address, word):
    """Write a uint64, at any byte."""

    def codegen(context, builder, signature, args):
        store_at(builder, args[0], args[1], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), codegen


@intrinsic
def word_at(typingctx, address, bit):
    """64 bits from a bit on, counted from the lowest of the first byte at an address. uint64. Reads nine bytes."""

    def codegen(context, builder, signature, args):
        word, byte = ir.IntType(64), ir.IntType(8)
        start = builder.add(args[0], builder.lshr(args[1], ir.Constant(word, 3)))
        low = builder.load(builder.inttoptr(start, word.as_pointer()), align=1, typ=word)
        behind = builder.inttoptr(builder.add(start, ir.Constant(word, 8)), byte.as_pointer())
        high = builder.zext(builder.load(behind, align=1, typ=byte), word)
        shift = builder.and_(args[1], ir.Constant(word, 7))
        # a shift by 64 is none: first by one, then by the rest
        high = builder.shl(builder.shl(high, ir.Constant(word, 1)), builder.sub(ir.Constant(word, 63), shift))
        return builder.or_(builder.lshr(low, shift), high)

    return types.uint64(types.int64, types.int64), codegen


@intrinsic
def extracted_bits(typingctx, word, mask):
    """The bits of a word that stand where those of a mask are set, side by side from the lowest on. uint64."""

    def codegen(context, builder, signature, args):
        if BMI2:
            return call(builder, "llvm.x86.bmi.pext.64", _WORD, list(args))
        word = builder.and_(*args)
        for step, moved in enumerate(_moves(builder, args[1])):
            bits = builder.and_(word, moved)
            word = builder.or_(builder.xor(word, bits), builder.lshr(bits, ir.Constant(_WORD, 1 << step)))
        return word

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def deposited_bits(typingctx, word, mask):
    """Undo `extracted_bits`: the lowest bits of a word to where those of a mask are set. uint64."""

    def codegen(context, builder, signature, args):
        if BMI2:
            return call(builder, "llvm.x86.bmi.pdep.64", _WORD, list(args))
        word = args[0]
        for step, moved in reversed(list(enumerate(_moves(builder, args[1])))):
            shifted = builder.shl(word, ir.Constant(_WORD, 1 << step))
            word = builder.or_(builder.and_(word, builder.not_(moved)), builder.and_(shifted, moved))
        return builder.and_(word, args[1])

    return types.uint64(types.uint64, types.uint64), codegen


def _moves(builder, mask):
    """Which bits of a mask move by one place, by two, four and so on to 32, so that all lie side by side, in order.

    Each moves by as many places as there are clear bits below it.
    """
    clear = builder.shl(builder.not_(mask), ir.Constant(_WORD, 1))
    for step in range(6):
        # bits that have an odd number of clear ones below them
        odd = clear
        for doubling in range(6):
            odd = builder.xor(odd, builder.shl(odd, ir.Constant(_WORD, 1 << doubling)))
        moved = builder.and_(odd, mask)
        yield moved
        mask = builder.or_(builder.xor(mask, moved), builder.lshr(moved, ir.Constant(_WORD, 1 << step)))
        clear = builder.and_(clear, builder.not_(odd))


def _word_type(word: types.Type) -> types.Type:
    if word not in (types.int64, types.uint64):
        raise TypeError(f"{word} is not a word of 64 bits")
    return word
