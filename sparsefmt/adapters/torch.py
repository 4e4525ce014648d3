"""torch tensors: strided, sparse in each of torch's layouts, and semi-structured (2:4).

Elements are moved as integers of the same width, so that NaN payloads survive.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from sparsefmt.adapters.blocks import BlocksRows, as_blocks, expanded, flat_places
from sparsefmt.adapters.bytes_rows import BytesRows
from sparsefmt.adapters.rows import Rows
from sparsefmt.adapters.torch_indexing import carried, indexed, pairs
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

_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)
_BLOCKED = (torch.sparse_bsr, torch.sparse_bsc)
_SPARSE = (torch.sparse_coo, torch.sparse_csr, *_BY_COLUMN, torch.sparse_bsr)

_CUTLASS_ROWS = 32
"""Rows within which CUTLASS permutes the metadata of 2:4 tensors."""


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
    if _is_semi_structured(tensor):
        return SemiStructuredRows(dtype, tensor)
    tensor = tensor.detach()
    if tensor.layout == torch.strided:
        return _strided(dtype, tensor)
    return _coo(dtype, tensor) if tensor.layout == torch.sparse_coo else _compressed(dtype, tensor)


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
    dtype_of(tensor)
    if _is_semi_structured(tensor):
        _check_semi_structured(tensor)
    elif _is_stand_in(tensor):
        raise UnsupportedError(
            "tensor-subclass",
            f"a {type(tensor).__module__}.{type(tensor).__qualname__}, whose elements only it knows: make it a plain"
            " torch.Tensor first",
        )
    elif tensor.is_nested or tensor.layout not in (torch.strided, *_SPARSE):
        kind = "nested" if tensor.is_nested else f"of layout {tensor.layout}"
        raise UnsupportedError("tensor-layout", f"a tensor {kind}: make it strided or sparse first")
    elif tensor.layout in _SPARSE:
        _check_sparse(tensor)


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


class SemiStructuredRows(Rows):
    """A 2:4 tensor as CUTLASS has it, made dense by torch's own function a run of rows at a time."""

    def __init__(self, dtype: DType, tensor: torch.Tensor) -> None:
        super().__init__(dtype, tuple(tensor.shape))
        # as integers: torch's function would change the payloads of NaN. Four bytes are two elements of one half each
        carrier = torch.int8 if dtype.nbits == 8 else torch.int16
        self._packed = tensor.packed.detach().to("cpu").view(carrier)  # type: ignore[attr-defined]
        # column pairs of the metadata lie one after the other, each with all its rows
        self._meta = tensor.meta.to("cpu").reshape(-1, self.rows, 2)  # type: ignore[attr-defined]

    def bits(self, begin: int, end: int) -> np.ndarray:
        from torch.sparse import _semi_structured_conversions as conversions

        first = begin - begin % _CUTLASS_ROWS
        last = min(-(-end // _CUTLASS_ROWS) * _CUTLASS_ROWS, self.rows)
        meta = self._meta[:, first:last].reshape(last - first, -1)
        rows = conversions.sparse_semi_structured_to_dense_cutlass(self._packed[first:last], meta).numpy()
        return rows.view(self.dtype.bits_dtype)[begin - first : end - first]


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


def _coo(dtype: DType, tensor: torch.Tensor) -> BlocksRows:
    places = _coo_places(tensor)
    if not tensor.is_coalesced():
        # only now: it would bring an index that is outside to another place
        tensor = _coalesced(tensor)
        places = _coo_places(tensor)
    return BlocksRows(dtype, tuple(tensor.shape), places, as_blocks(_bits(tensor._values(), dtype)))


def _coo_places(tensor: torch.Tensor) -> np.ndarray:
    return flat_places(list(_numbers(tensor._indices())), tensor.shape[: tensor.sparse_dim()])


def _coalesced(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return tensor.coalesce()
    except NotImplementedError:
        indices = tensor._indices()
        if torch.unique(indices, dim=1).shape[1] == indices.shape[1]:
            return tensor
        raise UnsupportedError(
            "tensor-duplicates", f"it has several elements at one place, which torch cannot sum in {tensor.dtype}"
        ) from None


def _compressed(dtype: DType, tensor: torch.Tensor) -> BlocksRows:
    """CSR, CSC, BSR and BSC; CSR and CSC with dimensions before and after those two."""
    by_column = tensor.layout in _BY_COLUMN
    starts = _numbers(tensor.ccol_indices() if by_column else tensor.crow_indices())
    inner = _numbers(tensor.row_indices() if by_column else tensor.col_indices())
    batches, entries = inner.shape[:-1], inner.shape[-1]
    outer = [expanded(row, entries) for row in starts.reshape(-1, starts.shape[-1])]
    first = np.concatenate(outer) if outer else np.zeros(0, np.int64)
    pair = (inner.reshape(-1), first) if by_column else (first, inner.reshape(-1))
    batch = [np.repeat(number.reshape(-1), entries) for number in np.indices(batches)]
    values = _bits(tensor.values(), dtype)
    block = values.shape[-2:] if tensor.layout in _BLOCKED else ()
    sizes = list(tensor.shape[: len(batches) + 2])
    if block:
        sizes = [size // side for size, side in zip(sizes, block, strict=True)]
    elements = as_blocks(values.reshape(-1, *values.shape[len(batches) + 1 :]), block)
    return BlocksRows(dtype, tuple(tensor.shape), flat_places([*batch, *pair], sizes), elements)


def _check_sparse(tensor: torch.Tensor) -> None:
    if dtype_of(tensor).packed:
        raise UnsupportedError("tensor-layout", f"a sparse tensor of {tensor.dtype}: call .to_dense() on it first")
    if not tensor.sparse_dim():
        raise UnsupportedError(
            "tensor-layout", "a sparse tensor without sparse dimensions: call .to_dense() on it first"
        )
    if tensor.layout in _BLOCKED and tensor.ndim > 2:
        raise UnsupportedError(
            "tensor-layout", f"{tensor.layout} with {tensor.ndim} dimensions, not 2: call .to_dense() on it first"
        )


def _is_stand_in(tensor: torch.Tensor) -> bool:
    """Whether it is of a class that answers torch's operators itself, and so has no memory that could be looked at."""
    return type(tensor).__torch_dispatch__ != torch.Tensor.__torch_dispatch__


def _is_semi_structured(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.sparse.SparseSemiStructuredTensor)


def _check_semi_structured(tensor: torch.Tensor) -> None:
    fields = (getattr(tensor, name, None) for name in ("packed", "meta", "compressed_swizzled_bitmask"))
    packed, meta, bitmask = fields
    if packed is None or meta is None or bitmask is not None or not meta.is_contiguous():
        raise UnsupportedError(
            "tensor-layout",
            f"a {type(tensor).__name__} in an order that its own kernels alone know: store the dense tensor it was made"
            " of, or what .to_dense() gives",
        )


def _bits(tensor: torch.Tensor, dtype: DType) -> np.ndarray:
    """Elements as unsigned integers, with the shape that they have."""
    tensor = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    flat = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.zeros(0, np.uint8)
    return flat.view(dtype.bits_dtype).reshape(tensor.shape)


def _numbers(indices: torch.Tensor) -> np.ndarray:
    return indices.detach().to("cpu").numpy()
