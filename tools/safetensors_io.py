"""Tensors of a safetensors file, read and written, also in element types that numpy lacks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, deserialize, safe_open, serialize_file

# The dtypes whose values are read, cast and pruned. All others are carried as bytes: integers, but also the
# float formats in which an element has no zero, no sign of zero or no byte of its own.
FLOAT_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}

# The header of a file says "BF16" where the writer of the safetensors library wants "bfloat16".
WRITER_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file: `values` has its shape for FLOAT_DTYPES, and is flat bytes for the rest."""

    dtype: str
    shape: tuple[int, ...]
    values: NDArray[Any]


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a file in the order of their names, and its metadata. Holds about twice the file's size."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    stored = deserialize(path.read_bytes())
    tensors = {}
    for name, fields in sorted(stored, key=lambda item: item[0]):
        dtype, shape, data = fields["dtype"], tuple(fields["shape"]), fields["data"]
        if dtype not in WRITER_DTYPES:
            raise ValueError(f"tensor {name!r} is of dtype {dtype}, which the safetensors library cannot write")
        if dtype in FLOAT_DTYPES:
            values = np.frombuffer(data, FLOAT_DTYPES[dtype]).reshape(shape)
        else:
            values = np.frombuffer(data, np.uint8)
        tensors[name] = StoredTensor(dtype, shape, values)
    return tensors, metadata


def write_safetensors(path: Path, tensors: Mapping[str, StoredTensor], metadata: dict[str, str]) -> None:
    specs = {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if tensor.dtype == "F4":  # the writer counts bytes here, the header elements, two in a byte
            shape = (*shape[:-1], shape[-1] // 2)
        specs[name] = TensorSpec(
            dtype=WRITER_DTYPES[tensor.dtype],
            shape=shape,
            data_ptr=tensor.values.ctypes.data,
            data_len=tensor.values.nbytes,
        )
    serialize_file(specs, path, metadata=metadata)


def cast_tensor(tensor: StoredTensor, dtype: str) -> StoredTensor:
    if tensor.dtype not in FLOAT_DTYPES:
        return tensor
    with np.errstate(over="ignore"):  # what is too large becomes infinite, as in other frameworks' casts
        return StoredTensor(dtype, tensor.shape, tensor.values.astype(FLOAT_DTYPES[dtype]))
