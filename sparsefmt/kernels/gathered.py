"""Slots of `permuted` multiplied by the instruction that loads what lies at sixteen columns at once.

`permuted_slots.fma_rows` does the same by one load for each column. `gather.py` says which of them products use.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparsefmt.isa import ISA
from sparsefmt.kernels.kinds import WIDTH
from sparsefmt.kernels.llvm import fused, stored_type, widened
from sparsefmt.kernels.permuted_slots import Columns
from sparsefmt.kernels.simd import Vectors, joined, vectors_of
from sparsefmt.llvm import I1, I8, I32, call, concatenated, constant_of, lanes_of, load_as


@intrinsic
def load_columns(typingctx, address):
    """The columns of a slot of `permuted`, of 16 bits."""
    result = Columns(False)

    def codegen(context, builder, signature, args):
        return load_as(builder, args[0], result.llvm, 2)

    return result(types.int64), codegen


@intrinsic(prefer_literal=True)
def fma_gathered(typingctx, values, kind, columns, x, sums):
    """A slot of `permuted` for one token: sums[row] + values[row] * x[columns[row]] in 16 lanes."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        (total,) = vectors_of(builder, args[4], sums)
        weights = widened(builder, load_as(builder, args[0], stored_type(stored, 16), WIDTH[stored]), stored)
        indices = builder.zext(args[2], ir.VectorType(I32, 16))
        return joined(builder, [fused(builder, weights, _gathered(builder, args[3], indices, sums), total)])

    return sums(types.int64, kind, columns, types.int64, sums), codegen


def _gathered(builder, x, indices, vectors: Vectors):
    """The activations at sixteen columns, each below 2 to the power of 31."""
    single, base = vectors.itemsize == 4, builder.inttoptr(x, I8.as_pointer())
    lanes = (16 if single else 8) if ISA == "avx512" else (8 if single else 4)
    result = ir.VectorType(vectors.llvm.element, lanes)
    parts = []
    for first in range(0, 16, lanes):
        part = builder.shuffle_vector(indices, indices, lanes_of(list(range(first, first + lanes))))
        nothing = ir.Constant(result, None)
        if ISA == "avx512":
            every, scale = ir.Constant(ir.VectorType(I1, lanes), [1] * lanes), I32(vectors.itemsize)
            name = f"llvm.x86.avx512.mask.gather.{'dps' if single else 'dpd'}.512"
        else:
            words = ir.VectorType(ir.IntType(8 * vectors.itemsize), lanes)
            every, scale = builder.bitcast(ir.Constant(words, [-1] * lanes), result), I8(vectors.itemsize)
            name = f"llvm.x86.avx2.gather.d.{'ps' if single else 'pd'}.256"
        parts.append(call(builder, name, result, [nothing, base, part, every, scale]))
    return concatenated(builder, parts)
