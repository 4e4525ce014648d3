"""Sparse tensors of torch as rows: COO, CSR, CSC, BSR and BSC, and semi-structured (2:4)."""

from __future__ import annotations

import numpy as np
import torch

from sparsefmt.adapters.blocks import BlocksRows, as_blocks, expanded, flat_places
from sparsefmt.adapters.elements import ElementsRows, matrix_by_columns, matrix_by_coordinates, matrix_by_rows
from sparsefmt.adapters.rows import Rows
from sparsefmt.dtypes import DType
from sparsefmt.errors import UnsupportedError

_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)
_BLOCKED = (torch.sparse_bsr, torch.sparse_bsc)
SPARSE = (torch.sparse_coo, torch.sparse_csr, *_BY_COLUMN, torch.sparse_bsr)
"""The sparse layouts of torch."""

_CUTLASS_ROWS = 32
"""Rows within which CUTLASS permutes the metadata of 2:4 tensors."""


class SemiStructuredRows(Rows):
    """A 2:4 tensor as CUTLASS has it, made dense by torch's own function a run of rows at a time."""

    def __init__(self, dtype: DType, tensor: torch.Tensor) -> None:
        super().__init__(dtype, tuple(tensor.shape))
        # as integers: torch's function would change the payloads of NaN. Four bytes are two elements of one half each
        carrier = torch.int8 if dtype.nbits == 8 else torch.int16
        self._kept = tensor.packed.detach().to("cpu").view(carrier)  # type: ignore[attr-defined]
        # column pairs of the metadata lie one after the other, each with all its rows
        self._meta = tensor.meta.to("cpu").reshape(-1, self.rows, 2)  # type: ignore[attr-defined]

    def bits(self, begin: int, end: int) -> np.ndarray:
        from torch.sparse import _semi_structured_conversions as conversions

        first = begin - begin % _CUTLASS_ROWS
        last = min(-(-end // _CUTLASS_ROWS) * _CUTLASS_ROWS, self.rows)
        meta = self._meta[:, first:last].reshape(last - first, -1)
        rows = conversions.sparse_semi_structured_to_dense_cutlass(self._kept[first:last], meta).numpy()
        return rows.view(self.dtype.bits_dtype)[begin - first : end - first]


def coo(dtype: DType, tensor: torch.Tensor) -> Rows:
    """COO, coalesced or not."""
    if tensor.ndim == tensor.sparse_dim() == 2:
        rows, columns = _numbers(tensor._indices())
        matrix = matrix_by_coordinates(dtype, tuple(tensor.shape), rows, columns, _bits(tensor._values(), dtype))
        # else torch sums what is at one place
        if tensor.is_coalesced() or isinstance(matrix, ElementsRows):
            return matrix
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


def compressed(dtype: DType, tensor: torch.Tensor) -> Rows:
    """CSR, CSC, BSR and BSC; CSR and CSC with dimensions before and after those two."""
    by_column = tensor.layout in _BY_COLUMN
    starts = _numbers(tensor.ccol_indices() if by_column else tensor.crow_indices())
    inner = _numbers(tensor.row_indices() if by_column else tensor.col_indices())
    values = _bits(tensor.values(), dtype)
    if tensor.ndim == 2 and tensor.layout not in _BLOCKED:
        matrix_of = matrix_by_columns if by_column else matrix_by_rows
        return matrix_of(dtype, tuple(tensor.shape), starts, inner, values)
    batches, entries = inner.shape[:-1], inner.shape[-1]
    outer = [expanded(row, entries) for row in starts.reshape(-1, starts.shape[-1])]
    first = np.concatenate(outer) if outer else np.zeros(0, np.int64)
    pair = (inner.reshape(-1), first) if by_column else (first, inner.reshape(-1))
    batch = [np.repeat(number.reshape(-1), entries) for number in np.indices(batches)]
    block = values.shape[-2:] if tensor.layout in _BLOCKED else ()
    sizes = list(tensor.shape[: len(batches) + 2])
    if block:
        sizes = [size // side for size, side in zip(sizes, block, strict=True)]
    elements = as_blocks(values.reshape(-1, *values.shape[len(batches) + 1 :]), block)
    return BlocksRows(dtype, tuple(tensor.shape), flat_places([*batch, *pair], sizes), elements)


def check_sparse(tensor: torch.Tensor, dtype: DType) -> None:
    """Raise UnsupportedError if this sparse tensor cannot be rows."""
    if dtype.packed:
        raise UnsupportedError("tensor-layout", f"a sparse tensor of {tensor.dtype}: call .to_dense() on it first")
    if not tensor.sparse_dim():
        raise UnsupportedError(
            "tensor-layout", "a sparse tensor without sparse dimensions: call .to_dense() on it first"
        )
    if tensor.layout in _BLOCKED and tensor.ndim > 2:
        raise UnsupportedError(
            "tensor-layout", f"{tensor.layout} with {tensor.ndim} dimensions, not 2: call .to_dense() on it first"
        )


def is_semi_structured(tensor: torch.Tensor) -> bool:
    """Whether it is a 2:4 tensor of torch."""
    return isinstance(tensor, torch.sparse.SparseSemiStructuredTensor)


def check_semi_structured(tensor: torch.Tensor) -> None:
    """Raise UnsupportedError if this 2:4 tensor cannot be rows."""
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
