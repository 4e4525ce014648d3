"""Dot products of four bytes at once, for jitted code: weights and activations of eight bits, and sums of 32 bits.

The sums travel as `Vectors` of float32 whose bits are integers, until `from_dots` makes numbers of them. All ways give
the same sums: nothing is rounded, and nothing overflows that `scaled.sums_are_exact` lets through.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.kernels.simd import joined, vectors_of
from sparsefmt.llvm import I1, I8, I16, I32, call, concatenated, constant_of, integer, lanes_of, load_as

SIGNS, BIASED, BIASED_BY_PARTS, SIGNED = range(4)
"""Ways to multiply by activations of eight bits: weights without their signs by activations with these signs (AVX2); by
activations that are 128 too large, with the one instruction of x86 that there may be for it (`isa.DOTS`), or without
it; or by activations as they are, with that of ARM."""


def way_of(dots: str | None, isa: str) -> int | None:
    """How a processor multiplies, by the names of its instruction for it and of its instruction set; None if it does
    not, and sums are made of float32: AVX-512 and NEON without the instruction, and portable code."""
    if dots == "dotprod":
        return SIGNED
    if dots is not None:
        return BIASED
    return SIGNS if isa == "avx2" else None


def is_biased(way: int | None) -> bool:
    """Whether activations are made 128 too large, so that so many times the weights have to be taken away again."""
    return way in (BIASED, BIASED_BY_PARTS)


def _dot_by_signs(builder, weights, activation, total):
    """AVX2: total + the dot products of four bytes each. Exact: no sum of two products is beyond 16 bits."""
    bytes32, halves, words = ir.VectorType(I8, 32), ir.VectorType(I16, 16), total.type
    magnitudes = call(builder, "llvm.abs.v32i8", bytes32, [weights, ir.Constant(I1, 0)])
    signed = call(builder, "llvm.x86.avx2.psign.b", bytes32, [activation, weights])
    pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, [magnitudes, signed])
    ones = ir.Constant(halves, [1] * 16)
    return builder.add(total, call(builder, "llvm.x86.avx2.pmadd.wd", words, [pairs, ones]))


def _dot_by_parts(builder, weights, activation, total):
    """What the instruction does, without it."""
    wide = ir.VectorType(I32, weights.type.count)
    products = builder.mul(builder.sext(weights, wide), builder.zext(activation, wide))
    for part in range(4):
        lanes = lanes_of(list(range(part, weights.type.count, 4)))
        total = builder.add(total, builder.shuffle_vector(products, products, lanes))
    return total


def _dot_by_instruction(builder, weights, activation, total):
    """total + the dot products of four bytes each, activations being unsigned."""
    bits = 32 * total.type.count
    # LLVM takes them by words, newer versions by bytes, too
    words = [total, builder.bitcast(activation, total.type), builder.bitcast(weights, total.type)]
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", total.type, words)


def _dot_of_signed(builder, weights, activation, total):
    """ARM: the same for signed activations, sixteen bytes at once. Exact: nothing is rounded or cut off at 16 bits."""
    words4, sums = ir.VectorType(I32, 4), []
    for first in range(0, total.type.count, 4):
        lanes, whole = lanes_of(list(range(first, first + 4))), lanes_of(list(range(4 * first, 4 * first + 16)))
        taken = [builder.shuffle_vector(vector, vector, whole) for vector in (weights, activation)]
        part = builder.shuffle_vector(total, total, lanes)
        sums.append(call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", words4, [part, *taken]))
    return concatenated(builder, sums)


dots = {SIGNS: _dot_by_signs, BIASED: _dot_by_instruction, BIASED_BY_PARTS: _dot_by_parts, SIGNED: _dot_of_signed}
"""By way, dot(builder, weights, activation, total)."""


def dots_of_tokens(builder, rows: list, x, way: int, sums: list) -> list:
    """sums[token * n + i] + the dot products of rows[i] and x[token]: LLVM vectors of bytes, and four bytes each at an
    address."""
    whole, words, single = rows[0].type, ir.VectorType(I32, sums[0].type.count), sums[0].type
    totals, tokens = list(sums), len(sums) // len(rows)
    # ARM's instruction takes four bytes out of a vector; others want them in all lanes, which loads do at no cost
    at_once = 4 if way == SIGNED else 1
    for token in range(tokens):
        if token % at_once == 0:
            loaded = ir.VectorType(I32, min(at_once, tokens - token))
            fours = load_as(builder, builder.add(x, integer(4 * token)), loaded, 4)
        spread = builder.shuffle_vector(fours, fours, lanes_of([token % at_once] * words.count))
        spread = builder.bitcast(spread, whole)
        for number, row in enumerate(rows):
            index = token * len(rows) + number
            total = dots[way](builder, row, spread, builder.bitcast(totals[index], words))
            totals[index] = builder.bitcast(total, single)
    return totals


@intrinsic(prefer_literal=True)
def dot_panel(typingctx, weights, x, tokens, way, sums):
    """Four columns of a panel of DOTS: sums[token * n + i] + the dot products of weights[i] and x[token], in 32 bits.

    `way`: see SIGNS.
    """
    vectors, number_of_way = sums.count // constant_of(tokens), constant_of(way)

    def codegen(context, builder, signature, args):
        nbytes = 4 * sums.lanes
        addresses = [builder.add(args[0], integer(nbytes * number)) for number in range(vectors)]
        rows = [load_as(builder, address, ir.VectorType(I8, nbytes), 4) for address in addresses]
        totals = vectors_of(builder, args[4], sums)
        return joined(builder, dots_of_tokens(builder, rows, args[1], number_of_way, totals))

    return sums(types.int64, types.int64, tokens, way, sums), codegen


@intrinsic(prefer_literal=True)
def less_dots(typingctx, sums, tokens, others):
    """sums[token * n + i] - others[i], integers of 32 bits."""

    def codegen(context, builder, signature, args):
        words, taken = ir.VectorType(I32, sums.lanes), vectors_of(builder, args[2], others)
        result = []
        for index, total in enumerate(vectors_of(builder, args[0], sums)):
            other = builder.bitcast(taken[index % others.count], words)
            result.append(builder.bitcast(builder.sub(builder.bitcast(total, words), other), sums.llvm))
        return joined(builder, result)

    return sums(sums, tokens, others), codegen


@intrinsic
def plus_dots(typingctx, sums, others):
    """sums[i] + others[i], integers of 32 bits."""

    def codegen(context, builder, signature, args):
        words = ir.VectorType(I32, sums.lanes)
        pairs = zip(*(vectors_of(builder, arg, sums) for arg in args), strict=True)
        added = [builder.add(*(builder.bitcast(one, words) for one in pair)) for pair in pairs]
        return joined(builder, [builder.bitcast(total, sums.llvm) for total in added])

    return sums(sums, sums), codegen


@intrinsic
def from_dots(typingctx, sums):
    """Integers of 32 bits as float32, to nearest."""

    def codegen(context, builder, signature, args):
        words = ir.VectorType(I32, sums.lanes)
        totals = vectors_of(builder, args[0], sums)
        return joined(builder, [builder.sitofp(builder.bitcast(total, words), sums.llvm) for total in totals])

    return sums(sums), codegen


@intrinsic
def flip_signs_of_bytes(typingctx, vectors):
    """Vectors whose bits are four bytes a lane, with 128 added to each byte, without a carry."""

    def codegen(context, builder, signature, args):
        words = ir.VectorType(I32, vectors.lanes)
        bits, flipped = vectors_of(builder, args[0], vectors), ir.Constant(words, [0x80808080] * vectors.lanes)
        made = [builder.bitcast(builder.xor(builder.bitcast(one, words), flipped), vectors.llvm) for one in bits]
        return joined(builder, made)

    return vectors(vectors), codegen
