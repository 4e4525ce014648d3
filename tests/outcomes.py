"""What the reader of spec/ and the library make of a file: its tensors, or the code of the fault."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import sparsefmt
from tools.vectors.spec_reader import spec_reader

reader = spec_reader()

DTYPES = {
    "BOOL": np.bool_,
    "F4": ml_dtypes.float4_e2m1fn,
    "F6_E2M3": ml_dtypes.float6_e2m3fn,
    "F6_E3M2": ml_dtypes.float6_e3m2fn,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # all others: whole bytes


def packed(array: np.ndarray, dtype: str) -> bytes:
    """Dense bytes as section 3 lays them out."""
    data = np.frombuffer(array.tobytes(), np.uint8)
    if dtype in BITS:
        data = np.packbits(np.unpackbits(data[:, None], axis=1, bitorder="little")[:, : BITS[dtype]], bitorder="little")
    return data.tobytes()


def dtype_name(array: np.ndarray) -> str:
    return next(name for name, numpy_type in DTYPES.items() if np.dtype(numpy_type) == array.dtype)


def outcome_of_reader(data: bytes) -> str | dict[str, bytes]:
    try:
        return {name: tensor.data for name, tensor in reader.read(data).items()}
    except reader.Fault as fault:
        return fault.code


def outcome_of_library(data: bytes) -> str | dict[str, bytes]:
    try:
        dense = sparsefmt.load(data, layout="dense")
        for name, tensor in sparsefmt.load(data).items():
            assert not isinstance(tensor, sparsefmt.SparseTensor) or tensor.todense().tobytes() == dense[name].tobytes()
        return {name: packed(array, dtype_name(array)) for name, array in dense.items()}
    except sparsefmt.SparsefmtError as error:
        return error.code
