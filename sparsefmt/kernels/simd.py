"""Vectors for jitted code: a numba type that reads like arithmetic and compiles to what one would write by hand.

A value of type `Vectors` is `count` vectors of `lanes` floats in registers; operations work on all of them at once, so
that a kernel says `sums = outer(weights, activations, sums)` for a whole block of registers. Memory is addressed by
plain int64 addresses: nothing is checked here, so a kernel sees arrays of checked tiles only.

Everything but `expand.py` uses generic LLVM operations: they become AVX-512, AVX2, NEON or scalars, with the same bits
everywhere, since fma is always fused, with or without an instruction for it. Some are written differently for NEON,
of which LLVM makes better code then (`tools/bench/cycles.py` shows it): the same operations, so the same bits.

Arguments that the code depends on (`kind`, `lanes`, `count` …) must be constants: variables of a kernel's closure.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from sparsefmt.isa import ISA, NEON

F32, BF16, F16, F64 = range(4)
"""Kinds of stored values. Sums are float32, or float64 for F64."""

WIDTH = {F32: 4, BF16: 2, F16: 2, F64: 8}
"""Bytes of a value of each kind."""


def summed_kind(kind: int) -> int:
    """Kind of the sums, and of the activations, for values of a kind."""
    return F64 if kind == F64 else F32


VECTOR_BYTES = 64 if ISA == "avx512" else 32
"""Bytes of the widest vectors worth using."""

I1, I8, I16, I32, I64 = (ir.IntType(nbits) for nbits in (1, 8, 16, 32, 64))
_ELEMENTS = {F32: ir.FloatType(), BF16: I16, F16: I16, F64: ir.DoubleType()}


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


# For those who define intrinsics: LLVM pieces.


def accumulator(kind: int) -> types.Float:
    """numba type of the sums of values of a kind."""
    return types.float64 if summed_kind(kind) == F64 else types.float32


def integer(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def lanes_of(indices: list[int]) -> ir.Constant:
    """A shuffle."""
    return ir.Constant(ir.VectorType(I32, len(indices)), indices)


def unpacked(builder, value, vectors: Vectors) -> list:
    """The LLVM vectors of a value."""
    return [builder.extract_value(value, number) for number in range(vectors.count)]


def packed(builder, vectors: list):
    """The value made of LLVM vectors."""
    value = ir.Constant(ir.ArrayType(vectors[0].type, len(vectors)), ir.Undefined)
    for number, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, number)
    return value


def load_as(builder, address, llvm_type, align: int):
    """What lies at an int64 address."""
    return builder.load(builder.inttoptr(address, llvm_type.as_pointer()), align=align, typ=llvm_type)


def store_at(builder, address, value, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def call(builder, name: str, result, arguments: list):
    """An LLVM intrinsic by its name."""
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def fused(builder, a, b, c):
    """a * b + c of LLVM vectors or scalars with one rounding."""
    element = a.type.element if isinstance(a.type, ir.VectorType) else a.type
    suffix = "f32" if isinstance(element, ir.FloatType) else "f64"
    if isinstance(a.type, ir.VectorType):
        suffix = f"v{a.type.count}{suffix}"
    return call(builder, f"llvm.fma.{suffix}", a.type, [a, b, c])


def opaque(builder, value, register: str, *others):
    """A value as it is, which LLVM takes for the result of some instruction on it and on other values.

    `register`: LLVM's name of the kind of register that it is in, "r" or "w"; others are in "w", which floats and
    vectors are. Costs no instruction. Only for NEON.
    """
    arguments = [value, *others]
    function = ir.FunctionType(value.type, [argument.type for argument in arguments])
    constraints = ",".join([f"={register}", "0", *("w" for _ in others)])
    return builder.asm(function, "", constraints, arguments, False)


def behind(builder, number, *vectors):
    """An int64 as it is, opaque, and made after LLVM vectors.

    What is loaded from such an address stays behind what makes the vectors. Only for NEON, whose registers have 128
    bits.
    """
    parts = []
    for vector in vectors:
        lanes = 128 // (32 if isinstance(vector.type.element, ir.FloatType) else 64)
        for first in range(0, vector.type.count, lanes):
            parts.append(builder.shuffle_vector(vector, vector, lanes_of(list(range(first, first + lanes)))))
    return opaque(builder, number, "r", *parts)


def stored_type(kind: int, lanes: int) -> ir.VectorType:
    """Consecutive stored values."""
    return ir.VectorType(_ELEMENTS[kind], lanes)


def widened(builder, vector, kind: int):
    """Stored values as floats of the accumulator's type. Exact; independent of the processor, subnormals included."""
    word, single = ir.VectorType(I32, vector.type.count), ir.VectorType(ir.FloatType(), vector.type.count)

    def constant(value):
        return ir.Constant(word, [value] * vector.type.count)

    if kind == BF16:
        return builder.bitcast(builder.shl(builder.zext(vector, word), constant(16)), single)
    if kind == F16 and (ISA != "portable" or NEON):
        return builder.fpext(builder.bitcast(vector, ir.VectorType(ir.HalfType(), vector.type.count)), single)
    if kind == F16:
        # without an instruction, LLVM would call a function for each lane
        half = builder.zext(vector, word)
        magnitude = builder.and_(half, constant(0x7FFF))
        sign = builder.shl(builder.and_(half, constant(0x8000)), constant(16))
        shifted = builder.shl(magnitude, constant(13))
        # a half's exponent bits moved to those of a float are 112 too small: exact also for subnormals
        scale = ir.Constant(single, [2.0**112] * vector.type.count)
        finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, single), scale), word)
        special = builder.icmp_unsigned(">=", magnitude, constant(0x7C00))
        bits = builder.select(special, builder.or_(shifted, constant(0x7F800000)), finite)
        return builder.bitcast(builder.or_(bits, sign), single)
    return vector


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


def constant_of(literal) -> int:
    """Value of an argument that must be a constant."""
    if not isinstance(literal, types.Literal):
        raise TypeError(f"{literal} must be a constant, such as a variable of the kernel's closure")
    return literal.literal_value


def broadcast(builder, address, vectors: Vectors):
    """The float at an int64 address in every lane of an LLVM vector."""
    element = load_as(builder, address, vectors.llvm.element, vectors.itemsize)
    alone = builder.insert_element(ir.Constant(vectors.llvm, ir.Undefined), element, ir.Constant(I32, 0))
    return builder.shuffle_vector(alone, alone, lanes_of([0] * vectors.lanes))


# For kernels.


def _scalar_reader(nbits):
    @intrinsic
    def read(typingctx, address):
        def codegen(context, builder, signature, args):
            value = load_as(builder, args[0], ir.IntType(nbits), nbits // 8)
            return value if nbits == 64 else builder.zext(value, I64)

        return types.int64(types.int64), codegen

    return read


load_u8, load_u16, load_u32, load_u64 = (_scalar_reader(nbits) for nbits in (8, 16, 32, 64))
"""load_u16(address): an unsigned integer as int64 (of 64 bits: its bits)."""


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
        return packed(builder, vectors)

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
        return packed(builder, vectors)

    return result(types.int64, types.int64, types.int64, kind, lanes, count), codegen


@intrinsic
def fma_all(typingctx, vectors, factor, totals):
    """totals[number % count] + vectors[number] * factor for one vector after the other; so many totals, one factor."""

    def codegen(context, builder, signature, args):
        (factor,) = unpacked(builder, args[1], signature.args[1])
        found = unpacked(builder, args[2], totals)
        for number, vector in enumerate(unpacked(builder, args[0], vectors)):
            found[number % totals.count] = fused(builder, vector, factor, found[number % totals.count])
        return packed(builder, found)

    return totals(vectors, factor, totals), codegen


@intrinsic
def store(typingctx, address, stride, vectors):
    """Write vectors, `stride` bytes apart."""

    def codegen(context, builder, signature, args):
        address = args[0]
        for vector in unpacked(builder, args[2], vectors):
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
        rows = zip(*(unpacked(builder, arg, c) for arg in args), strict=True)
        return packed(builder, [fused(builder, *row) for row in rows])

    return c(c, c, c), codegen


@intrinsic(prefer_literal=True)
def fma_rows(typingctx, values, kind, columns, wide, slots, x, sums):
    """`slots` slots of `permuted` for one token: sums[row] + values[slot][row] * x[columns[slot][row]] in 16 lanes."""
    stored, is_wide = constant_of(kind), constant_of(wide)

    def codegen(context, builder, signature, args):
        (total,), x = unpacked(builder, args[6], sums), args[5]
        for slot in range(constant_of(slots)):
            if slot and NEON:
                # LLVM would load all slots first, and spill
                x = behind(builder, x, total)
            at_values = builder.add(args[0], integer(16 * WIDTH[stored] * slot))
            weights = widened(builder, load_as(builder, at_values, stored_type(stored, 16), WIDTH[stored]), stored)
            at_columns = builder.add(args[2], integer((64 if is_wide else 32) * slot))
            activations = gathered(builder, x, columns_of_slot(builder, at_columns, is_wide, 0, 16), sums)
            total = fused(builder, weights, activations, total)
        return packed(builder, [total])

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
def memory(typingctx, nbytes):
    """The address of so many bytes on the stack, for as long as the function runs that asks for them."""
    size = constant_of(nbytes)

    def codegen(context, builder, signature, args):
        block = cgutils.alloca_once(builder, ir.ArrayType(I8, size))
        block.align = 64
        return builder.ptrtoint(block, I64)

    return types.int64(nbytes), codegen


@intrinsic(prefer_literal=True)
def fma_row_of_gaps(typingctx, values, kind, columns, address, x, sums):
    """A slot of `permuted` for one token, as in `fma_rows`: its columns are in registers, and lie at an address too.

    The first of them come from registers, the others from memory: each way alone would be too narrow.
    """
    stored = constant_of(kind)
    bits = 32 if columns.wide else 16

    def codegen(context, builder, signature, args):
        in_words = builder.bitcast(args[2], ir.VectorType(I64, bits // 4))
        words = [builder.extract_element(in_words, I32(0))]
        for number in range(1, bits // 4):
            words.append(load_as(builder, builder.add(args[3], integer(8 * number)), I64, 2))
        (total,) = unpacked(builder, args[5], sums)
        weights = widened(builder, load_as(builder, args[0], stored_type(stored, 16), WIDTH[stored]), stored)
        x = behind(builder, args[4], total) if NEON else args[4]
        activations = gathered(builder, x, split(builder, words, bits), sums)
        return packed(builder, [fused(builder, weights, activations, total)])

    int64 = types.int64
    return sums(int64, kind, columns, int64, int64, sums), codegen


@intrinsic(prefer_literal=True)
def fma_tokens(typingctx, values, columns, wide, x, first, sums):
    """Eight rows of a slot of `permuted`, row `first` of it and those after, for many tokens in the lanes.

    sums[row * n + i] + values[row] * x[column[first + row]][i] for the n vectors of tokens of each row. At x lie the
    tokens of column 0, then those of column 1 …
    """

    def codegen(context, builder, signature, args):
        (weights,) = unpacked(builder, args[0], values)
        added = unpacked(builder, args[5], sums)
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
        return packed(builder, result)

    return sums(values, types.int64, wide, types.int64, first, sums), codegen


def _spread(builder, address, kind: int, vectors: Vectors):
    """The stored value at an int64 address, widened, in every lane of an LLVM vector."""
    if WIDTH[kind] == vectors.itemsize:
        return broadcast(builder, address, vectors)
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
        for number, total in enumerate(unpacked(builder, args[3], sums)):
            at = builder.add(args[2], integer(sums.itemsize * sums.lanes * number))
            result.append(fused(builder, spread, load_as(builder, at, sums.llvm, sums.itemsize), total))
        return packed(builder, result)

    return sums(types.int64, kind, types.int64, sums), codegen


@intrinsic
def scatter(typingctx, y, positions, count, vectors):
    """Write the first `count` lanes of one vector, + 0.0, to y[positions[lane]]; positions are u16."""

    def codegen(context, builder, signature, args):
        (vector,) = unpacked(builder, args[3], vectors)
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


def concatenated(builder, vectors: list):
    """One LLVM vector of the lanes of several."""
    while len(vectors) > 1:
        lanes = vectors[0].type.count
        halves = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.shuffle_vector(low, high, lanes_of(list(range(2 * lanes)))) for low, high in halves]
    return vectors[0]


@intrinsic
def all_zero(typingctx, vectors):
    """Whether every lane is zero, of either sign; NaN is not."""

    def codegen(context, builder, signature, args):
        vector = concatenated(builder, unpacked(builder, args[0], vectors))
        lanes = builder.fcmp_ordered("==", vector, ir.Constant(vector.type, None))
        bits = builder.bitcast(lanes, ir.IntType(vector.type.count))
        return builder.icmp_signed("==", bits, ir.Constant(bits.type, -1))

    return types.boolean(vectors), codegen


@intrinsic(prefer_literal=True)
def part(typingctx, vectors, first, count):
    """Some of the vectors."""
    begin, size = constant_of(first), constant_of(count)

    def codegen(context, builder, signature, args):
        return packed(builder, unpacked(builder, args[0], vectors)[begin : begin + size])

    return Vectors(vectors.dtype, vectors.lanes, size)(vectors, first, count), codegen


@intrinsic
def transpose(typingctx, vectors):
    """As many vectors as each has lanes, as a square matrix."""
    if vectors.count != vectors.lanes:
        raise TypeError(f"{vectors} is no square")

    def codegen(context, builder, signature, args):
        rows, size = unpacked(builder, args[0], vectors), vectors.lanes
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
        return packed(builder, rows)

    return vectors(vectors), codegen


@intrinsic(prefer_literal=True)
def fma_panel(typingctx, weights, x, tokens, sums):
    """One column of a panel: sums[token * n + i] + weights[i] * x[token] for n vectors of rows that lie at `weights`.

    At x lie the activations of so many `tokens`, one after the other.
    """
    count = constant_of(tokens)
    vectors = sums.count // count

    def codegen(context, builder, signature, args):
        totals = unpacked(builder, args[3], sums)
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
        return packed(builder, totals)

    return sums(types.int64, types.int64, tokens, sums), codegen


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
        for number, vector in enumerate(unpacked(builder, args[4], vectors)):
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
def store_scalar(typingctx, address, value):
    """Write an int64, a float32 or a float64."""

    def codegen(context, builder, signature, args):
        store_at(builder, args[0], args[1], value.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@intrinsic
def load_scalar(typingctx, address, like):
    """A float32 or float64, of the type of `like`."""

    def codegen(context, builder, signature, args):
        return load_as(builder, args[0], args[1].type, like.bitwidth // 8)

    return like(types.int64, like), codegen


@intrinsic
def plus_zero(typingctx, vectors):
    """+ 0.0 in every lane, which makes zeros positive."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(vectors.llvm, None)
        return packed(builder, [builder.fadd(vector, zero) for vector in unpacked(builder, args[0], vectors)])

    return vectors(vectors), codegen


@intrinsic(prefer_literal=True)
def store_rows(typingctx, y, pitch, positions, count, vectors):
    """Write eight rows of equally many vectors each, the first `count` of them, to y + positions[row] * pitch bytes;
    positions are u16."""

    def codegen(context, builder, signature, args):
        per_row = vectors.count // 8
        rows = unpacked(builder, args[4], vectors)
        for row in range(8):
            with builder.if_then(builder.icmp_signed("<", integer(row), args[3])):
                position = builder.zext(load_as(builder, builder.add(args[2], integer(2 * row)), I16, 2), I64)
                address = builder.add(args[0], builder.mul(position, args[1]))
                for vector in rows[row * per_row : (row + 1) * per_row]:
                    store_at(builder, address, vector, vectors.itemsize)
                    address = builder.add(address, integer(vectors.itemsize * vectors.lanes))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, vectors), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, address, lines, level):
    """Ask for `lines` lines of the cache of a level, 1 or 2, from an address on, which need not be readable."""

    def codegen(context, builder, signature, args):
        for line in range(constant_of(lines)):
            pointer = builder.inttoptr(builder.add(args[0], integer(64 * line)), I8.as_pointer())
            # for reading; locality 3 is the nearest level; the data cache
            hints = [ir.Constant(I32, hint) for hint in (0, 4 - constant_of(level), 1)]
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])
        return context.get_dummy_value()

    return types.void(types.int64, lines, level), codegen
