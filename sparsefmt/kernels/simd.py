"""Vectors for jitted code: a numba type that reads like arithmetic and compiles to what one would write by hand.

A value of type `Vectors` is `count` vectors of `lanes` floats in registers; operations work on all of them at once, so
that a kernel says `sums = fma(weights, activations, sums)` for a whole block of registers. Memory is addressed by
plain int64 addresses: nothing is checked here, so a kernel sees arrays of checked tiles only.

Functions that take a `builder` are for those who define intrinsics, as those of `llvm.py` are. Arguments that the code
depends on (`kind`, `lanes`, `count` …) must be constants: variables of a kernel's closure.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from sparsefmt.isa import ISA
from sparsefmt.kernels.kinds import E4M3, E5M2, F64, INT8, UINT8, WIDTH, summed_kind
from sparsefmt.kernels.llvm import fused, stored_type, widened
from sparsefmt.llvm import I8, I16, I32, I64, call, concatenated, constant_of, integer, lanes_of, load_as, store_at

VECTOR_BYTES = 64 if ISA == "avx512" else 32
"""Bytes of the widest vectors worth using."""


class Vectors(types.Type):
    """`count` vectors of `lanes` floats of numba type `dtype`, in registers."""

    def __init__(self, dtype: types.Float, lanes: int, count: int) -> None:
        self.dtype, self.lanes, self.count = dtype, lanes, count
        super().__init__(name=f"vectors({dtype}, {lanes}, {count})")

    @property
    def llvm(self) -> ir.VectorType:
        """One of the vectors."""
        return ir.VectorType(ir.FloatType() if self.dtype == types.float32 else ir.DoubleType(), self.lanes)

    @property
    def itemsize(self) -> int:
        return self.dtype.bitwidth // 8


@register_model(Vectors)
class _VectorsModel(models.PrimitiveModel):
    def __init__(self, manager, vectors):
        super().__init__(manager, vectors, ir.ArrayType(vectors.llvm, vectors.count))


def accumulator(kind: int) -> types.Float:
    """numba type of the sums of values of a kind."""
    return types.float64 if summed_kind(kind) == F64 else types.float32


def vectors_of(builder, value, vectors: Vectors) -> list:
    """The LLVM vectors of a value."""
    return [builder.extract_value(value, number) for number in range(vectors.count)]


def joined(builder, vectors: list):
    """The value made of LLVM vectors."""
    value = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for number, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, number)
    return value


def broadcast(builder, address, vectors: Vectors):
    """The float at an int64 address in every lane of an LLVM vector."""
    element = load_as(builder, address, vectors.llvm.element, vectors.itemsize)
    alone = builder.insert_element(ir.Constant(vectors.llvm, ir.Undefined), element, ir.Constant(I32, 0))
    return builder.shuffle_vector(alone, alone, lanes_of([0] * vectors.lanes))


@intrinsic(prefer_literal=True)
def zeros(typingctx, kind, lanes, count):
    """All +0.0, of the accumulator's type of `kind`."""
    result = Vectors(accumulator(constant_of(kind)), constant_of(lanes), constant_of(count))

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(result), None)

    return result(kind, lanes, count), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, address, stride, kind, lanes, count):
    """`count` vectors of consecutive stored values, `stride` bytes apart, widened. Any alignment of a value's own."""
    stored = constant_of(kind)
    result = Vectors(accumulator(stored), constant_of(lanes), constant_of(count))

    def codegen(context, builder, signature, args):
        address, vectors = args[0], []
        for _ in range(result.count):
            vector = load_as(builder, address, stored_type(stored, result.lanes), WIDTH[stored])
            vectors.append(widened(builder, vector, stored))
            address = builder.add(address, args[1])
        return joined(builder, vectors)

    return result(types.int64, types.int64, kind, lanes, count), codegen


@intrinsic(prefer_literal=True)
def load_rows(typingctx, address, stride, last, kind, lanes, count):
    """A square of `lanes` vectors: values of `count` rows, `stride` bytes apart, and zeros. Rows behind row `last` are
    that one again."""
    stored = constant_of(kind)
    result = Vectors(accumulator(stored), constant_of(lanes), constant_of(lanes))

    def codegen(context, builder, signature, args):
        vectors = []
        for number in range(constant_of(count)):
            row = integer(number)
            row = builder.select(builder.icmp_signed("<", row, args[2]), row, args[2])
            address = builder.add(args[0], builder.mul(row, args[1]))
            vectors.append(load_as(builder, address, stored_type(stored, result.lanes), WIDTH[stored]))
        vectors += [ir.Constant(result.llvm, None)] * (result.lanes - len(vectors))
        return joined(builder, vectors)

    return result(types.int64, types.int64, types.int64, kind, lanes, count), codegen


@intrinsic
def fma_all(typingctx, vectors, factor, totals):
    """totals[number % count] + vectors[number] * factor for one vector after the other; so many totals, one factor."""

    def codegen(context, builder, signature, args):
        (factor,) = vectors_of(builder, args[1], signature.args[1])
        found = vectors_of(builder, args[2], totals)
        for number, vector in enumerate(vectors_of(builder, args[0], vectors)):
            found[number % totals.count] = fused(builder, vector, factor, found[number % totals.count])
        return joined(builder, found)

    return totals(vectors, factor, totals), codegen


@intrinsic
def store(typingctx, address, stride, vectors):
    """Write vectors, `stride` bytes apart."""

    def codegen(context, builder, signature, args):
        address = args[0]
        for vector in vectors_of(builder, args[2], vectors):
            store_at(builder, address, vector, vectors.itemsize)
            address = builder.add(address, args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vectors), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding: vectors with vectors, or scalars."""

    def codegen(context, builder, signature, args):
        if not isinstance(c, Vectors):
            return fused(builder, *args)
        rows = zip(*(vectors_of(builder, arg, c) for arg in args), strict=True)
        return joined(builder, [fused(builder, *row) for row in rows])

    return c(c, c, c), codegen


_TABLE = ir.ArrayType(ir.FloatType(), 256)


def every_value(kind: int) -> list[float]:
    """The 256 values of a kind of one byte, by their bits."""
    names = {INT8: np.int8, UINT8: np.uint8, E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}
    return [float(value) for value in np.arange(256, dtype=np.uint8).view(names[kind])]


def _spread(builder, address, kind: int, vectors: Vectors):
    """The stored value at an int64 address, widened, in every lane of an LLVM vector."""
    if WIDTH[kind] == vectors.itemsize:
        return broadcast(builder, address, vectors)
    if WIDTH[kind] == 1:
        # looked up: what widens eight bits takes several instructions, and this is done for each entry
        table = cgutils.global_constant(builder, f"values_of_kind_{kind}", ir.Constant(_TABLE, every_value(kind)))
        begin = builder.ptrtoint(table, I64)
        number = builder.zext(load_as(builder, address, I8, 1), I64)
        return broadcast(builder, builder.add(begin, builder.mul(number, integer(vectors.itemsize))), vectors)
    halves = ir.VectorType(I16, vectors.lanes)
    alone = builder.insert_element(ir.Constant(halves, ir.Undefined), load_as(builder, address, I16, 2), I32(0))
    return widened(builder, builder.shuffle_vector(alone, alone, lanes_of([0] * vectors.lanes)), kind)


@intrinsic(prefer_literal=True)
def fma_entry(typingctx, weight, kind, x, sums):
    """sums[i] + weight * x[i] for vectors of tokens that lie at x, and the stored value at the address `weight`."""
    stored = constant_of(kind)

    def codegen(context, builder, signature, args):
        spread = _spread(builder, args[0], stored, sums)
        result = []
        for number, total in enumerate(vectors_of(builder, args[3], sums)):
            at = builder.add(args[2], integer(sums.itemsize * sums.lanes * number))
            result.append(fused(builder, spread, load_as(builder, at, sums.llvm, sums.itemsize), total))
        return joined(builder, result)

    return sums(types.int64, kind, types.int64, sums), codegen


@intrinsic
def all_zero(typingctx, vectors):
    """Whether every lane is zero, of either sign; NaN is not."""

    def codegen(context, builder, signature, args):
        vector = concatenated(builder, vectors_of(builder, args[0], vectors))
        lanes = builder.fcmp_ordered("==", vector, ir.Constant(vector.type, None))
        bits = builder.bitcast(lanes, ir.IntType(vector.type.count))
        return builder.icmp_signed("==", bits, ir.Constant(bits.type, -1))

    return types.boolean(vectors), codegen


@intrinsic(prefer_literal=True)
def part(typingctx, vectors, first, count):
    """Some of the vectors."""
    begin, size = constant_of(first), constant_of(count)

    def codegen(context, builder, signature, args):
        return joined(builder, vectors_of(builder, args[0], vectors)[begin : begin + size])

    return Vectors(vectors.dtype, vectors.lanes, size)(vectors, first, count), codegen


@intrinsic
def transpose(typingctx, vectors):
    """As many vectors as each has lanes, as a square matrix."""
    if vectors.count != vectors.lanes:
        raise TypeError(f"{vectors} is not square")

    def codegen(context, builder, signature, args):
        rows, size = vectors_of(builder, args[0], vectors), vectors.lanes
        half = 1
        while half < size:
            # swap the off-diagonal blocks of half x half in each block of twice that size
            low = lanes_of([lane - half + size if lane & half else lane for lane in range(size)])
            high = lanes_of([lane + size if lane & half else lane + half for lane in range(size)])
            for row in range(size):
                if not row & half:
                    upper, lower = rows[row], rows[row + half]
                    rows[row] = builder.shuffle_vector(upper, lower, low)
                    rows[row + half] = builder.shuffle_vector(upper, lower, high)
            half *= 2
        return joined(builder, rows)

    return vectors(vectors), codegen


@intrinsic(prefer_literal=True)
def fma_panel(typingctx, weights, x, tokens, sums):
    """One column of a panel: sums[token * n + i] + weights[i] * x[token] for n vectors of rows that lie at `weights`.

    At x lie the activations of so many `tokens`, one after the other.
    """
    count = constant_of(tokens)
    vectors = sums.count // count

    def codegen(context, builder, signature, args):
        totals = vectors_of(builder, args[3], sums)
        rows = [
            load_as(
                builder, builder.add(args[0], integer(sums.itemsize * sums.lanes * number)), sums.llvm, sums.itemsize
            )
            for number in range(vectors)
        ]
        for token in range(count):
            activation = broadcast(builder, builder.add(args[1], integer(sums.itemsize * token)), sums)
            for number, row in enumerate(rows):
                index = token * vectors + number
                totals[index] = fused(builder, row, activation, totals[index])
        return joined(builder, totals)

    return sums(types.int64, types.int64, tokens, sums), codegen


@intrinsic(prefer_literal=True)
def fma_by_rows(typingctx, sums, factors, tokens, totals):
    """totals[token * n + i] + sums[token * n + i] * factors[i] for n vectors of rows, whose factors, of the type of the
    sums, lie at an address."""
    count = constant_of(tokens)
    vectors = sums.count // count

    def codegen(context, builder, signature, args):
        found, values = vectors_of(builder, args[3], totals), vectors_of(builder, args[0], sums)
        for number in range(vectors):
            at = builder.add(args[1], integer(sums.itemsize * sums.lanes * number))
            row = load_as(builder, at, sums.llvm, sums.itemsize)
            for index in range(number, sums.count, vectors):
                found[index] = fused(builder, values[index], row, found[index])
        return joined(builder, found)

    return totals(sums, types.int64, tokens, totals), codegen


@intrinsic
def fma_by_one(typingctx, sums, factor, totals):
    """totals[i] + sums[i] * factor, which is of the type of the sums and lies at an address."""

    def codegen(context, builder, signature, args):
        spread = broadcast(builder, args[1], sums)
        rows = zip(vectors_of(builder, args[0], sums), vectors_of(builder, args[2], totals), strict=True)
        return joined(builder, [fused(builder, value, spread, total) for value, total in rows])

    return totals(sums, types.int64, totals), codegen


@intrinsic
def store_sums(typingctx, address, stride, count, rows, vectors):
    """Write the first `count` vectors, + 0.0, `stride` bytes apart; of each, the first `rows` lanes."""

    def codegen(context, builder, signature, args):
        address, zero = args[0], ir.Constant(vectors.llvm, None)
        lanes = lanes_of(list(range(vectors.lanes)))
        rows = builder.insert_element(ir.Constant(lanes.type, ir.Undefined), builder.trunc(args[3], I32), I32(0))
        rows = builder.shuffle_vector(rows, rows, lanes_of([0] * vectors.lanes))
        wanted = builder.icmp_signed("<", lanes, rows)
        name = f"llvm.masked.store.v{vectors.lanes}f{8 * vectors.itemsize}.p0"
        for number, vector in enumerate(vectors_of(builder, args[4], vectors)):
            # adding +0.0 makes a zero result positive
            vector = builder.fadd(vector, zero)
            with builder.if_then(builder.icmp_signed("<", integer(number), args[2])):
                pointer = builder.inttoptr(address, vector.type.as_pointer())
                call(builder, name, ir.VoidType(), [vector, pointer, I32(vectors.itemsize), wanted])
            address = builder.add(address, args[1])
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(int64, int64, int64, int64, vectors), codegen


@intrinsic
def plus_zero(typingctx, vectors):
    """+ 0.0 in every lane, which makes zeros positive."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(vectors.llvm, None)
        return joined(builder, [builder.fadd(vector, zero) for vector in vectors_of(builder, args[0], vectors)])

    return vectors(vectors), codegen
