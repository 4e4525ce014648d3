"""The element types. There is one table, and all other code asks it.

Names are those of safetensors, so that a conversion renames nothing. Elements are moved as unsigned integers of the
same width (`bits_dtype`), never as floats, so that NaN payloads and subnormals survive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from sparsefmt.errors import UnsupportedError
from sparsefmt.lazily import computed_once


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: name in the file.
        nbits: width of one element. 4 and 6 are packed without gaps, first element in the lowest bits.
        numpy: the numpy (or ml_dtypes) type in memory; sub-byte types take one byte per element there.
        prunable: whether sparse layouts can hold it. All-zero bits must mean zero for that.
        negative_zero: the bit pattern of -0.0, or 0 if the type has none.
    """

    name: str
    nbits: int
    numpy: np.dtype
    prunable: bool
    negative_zero: int = 0

    def __hash__(self) -> int:
        # names are unique, and every product looks up its dtypes
        return hash(self.name)

    @property
    def packed(self) -> bool:
        """Whether elements are narrower than a byte and travel packed."""
        return self.nbits < 8

    @computed_once
    def bits_dtype(self) -> np.dtype:
        """Little-endian unsigned integer that carries one element (or, packed, one byte of elements)."""
        return np.dtype(f"<u{max(self.nbits, 8) // 8}")

    @computed_once
    def kept_bits(self) -> int:
        """The bits of an element of which +0 and -0.0 have none and every other has some: a number of 64 bits, signed,
        of which the lowest are meant."""
        return -1 if not self.negative_zero else self.negative_zero - 1

    @computed_once
    def negative_zero_word(self) -> int:
        """`negative_zero` as a number of 64 bits, signed, of which the lowest are meant."""
        return self.negative_zero - (self.negative_zero >> 63 << 64)

    def nbytes(self, elements: int) -> int:
        """Bytes of `elements` consecutive elements. A partly used last byte counts as a whole one."""
        return (elements * self.nbits + 7) // 8


def _dtype(name: str, nbits: int, numpy: Any, prunable: bool, negative_zero: int = 0) -> DType:
    return DType(name, nbits, np.dtype(numpy), prunable, negative_zero)


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _dtype("BOOL", 8, np.bool_, False),
        _dtype("F4", 4, ml_dtypes.float4_e2m1fn, False),
        _dtype("F6_E2M3", 6, ml_dtypes.float6_e2m3fn, False),
        _dtype("F6_E3M2", 6, ml_dtypes.float6_e3m2fn, False),
        _dtype("U8", 8, np.uint8, True),
        _dtype("I8", 8, np.int8, True),
        _dtype("F8_E5M2", 8, ml_dtypes.float8_e5m2, True, 0x80),
        _dtype("F8_E4M3", 8, ml_dtypes.float8_e4m3fn, True, 0x80),
        # all-zero bits of an E8M0 are 2**-127, not zero
        _dtype("F8_E8M0", 8, ml_dtypes.float8_e8m0fnu, False),
        # 0x80 is the NaN of the fnuz types: they have no negative zero
        _dtype("F8_E4M3FNUZ", 8, ml_dtypes.float8_e4m3fnuz, True),
        _dtype("F8_E5M2FNUZ", 8, ml_dtypes.float8_e5m2fnuz, True),
        _dtype("I16", 16, "<i2", True),
        _dtype("U16", 16, "<u2", True),
        _dtype("F16", 16, "<f2", True, 0x8000),
        _dtype("BF16", 16, ml_dtypes.bfloat16, True, 0x8000),
        _dtype("I32", 32, "<i4", True),
        _dtype("U32", 32, "<u4", True),
        _dtype("F32", 32, "<f4", True, 0x8000_0000),
        _dtype("C64", 64, "<c8", False),
        _dtype("F64", 64, "<f8", True, 0x8000_0000_0000_0000),
        _dtype("I64", 64, "<i8", True),
        _dtype("U64", 64, "<u8", True),
    )
}

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
"""The two dtypes in which products are summed."""

SUMMED_IN_DOUBLE = ("F64", "I32", "U32", "I64", "U64")
"""dtypes of weights whose products are summed in float64, whatever x is (SPEC.md, "Products")."""

_BY_NUMPY = {dtype.numpy: dtype for dtype in DTYPES.values()}


def dtype_of(numpy_dtype: np.dtype) -> DType:
    """The DType of a numpy type in any byte order. Raises UnsupportedError if the format has none."""
    found = _BY_NUMPY.get(np.dtype(numpy_dtype).newbyteorder("<"))
    if found is None:
        raise UnsupportedError(
            "dtype-unknown",
            f"dtype {np.dtype(numpy_dtype)} cannot be stored; cast it to one of {', '.join(DTYPES)}",
        )
    return found


def as_bits(array: np.ndarray, dtype: DType) -> np.ndarray:
    """C-contiguous, little-endian unsigned view of `array` with its shape. It is a copy only where one is needed.

    Sub-byte types give one byte per element here. `pack` makes the packed bytes of them.
    """
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    # ascontiguousarray would turn 0-d into 1-d
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    return contiguous.view(dtype.bits_dtype)


def pack(elements: np.ndarray, dtype: DType) -> np.ndarray:
    """Pack one-byte-per-element sub-byte patterns, first element in the lowest bits, unused last bits zero."""
    bits = np.unpackbits(elements.reshape(-1, 1), axis=1, count=dtype.nbits, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, dtype: DType, elements: int) -> np.ndarray:
    """The inverse of `pack`: `elements` patterns, one per byte."""
    bits = np.unpackbits(packed, count=elements * dtype.nbits, bitorder="little")
    return np.packbits(bits.reshape(elements, dtype.nbits), axis=1, bitorder="little").reshape(elements)
