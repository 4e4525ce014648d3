"""Vectors of 8 and 16 lanes for jitted code, and fused multiply-add.

Only generic LLVM operations: they become AVX2, AVX-512, NEON or plain scalars, with the same bits everywhere. fma is
always fused, with or without an instruction for it.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, models, register_model


def _target_features() -> set[str]:
    """Features of the processor that numba compiles for. An instruction that it lacks would end the process.

    None if the user chose another processor than this one (NUMBA_CPU_NAME): portable code is right everywhere.
    """
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return set()
    return {feature.removeprefix("+") for feature in get_host_cpu_features().split(",") if feature.startswith("+")}


_FEATURES = _target_features()
EXPANDS = {16: {"avx512vbmi2", "avx512vl"} <= _FEATURES, 32: "avx512f" in _FEATURES, 64: False}
"""Whether there is an instruction for `expand16`, by bits of an element. Without one the result is the same."""


class Vector(types.Type):
    """`lanes` floats of type `dtype` in registers."""

    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"vector({dtype}, {lanes})")


def _llvm(dtype: types.Float, lanes: int = 0) -> ir.Type:
    scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(scalar, lanes) if lanes else scalar


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _llvm(vector.dtype, vector.lanes))


def _pointer(context, builder, array_type, array, index):
    """Address of element `index` of a one-dimensional C array."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _make_zeros(lanes):
    @intrinsic
    def zeros(typingctx, like):
        vector = Vector(like.dtype, lanes)

        def codegen(context, builder, signature, args):
            return ir.Constant(_llvm(like.dtype, lanes), None)

        return vector(like), codegen

    return zeros


def _widen(builder, dtype, accumulator, lanes, vector):
    """Stored elements as floats of the accumulator's type. Exact."""
    word = ir.VectorType(ir.IntType(32), lanes)

    def constant(value):
        return ir.Constant(word, [value] * lanes)

    if dtype == types.uint16:  # bfloat16
        bits = builder.shl(builder.zext(vector, word), constant(16))
        vector, dtype = builder.bitcast(bits, _llvm(types.float32, lanes)), types.float32
    elif dtype == types.int16:  # float16
        half = builder.zext(vector, word)
        magnitude = builder.and_(half, constant(0x7FFF))
        sign = builder.shl(builder.and_(half, constant(0x8000)), constant(16))
        shifted = builder.shl(magnitude, constant(13))
        # a half's exponent bits moved to those of a float are 112 too small: exact also for subnormals
        scale = ir.Constant(_llvm(types.float32, lanes), [2.0**112] * lanes)
        finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, scale.type), scale), word)
        special = builder.icmp_unsigned(">=", magnitude, constant(0x7C00))
        bits = builder.select(special, builder.or_(shifted, constant(0x7F800000)), finite)
        vector, dtype = builder.bitcast(builder.or_(bits, sign), scale.type), types.float32
    return vector if dtype == accumulator else builder.fpext(vector, _llvm(accumulator, lanes))


def _make_load(lanes, spread=False):
    """Loads `lanes` consecutive elements, or, to `spread`, one."""

    @intrinsic
    def load(typingctx, array, index, like):
        vector = Vector(like.dtype, lanes)
        width = array.dtype.bitwidth
        element = _llvm(array.dtype) if isinstance(array.dtype, types.Float) else ir.IntType(width)
        loaded = 1 if spread else lanes

        def codegen(context, builder, signature, args):
            address = _pointer(context, builder, array, args[0], args[1])
            llvm_type = ir.VectorType(element, loaded)
            stored = builder.load(builder.bitcast(address, llvm_type.as_pointer()), align=width // 8, typ=llvm_type)
            value = _widen(builder, array.dtype, like.dtype, loaded, stored)
            if spread:
                value = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(ir.IntType(32), lanes), None))
            return value

        return vector(array, types.int64, like), codegen

    return load


zeros8, zeros16 = _make_zeros(8), _make_zeros(16)
"""All-zero vector of the dtype of an array."""

load8, load16 = _make_load(8), _make_load(16)
"""load(array, index, like): consecutive elements of a one-dimensional C-contiguous array from `index` on, as floats of
the dtype of `like`. float32 and float64 are what they are, uint16 is bfloat16, int16 float16. Unchecked, unaligned."""

spread16 = _make_load(16, spread=True)
"""spread16(array, index, like): one element, widened as by `load16`, in all lanes."""


@intrinsic
def expand16(typingctx, array, index, mask, nothing, like):
    """Consecutive elements from `index` on in the lanes whose bit in `mask` is set, 0.0 in the others.

    May read 64 bytes from `index` on, whatever the mask. One instruction where `EXPANDS`, a branch per lane elsewhere.

    `nothing` must be 0, and something that the compiler does not know to be 0: or-ing it to what was loaded keeps LLVM
    from making one instruction of load and expansion, which is microcoded and slow on Zen.
    """
    vector = Vector(like.dtype, 16)
    width = array.dtype.bitwidth
    element = _llvm(array.dtype) if isinstance(array.dtype, types.Float) else ir.IntType(width)
    suffix = f"v16{'f' if isinstance(array.dtype, types.Float) else 'i'}{width}"

    def codegen(context, builder, signature, args):
        address = _pointer(context, builder, array, args[0], args[1])
        llvm_type, lanes = ir.VectorType(element, 16), ir.VectorType(ir.IntType(1), 16)
        chosen = builder.bitcast(builder.trunc(args[2], ir.IntType(16)), lanes)
        zeros = ir.Constant(llvm_type, None)
        if EXPANDS[width]:
            loaded = builder.load(builder.bitcast(address, llvm_type.as_pointer()), align=width // 8, typ=llvm_type)
            word = ir.VectorType(ir.IntType(width), 16)
            spread = builder.insert_element(
                ir.Constant(word, ir.Undefined),
                builder.trunc(args[3], ir.IntType(width)),
                ir.Constant(ir.IntType(32), 0),
            )
            spread = builder.shuffle_vector(spread, spread, ir.Constant(ir.VectorType(ir.IntType(32), 16), None))
            loaded = builder.bitcast(builder.or_(builder.bitcast(loaded, word), spread), llvm_type)
            name, operands = f"llvm.x86.avx512.mask.expand.{suffix}", [loaded, zeros, chosen]
        else:
            name, operands = f"llvm.masked.expandload.{suffix}", [address, chosen, zeros]
        function_type = ir.FunctionType(llvm_type, [operand.type for operand in operands])
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return _widen(builder, array.dtype, like.dtype, 16, builder.call(function, operands))

    return vector(array, types.int64, types.uint64, types.int64, like), codegen


@intrinsic
def popcount16(typingctx, mask):
    """Number of set bits among the lowest 16 of a uint64, as int64."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.ctpop(builder.trunc(args[0], ir.IntType(16))), ir.IntType(64))

    return types.int64(types.uint64), codegen


@intrinsic
def gather8(typingctx, array, columns, index):
    """array[columns[index]], …, array[columns[index + 7]] as eight loads, which beat the gather instruction."""
    vector = Vector(array.dtype, 8)

    def codegen(context, builder, signature, args):
        lane_type = ir.IntType(32)
        result = ir.Constant(_llvm(array.dtype, 8), ir.Undefined)
        for lane in range(8):
            position = builder.add(args[2], ir.Constant(args[2].type, lane))
            column = builder.load(_pointer(context, builder, columns, args[1], position))
            address = _pointer(context, builder, array, args[0], builder.zext(column, ir.IntType(64)))
            result = builder.insert_element(result, builder.load(address), ir.Constant(lane_type, lane))
        return result

    return vector(array, columns, types.int64), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c with one rounding, for vectors and for scalars."""

    def codegen(context, builder, signature, args):
        dtype = a.dtype if isinstance(a, Vector) else a
        suffix = "f32" if dtype == types.float32 else "f64"
        if isinstance(a, Vector):
            suffix = f"v{a.lanes}{suffix}"
        operand = args[0].type
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(operand, [operand] * 3), f"llvm.fma.{suffix}"
        )
        return builder.call(function, args)

    return a(a, a, a), codegen


@intrinsic
def where_nonzero(typingctx, weights, chosen, other):
    """Lanes of `chosen` where `weights` is not zero (NaN is not), else of `other`."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_unordered("!=", args[0], zero), args[1], args[2])

    return weights(weights, weights, weights), codegen


@intrinsic
def first_lanes(typingctx, count, chosen, other):
    """The first `count` lanes of `chosen`, the rest of `other`."""

    def codegen(context, builder, signature, args):
        index = ir.VectorType(ir.IntType(32), chosen.lanes)
        limit = builder.trunc(args[0], ir.IntType(32))
        spread = builder.insert_element(ir.Constant(index, ir.Undefined), limit, ir.Constant(ir.IntType(32), 0))
        spread = builder.shuffle_vector(spread, spread, ir.Constant(index, None))
        below = builder.icmp_signed("<", ir.Constant(index, list(range(chosen.lanes))), spread)
        return builder.select(below, args[1], args[2])

    return chosen(types.int64, chosen, chosen), codegen


@intrinsic
def store(typingctx, array, index, vector):
    """Write all lanes to a one-dimensional C-contiguous array from `index` on. Unchecked, any alignment."""

    def codegen(context, builder, signature, args):
        address = _pointer(context, builder, array, args[0], args[1])
        builder.store(args[2], builder.bitcast(address, args[2].type.as_pointer()), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), codegen


@intrinsic
def tree_sum(typingctx, vector):
    """The sum of all lanes: upper half onto lower half until one is left."""

    def codegen(context, builder, signature, args):
        value, lanes = args[0], vector.lanes
        while lanes > 1:
            lanes //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            index = ir.VectorType(ir.IntType(32), lanes)
            lower = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(lanes))))
            upper = builder.shuffle_vector(value, undefined, ir.Constant(index, list(range(lanes, 2 * lanes))))
            value = builder.fadd(lower, upper)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return vector.dtype(vector), codegen
