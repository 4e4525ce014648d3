"""LLVM pieces that compute, for those who define intrinsics. What moves bits is in `sparsefmt/llvm.py`.

All but what `expand.py`, `dots.py` and `gathered.py` add is generic: it becomes AVX-512, AVX2, NEON or scalars, with
the same bits everywhere, since fma is always fused, with or without an instruction for it. Some is written differently
for NEON, of which LLVM makes better code then (`tools/bench/cycles.py` shows it): the same operations, the same bits.

Memory is addressed by plain int64 addresses: nothing is checked here.
"""

from __future__ import annotations

from llvmlite import ir

from sparsefmt.isa import ISA, NEON
from sparsefmt.kernels.kinds import BF16, DOTS, E4M3, E5M2, F16, F32, F64, INT8, UINT8
from sparsefmt.llvm import I8, I16, I32, call, lanes_of

_ELEMENTS = {
    F32: ir.FloatType(),
    BF16: I16,
    F16: I16,
    F64: ir.DoubleType(),
    INT8: I8,
    UINT8: I8,
    E4M3: I8,
    E5M2: I8,
    DOTS: I8,
}


def fused(builder, a, b, c):
    """a * b + c of LLVM vectors or scalars with one rounding."""
    element = a.type.element if isinstance(a.type, ir.VectorType) else a.type
    suffix = "f32" if isinstance(element, ir.FloatType) else "f64"
    if isinstance(a.type, ir.VectorType):
        suffix = f"v{a.type.count}{suffix}"
    return call(builder, f"llvm.fma.{suffix}", a.type, [a, b, c])


def opaque(builder, value, register: str, *others):
    """A value as it is, which LLVM takes for the result of some instruction on it and on other values.

    `register`: LLVM's name of the kind of register that it is in, "r" or "w" of NEON, "v" for vectors of AVX-512;
    others are in "w", which floats and vectors of NEON are. Costs no instruction.
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
    if kind in (INT8, UINT8):
        integers = (builder.sext if kind == INT8 else builder.zext)(vector, word)
        return builder.sitofp(integers, single)
    if kind in (E4M3, E5M2):
        # in the upper half of 16 bits, E5M2 is a float16
        halves = ir.VectorType(I16, vector.type.count)
        upper = builder.shl(builder.zext(vector, halves), ir.Constant(halves, [8] * vector.type.count))
        return from_upper_bytes(builder, upper, kind)
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


def from_upper_bytes(builder, halves, kind: int):
    """Floats of eight bits, in the upper halves of 16 bits whose lower ones are zero, as float32."""
    if kind == E5M2:
        return widened(builder, halves, F16)

    def constant(value):
        return ir.Constant(halves.type, [value] * halves.type.count)

    # its exponent has a bit less: moved by one bit it is a float16 that is 256 times too small, subnormals included
    moved = builder.and_(builder.ashr(halves, constant(1)), constant(0xBFFF))
    nan = builder.icmp_unsigned("==", builder.and_(halves, constant(0x7F00)), constant(0x7F00))
    moved = builder.or_(moved, builder.and_(builder.sext(nan, halves.type), constant(0x7E00)))
    small = widened(builder, moved, F16)
    return builder.fmul(small, ir.Constant(small.type, [256.0] * small.type.count))
