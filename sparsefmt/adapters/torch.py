"""torch tensors. Those that are not strided become rows in `torch_sparse.py`.

Elements are moved as integers of the same width, so that NaN payloads survive.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from sparsefmt.adapters.bytes_rows import BytesRows
from sparsefmt.adapters.rows import Rows
from sparsefmt.adapters.torch_indexing import carried, indexed, pairs
from sparsefmt.adapters.torch_sparse import (
    SPARSE,
    SemiStructuredRows,
    check_semi_structured,
    check_sparse,
    compressed,
    coo,
    is_semi_structured,
)
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.errors import UnsupportedError
from sparsefmt.file_tensor import FileTensor

SHARES_TIED = True

_NAMES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}

# older versions of torch lack some
TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute) for name, attribute in _NAMES.items() if hasattr(torch, attribute)
}
"""torch's dtype for each dtype of the format that it has."""

DTYPES_BY_TORCH = {dtype: DTYPES[name] for name, dtype in TORCH_DTYPES.items()}
"""The format's dtype for each of these."""


def rows_of(tensor: torch.Tensor) -> Rows:
    """A tensor on any device as it is to be stored.

    Strided tensors are copied only where they lie elsewhere or in another order. Conjugated and negated views, whose
    memory holds something else than their elements, give their elements. Sparse tensors are made dense a run of rows at
    a time: stored elements keep their bits, and those of a COO tensor at one place are summed as torch does.

    Raises:
        UnsupportedError: the format does not have the dtype, or not with this shape, or a kind of tensor whose elements
            cannot be had.
        FormatError: a sparse tensor with indices outside it, which torch does not look for.
        NotImplementedError: a tensor without data, of device "meta".
    """
    check_kind(tensor)
    dtype = dtype_of(tensor)
    if is_semi_structured(tensor):
        return SemiStructuredRows(dtype, tensor)
    tensor = tensor.detach()
    if tensor.layout == torch.strided:
        return _strided(dtype, tensor)
    return coo(dtype, tensor) if tensor.layout == torch.sparse_coo else compressed(dtype, tensor)


def identity_of(tensor: torch.Tensor) -> object:
    """Equal for two that are one object, or the same elements of the same memory."""
    if not is_strided(tensor) or not tensor.numel() or tensor.device.type == "meta":
        return id(tensor)
    views = tensor.is_conj(), tensor.is_neg()
    return str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), views


def device_of(device: Any) -> torch.device:
    """Any device of torch; None is the CPU. torch's default device is not used.

    A device that the machine does not have is noticed when the first tensor is asked for, before anything is read.

    Raises:
        RuntimeError, TypeError: torch raises them for a text that is not a device.
    """
    return torch.device("cpu" if device is None else device)


def shape_of(stored: FileTensor) -> tuple[int, ...]:
    """The shape that `tensor_of` gives: of F4, an element of torch is a pair.

    Raises:
        UnsupportedError: F4 that is not made of pairs.
    """
    shape = stored.shape
    if stored.dtype.name != "F4":
        return shape
    if not shape or shape[-1] % 2:
        raise UnsupportedError("shape-odd", f"torch holds F4 in pairs, which {list(shape)} has not", tensor=stored.name)
    return (*shape[:-1], shape[-1] // 2)


def nbytes_of(stored: FileTensor) -> int:
    """Bytes that `tensor_of` allocates for the result. F4 takes half a byte for each element."""
    dtype = stored.dtype
    return dtype.nbytes(stored.rows * stored.cols) if dtype.packed else stored.nbytes


def tensor_of(stored: FileTensor, device: Any = "cpu") -> torch.Tensor:
    """A tensor in a file as a strided one, on whatever torch takes for a device.

    Raises:
        UnsupportedError: torch does not have the dtype, or not with this shape.
        RuntimeError, AssertionError: torch raises them for a device that the machine does not have.
        as `FileTensor.whole`.
    """
    wanted, place = torch_dtype_of(stored), _device_that_is_there(device)
    shape = shape_of(stored)
    bits = pairs(stored, range(shape[0])) if stored.dtype.packed else carried(stored.whole(), stored.dtype)
    return _as(wanted, bits, shape).to(place)


def part_of(stored: FileTensor, key: Any, device: Any = "cpu") -> torch.Tensor:
    """`tensor_of(stored)[key]`, indexed as torch does it.

    Raises:
        IndexError, TypeError: torch raises them for an index that it does not take.
        as `tensor_of`.
    """
    wanted, place = torch_dtype_of(stored), _device_that_is_there(device)
    bits = indexed(stored, shape_of(stored), key)
    if bits.untyped_storage().nbytes() != bits.numel() * bits.element_size():
        bits = bits.clone(memory_format=torch.contiguous_format)
    return _as(wanted, bits.contiguous(), tuple(bits.shape)).to(place)


def dtype_of(tensor: torch.Tensor) -> DType:
    """The dtype of the format for a tensor. Raises UnsupportedError if there is none."""
    found = DTYPES_BY_TORCH.get(tensor.dtype)
    if found is None:
        raise UnsupportedError(
            "dtype-unknown",
            f"dtype {tensor.dtype} cannot be stored; cast it to one of {', '.join(map(str, DTYPES_BY_TORCH))}",
        )
    return found


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a view of memory: dense, and no stand-in for something else."""
    return tensor.layout == torch.strided and not tensor.is_nested and not _is_stand_in(tensor)


def check_kind(tensor: torch.Tensor) -> None:
    """Raise UnsupportedError if `rows_of` has no way with this kind of tensor, before anything is read."""
    dtype = dtype_of(tensor)
    if is_semi_structured(tensor):
        check_semi_structured(tensor)
    elif _is_stand_in(tensor):
        raise UnsupportedError(
            "tensor-subclass",
            f"a {type(tensor).__module__}.{type(tensor).__qualname__}, whose elements only it knows: make it a plain"
            " torch.Tensor first",
        )
    elif tensor.is_nested or tensor.layout not in (torch.strided, *SPARSE):
        kind = "nested" if tensor.is_nested else f"of layout {tensor.layout}"
        raise UnsupportedError("tensor-layout", f"a tensor {kind}: make it strided or sparse first")
    elif tensor.layout in SPARSE:
        check_sparse(tensor, dtype)


def torch_dtype_of(stored: FileTensor) -> torch.dtype:
    """torch's dtype for a tensor in a file. Raises UnsupportedError, naming the tensor, if torch has none."""
    found = TORCH_DTYPES.get(stored.dtype.name)
    if found is None:
        raise UnsupportedError(
            "dtype-unsupported", f"torch {torch.__version__} has no dtype for {stored.dtype.name}", tensor=stored.name
        )
    return found


def as_torch(array: np.ndarray, dtype: DType) -> torch.Tensor:
    """An array of a dtype of whole bytes, or of its bits, as torch has it: the same memory, which must be writable."""
    return carried(array, dtype).view(TORCH_DTYPES[dtype.name])


@cache
def _expect_there(device: torch.device) -> None:
    """Raise torch's own error if there is no such device."""
    torch.empty(1, device="cpu").to(device)


def _device_that_is_there(device: Any) -> torch.device:
    found = device_of(device)
    if found.type != "cpu":
        _expect_there(found)
    return found


def _as(wanted: torch.dtype, bits: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Elements of a dtype, made of their bits."""
    if not bits.numel():
        return torch.empty(shape, dtype=wanted, device="cpu")
    # a view changes the dtype of what has a dimension
    return bits.reshape(-1).view(wanted).reshape(shape)


def _strided(dtype: DType, tensor: torch.Tensor) -> BytesRows:
    tensor = tensor.to("cpu").resolve_conj().resolve_neg().contiguous()
    # a dimension of one element may have any stride, which a view as bytes would stumble over
    data = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    shape = tuple(tensor.shape)
    if dtype.packed:
        # an element of torch is a pair
        if not shape:
            raise UnsupportedError("shape-odd", "a pair of F4 without a dimension cannot be stored")
        shape = (*shape[:-1], 2 * shape[-1])
    return BytesRows(lambda offset, size: data[offset : offset + size], dtype, shape)


def _is_stand_in(tensor: torch.Tensor) -> bool:
    """Whether it is of a class that answers torch's operators itself, and so has no memory that could be looked at."""
    return type(tensor).__torch_dispatch__ != torch.Tensor.__torch_dispatch__
