"""Slots of `permuted` for jitted code: their columns, also made of gaps, their products, and where sums of rows go.

A slot is a value of each of a slice's sixteen rows, with the column of each. Addresses are plain int64, and nothing is
checked: a kernel sees arrays of checked tiles only.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from sparsefmt.isa import NEON
from sparsefmt.kernels.kinds import WIDTH
from sparsefmt.kernels.llvm import behind, fused, opaque, stored_type, widened
from sparsefmt.kernels.simd import VECTOR_BYTES, Vectors, joined, vectors_of
from sparsefmt.llvm import I8, I16, I32, I64, concatenated, constant_of, integer, lanes_of, load_as, store_at

IN_REGISTERS = 2 if VECTOR_BYTES == 64 else 1
"""Words of columns that `fma_row_of_gaps` takes out of a register. With AVX-512, loads are what limits it."""


def columns_of_slot(builder, address, wide: bool, first: int, rows: int) -> list:
    """Columns of some rows of a slot of `permuted`, as int64, from 64-bit loads: fewer loads for the same work."""
    bits = 32 if wide else 16
    begins = range(first * bits // 8, (first + rows) * bits // 8, 8)
    return split(builder, [load_as(builder, builder.add(address, integer(begin)), I64, 2) for begin in begins], bits)


def split(builder, words: list, bits: int) -> list:
    """The integers of so many bits in words of 64, the lowest first."""
    mask = integer((1 << bits) - 1)
    return [builder.and_(builder.lshr(word, integer(shift)), mask) for word in words for shift in range(0, 64, bits)]


def gathered(builder, x, columns: list, vectors: Vectors):
    """The activations at int64 address x of sixteen columns, in the lanes of an LLVM vector.

    Scalar loads: the gather instruction is slower, on some processors four times.
    """
    eight = ir.VectorType(vectors.llvm.element, 8)
    halves = []
    for first in (0, 8):
        activations = ir.Constant(eight, ir.Undefined)
        for lane, column in enumerate(columns[first : first + 8]):
            if NEON:
                # a load whose place is a register times the size: loads into a lane have none such
                element = eight.element
                place = builder.gep(builder.inttoptr(x, element.as_pointer()), [column], source_etype=element)
                activation = opaque(builder, builder.load(place, align=vectors.itemsize, typ=element), "w")
            else:
                address = builder.add(x, builder.mul(column, integer(vectors.itemsize)))
                activation = load_as(builder, address, eight.element, vectors.itemsize)
            activations = builder.insert_element(activations, activation, I32(lane))
        halves.append(activations)
    return concatenated(builder, halves)


class Columns(types.Type):
    """The columns at which sixteen rows have got, in registers: of 16 bits each, or of 32 if `wide`."""

    def __init__(self, wide: bool) -> None:
        self.wide = wide
        super().__init__(name=f"columns({wide})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(I32 if self.wide else I16, 16)


@register_model(Columns)
class _ColumnsModel(models.PrimitiveModel):
    def __init__(self, manager, columns):
        super().__init__(manager, columns, columns.llvm)


@intrinsic(prefer_literal=True)
def fma_rows(typingctx, values, kind, columns, wide, slots, x, sums):
    """`slots` slots of `permuted` for one token: sums[row] + values[slot][row] * x[columns[slot][row]] in 16 lanes."""
    stored, is_wide = constant_of(kind), constant_of(wide)

    def codegen(context, builder, signature, args):
        (total,), x = vectors_of(builder, args[6], sums), args[5]
        for slot in range(constant_of(slots)):
            if slot and NEON:
                # LLVM would load all slots first, and spill
                x = behind(builder, x, total)
            at_values = builder.add(args[0], integer(16 * WIDTH[stored] * slot))
            weights = widened(builder, load_as(builder, at_values, stored_type(stored, 16), WIDTH[stored]), stored)
            at_columns = builder.add(args[2], integer((64 if is_wide else 32) * slot))
            activations = gathered(builder, x, columns_of_slot(builder, at_columns, is_wide, 0, 16), sums)
            total = fused(builder, weights, activations, total)
        return joined(builder, [total])

    int64 = types.int64
    return sums(int64, kind, int64, wide, slots, int64, sums), codegen


@intrinsic(prefer_literal=True)
def first_columns(typingctx, wide):
    """Column 0 in sixteen rows."""
    result = Columns(bool(constant_of(wide)))

    def codegen(context, builder, signature, args):
        return ir.Constant(result.llvm, None)

    return result(wide), codegen


@intrinsic
def next_columns(typingctx, columns, gaps):
    """The columns of the next slot of `permuted`, whose sixteen gaps of 8 bits lie at an address."""

    def codegen(context, builder, signature, args):
        gaps = load_as(builder, args[1], ir.VectorType(I8, 16), 1)
        return builder.add(args[0], builder.zext(gaps, columns.llvm))

    return columns(columns, types.int64), codegen


@intrinsic
def put_columns(typingctx, address, columns):
    """The same columns, written as a slot of array `columns` has them."""

    def codegen(context, builder, signature, args):
        store_at(builder, args[0], args[1], 2)
        return args[1]

    return columns(types.int64, columns), codegen


@intrinsic(prefer_literal=True)
def fma_row_of_gaps(typingctx, values, kind, columns, address, x, sums):
    """A slot of `permuted` for one token, as in `fma_rows`: its columns are in registers, and lie at an address too.

    The first of them come from registers, the others from memory: each way alone would be too narrow.
    """
    stored = constant_of(kind)
    bits = 32 if columns.wide else 16

    def codegen(context, builder, signature, args):
        in_words = builder.bitcast(args[2], ir.VectorType(I64, bits // 4))
        words = [builder.extract_element(in_words, I32(number)) for number in range(IN_REGISTERS)]
        for number in range(IN_REGISTERS, bits // 4):
            words.append(load_as(builder, builder.add(args[3], integer(8 * number)), I64, 2))
        (total,) = vectors_of(builder, args[5], sums)
        weights = widened(builder, load_as(builder, args[0], stored_type(stored, 16), WIDTH[stored]), stored)
        x = behind(builder, args[4], total) if NEON else args[4]
        activations = gathered(builder, x, split(builder, words, bits), sums)
        return joined(builder, [fused(builder, weights, activations, total)])

    int64 = types.int64
    return sums(int64, kind, columns, int64, int64, sums), codegen


@intrinsic(prefer_literal=True)
def fma_tokens(typingctx, values, columns, wide, x, first, sums):
    """Eight rows of a slot of `permuted`, row `first` of it and those after, for many tokens in the lanes.

    sums[row * n + i] + values[row] * x[column[first + row]][i] for the n vectors of tokens of each row. At x lie the
    tokens of column 0, then those of column 1 …
    """

    def codegen(context, builder, signature, args):
        (weights,) = vectors_of(builder, args[0], values)
        added = vectors_of(builder, args[5], sums)
        per_row = sums.count // 8
        vector_size = sums.itemsize * sums.lanes
        result = []
        for row, column in enumerate(columns_of_slot(builder, args[1], constant_of(wide), constant_of(first), 8)):
            weight = builder.shuffle_vector(weights, weights, lanes_of([row] * sums.lanes))
            tokens = builder.add(args[3], builder.mul(column, integer(vector_size * per_row)))
            for number in range(per_row):
                address = builder.add(tokens, integer(vector_size * number))
                activations = load_as(builder, address, sums.llvm, sums.itemsize)
                result.append(fused(builder, weight, activations, added[row * per_row + number]))
        return joined(builder, result)

    return sums(values, types.int64, wide, types.int64, first, sums), codegen


@intrinsic
def scatter(typingctx, y, positions, count, vectors):
    """Write the first `count` lanes of one vector, + 0.0, to y[positions[lane]]; positions are u16."""

    def codegen(context, builder, signature, args):
        (vector,) = vectors_of(builder, args[3], vectors)
        # adding +0.0 makes a zero result positive
        vector = builder.fadd(vector, ir.Constant(vector.type, None))
        for lane in range(vectors.lanes):
            with builder.if_then(builder.icmp_signed("<", integer(lane), args[2])):
                position = builder.zext(load_as(builder, builder.add(args[1], integer(2 * lane)), I16, 2), I64)
                address = builder.add(args[0], builder.mul(position, integer(vectors.itemsize)))
                element = builder.extract_element(vector, ir.Constant(I32, lane))
                store_at(builder, address, element, vectors.itemsize)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, vectors), codegen


@intrinsic(prefer_literal=True)
def store_rows(typingctx, y, pitch, positions, count, vectors):
    """Write eight rows of equally many vectors each, the first `count` of them, to y + positions[row] * pitch bytes;
    positions are u16."""

    def codegen(context, builder, signature, args):
        per_row = vectors.count // 8
        rows = vectors_of(builder, args[4], vectors)
        for row in range(8):
            with builder.if_then(builder.icmp_signed("<", integer(row), args[3])):
                position = builder.zext(load_as(builder, builder.add(args[2], integer(2 * row)), I16, 2), I64)
                address = builder.add(args[0], builder.mul(position, args[1]))
                for vector in rows[row * per_row : (row + 1) * per_row]:
                    store_at(builder, address, vector, vectors.itemsize)
                    address = builder.add(address, integer(vectors.itemsize * vectors.lanes))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, vectors), codegen
