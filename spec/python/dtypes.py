"""Section 3 of SPEC.md: element types, and the numbers that elements mean."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class DType(NamedTuple):
    name: str
    bits: int
    sparse: bool  # whether sparse layouts are possible
    negative_zero: int | None = None

    @property
    def width(self) -> int:
        """Bytes of an element; 1 for packed types."""
        return max(self.bits // 8, 1)


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("BOOL", 8, False),
        DType("F4", 4, False),
        DType("F6_E2M3", 6, False),
        DType("F6_E3M2", 6, False),
        DType("U8", 8, True),
        DType("I8", 8, True),
        DType("F8_E5M2", 8, True, 0x80),
        DType("F8_E4M3", 8, True, 0x80),
        DType("F8_E8M0", 8, False),
        DType("F8_E4M3FNUZ", 8, True),
        DType("F8_E5M2FNUZ", 8, True),
        DType("I16", 16, True),
        DType("U16", 16, True),
        DType("F16", 16, True, 1 << 15),
        DType("BF16", 16, True, 1 << 15),
        DType("I32", 32, True),
        DType("U32", 32, True),
        DType("F32", 32, True, 1 << 31),
        DType("C64", 64, False),
        DType("F64", 64, True, 1 << 63),
        DType("I64", 64, True),
        DType("U64", 64, True),
    )
}

# ------------------------------------------------------------------------------------------------------------- Values

NUMPY_TYPES = {
    "BOOL": "<u1",
    "U8": "<u1",
    "I8": "<i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
SMALL_FLOATS: dict[str, tuple[int, int, int, list[int]]] = {  # exponent bits, mantissa bits, bias, NaNs; none has Inf
    "F4": (2, 1, 1, []),
    "F6_E2M3": (2, 3, 1, []),
    "F6_E3M2": (3, 2, 3, []),
    "F8_E4M3": (4, 3, 7, [0x7F, 0xFF]),
    "F8_E4M3FNUZ": (4, 3, 8, [0x80]),
    "F8_E5M2FNUZ": (5, 2, 16, [0x80]),
}


def numbers(dtype: DType, elements: np.ndarray, a: np.dtype) -> np.ndarray:
    """What the bits of elements mean, in type A; of packed types perhaps one number too many at the end."""
    if dtype.name in NUMPY_TYPES:
        return elements.view(NUMPY_TYPES[dtype.name]).astype(a)
    if dtype.name == "BF16":  # upper half of binary32
        return (elements.astype("<u4") << 16).view("<f4").astype(a)
    if dtype.name == "F8_E5M2":  # upper half of binary16
        return (elements.astype("<u2") << 8).view("<f2").astype(a)
    if dtype.name == "F8_E8M0":
        return np.where(elements == 0xFF, np.nan, np.ldexp(1.0, elements.astype(int) - 127)).astype(a)
    exponent_bits, mantissa_bits, bias, nans = SMALL_FLOATS[dtype.name]
    bits = np.unpackbits(elements, bitorder="little")
    codes = bits[: bits.size // dtype.bits * dtype.bits].reshape(-1, dtype.bits) @ (1 << np.arange(dtype.bits))
    exponent, fraction = (codes >> mantissa_bits) % (1 << exponent_bits), codes % (1 << mantissa_bits)
    mantissa = np.where(exponent > 0, 1 << mantissa_bits, 0) + fraction
    magnitude = np.ldexp(mantissa.astype(float), np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(np.isin(codes, nans), np.nan, np.where(codes >> (dtype.bits - 1), -magnitude, magnitude)).astype(a)
