"""From the stored bits of an element to the float that is multiplied. Exact, except for integers of 64 bits."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from sparsefmt.dtypes import DType
from sparsefmt.errors import UnsupportedError

FLOAT, HALF, SIGNED, UNSIGNED = range(4)
"""How to read the bits. FLOAT is bfloat16 at 16 bits; elements of 8 bits and fewer go through a table instead."""

_KINDS = {"BF16": FLOAT, "F16": HALF, "F32": FLOAT, "F64": FLOAT}


def kind_of(dtype: DType) -> int:
    """The kind for `widen`."""
    return _KINDS.get(dtype.name, SIGNED if dtype.name.startswith("I") else UNSIGNED)


def table_of(dtype: DType, accumulator: np.dtype) -> np.ndarray:
    """The value of each of the 256 patterns of a type of 8 bits or fewer, read-only; empty for wider types.

    Raises:
        UnsupportedError: complex64, which has no product here.
    """
    if dtype.name == "C64":
        raise UnsupportedError("dtype-product", "complex64 weights can be stored but not multiplied")
    if dtype.bits > 8:
        table = np.empty(0, accumulator)
    else:
        patterns = np.arange(1 << dtype.bits, dtype=np.uint8) if dtype.name != "BOOL" else np.arange(2, dtype=np.uint8)
        values = patterns.view(dtype.numpy).astype(accumulator)
        # patterns that do not occur widen to zero
        table = np.zeros(256, accumulator)
        table[: values.size] = values
    table.flags.writeable = False
    return table


@intrinsic
def _float_bits(typingctx, bits):
    """Reinterpret uint32 as float32, uint64 as float64."""
    dtype, llvm = (types.float32, ir.FloatType()) if bits == types.uint32 else (types.float64, ir.DoubleType())

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], llvm)

    return dtype(bits), codegen


def widen(bits, kind, table):
    """The value of an element, in the dtype of `table`."""
    raise NotImplementedError("for jitted code only")


@overload(widen)
def _widen(bits, kind, table):
    accumulator = table.dtype
    if bits == types.uint8:
        return lambda bits, kind, table: table[bits]
    if bits == types.uint16:

        def widen16(bits, kind, table):
            if kind == FLOAT:
                return accumulator(_float_bits(np.uint32(np.uint32(bits) << np.uint32(16))))
            if kind == HALF:
                magnitude = np.uint32(np.uint32(bits) & np.uint32(0x7FFF))
                sign = np.uint32((np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16))
                # a half's exponent bits moved to those of a float are 112 too small: exact also for subnormals
                value = _float_bits(np.uint32(magnitude << np.uint32(13))) * np.float32(2.0**112)
                if magnitude >= np.uint32(0x7C00):
                    value = _float_bits(np.uint32((magnitude << np.uint32(13)) | np.uint32(0x7F800000)))
                return accumulator(-value if sign else value)
            if kind == SIGNED:
                return accumulator(np.int16(bits))
            return accumulator(bits)

        return widen16
    signed = types.int32 if bits == types.uint32 else types.int64

    def widen_wide(bits, kind, table):
        if kind == FLOAT:
            return accumulator(_float_bits(bits))
        if kind == SIGNED:
            return accumulator(signed(bits))
        return accumulator(bits)

    return widen_wide
