"""torch tensors, to and from bits: moved as integers of the same width, so that NaN payloads survive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sparsefmt.adapters import Rows
from sparsefmt.adapters import torch as torch_adapter
from sparsefmt.adapters.torch import TORCH_DTYPES
from sparsefmt.dtypes import DTYPES, DType, as_bits, pack
from sparsefmt.errors import LimitError, SparsefmtError, UnsupportedError
from sparsefmt.frameworks.contract import Framework
from sparsefmt.frameworks.host import own
from sparsefmt.sparse_file import SparseFile

_PAIRS_AT_ONCE = 1 << 22
"""Elements of F4 to pack at a time: as fast as more, and little beside the tensor."""


def dtype_of(name: str, tensor: torch.Tensor) -> DType:
    """The dtype of the format for a tensor. Raises UnsupportedError, naming the tensor, if there is none."""
    with naming(name):
        return torch_adapter.dtype_of(tensor)


def rows_of(name: str, tensor: torch.Tensor) -> Rows:
    """A tensor as it is to be stored, as `sparsefmt.adapters.torch.rows_of` has it; its errors name the tensor."""
    with naming(name):
        return torch_adapter.rows_of(tensor)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let errors say to which tensor they belong."""
    try:
        yield
    except SparsefmtError as error:
        raise error.within(name) from None
    except NotImplementedError as error:
        raise NotImplementedError(f"tensor {name!r}: {error}") from None


class TorchFramework(Framework):
    """PyTorch.

    Args:
        device: any device of torch; None is the CPU. torch's default device is not used.

    Raises:
        RuntimeError, TypeError: torch raises them for a text that is not a device. A device that the machine does not
            have is noticed when the first tensor is asked for, before anything is read.
    """

    ties = True

    def __init__(self, device: Any = "cpu") -> None:
        self._device = torch.device("cpu" if device is None else device)
        self._there = self._device.type == "cpu"

    def tensor(self, file: SparseFile, name: str) -> torch.Tensor:
        dtype = self._begin(file, name)
        part = file.get_slice(name)
        shape = self.shape(file, name)
        bits = _pairs(file, name, range(shape[0])) if dtype.packed else _carried(file.get_tensor(name), dtype)
        return self._finish(bits, dtype, shape if dtype.packed else part.shape)

    def part(self, file: SparseFile, name: str, key: Any) -> torch.Tensor:
        dtype = self._begin(file, name)
        shape = self.shape(file, name)
        parts = key if isinstance(key, tuple) else (key,)
        if _is_basic(parts):
            # torch's errors for what does not fit, without a byte of data
            torch.empty(shape, dtype=torch.int8, device="meta")[key]
        if dtype.packed:
            bits = _part_of_pairs(file, name, shape, parts)
        elif _is_basic(parts):
            # for these, numpy and torch agree
            bits = _carried(own(np.asarray(file.get_slice(name)[key])), dtype)
        else:
            rows = _chosen_rows(parts, shape)
            if rows is None:
                bits = _carried(file.get_tensor(name), dtype)[key]
            else:
                bits = _carried(file.get_slice(name)[rows], dtype)[(slice(None), *parts[1:])]
        if bits.untyped_storage().nbytes() != bits.numel() * bits.element_size():
            bits = bits.clone(memory_format=torch.contiguous_format)
        bits = bits.contiguous()
        return self._finish(bits, dtype, tuple(bits.shape))

    def nbytes(self, file: SparseFile, name: str) -> int:
        entry = file.reader.index.entry(name)
        return entry.dense_nbytes if entry.dtype.packed else super().nbytes(file, name)

    def shape(self, file: SparseFile, name: str) -> tuple[int, ...]:
        part = file.get_slice(name)
        if part.get_dtype() != "F4":
            return part.shape
        if not part.shape or part.shape[-1] % 2:
            raise UnsupportedError(
                "shape-odd", f"torch holds F4 in pairs, which {list(part.shape)} has not", tensor=name
            )
        return (*part.shape[:-1], part.shape[-1] // 2)

    def _begin(self, file: SparseFile, name: str) -> DType:
        """The tensor's dtype. Raises what stands against having it, before anything is read."""
        dtype = DTYPES[file.get_slice(name).get_dtype()]
        if dtype.name not in TORCH_DTYPES:
            raise UnsupportedError(
                "dtype-unsupported", f"torch {torch.__version__} has no dtype for {dtype.name}", tensor=name
            )
        if not self._there:
            torch.empty(1, device="cpu").to(self._device)
            self._there = True
        return dtype

    def _finish(self, bits: torch.Tensor, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
        wanted = TORCH_DTYPES[dtype.name]
        if not bits.numel():
            return torch.empty(shape, dtype=wanted, device="cpu").to(self._device)
        # a view changes the dtype of what has a dimension
        return bits.reshape(-1).view(wanted).reshape(shape).to(self._device)


def _carried(array: np.ndarray, dtype: DType) -> torch.Tensor:
    """Memory of an array as signed integers of the elements' width, which torch can index, unlike some floats."""
    bits = as_bits(array, dtype)
    return torch.from_numpy(bits.view(f"i{bits.itemsize}"))


def _pairs(file: SparseFile, name: str, rows: range | np.ndarray) -> torch.Tensor:
    """Those rows of a tensor of pairs, a byte each, in one dimension. Holds a few elements beside the result.

    A row is what the first dimension of the tensor of pairs counts: of a vector, a pair.

    Raises:
        LimitError: they take more than the file may decode to.
    """
    part, entry = file.get_slice(name), file.reader.index.entry(name)
    pairs_of_row = 1 if len(entry.shape) == 1 else entry.cols // 2
    nbytes = len(rows) * pairs_of_row
    file.take(nbytes, name)
    try:
        out = np.empty(nbytes, np.uint8)
    except (MemoryError, ValueError):
        raise LimitError("memory", f"{nbytes:,} bytes of pairs do not fit in memory", tensor=name) from None
    # elements are read a byte each, no more at a time than the result has bytes
    height = max(1, min(_PAIRS_AT_ONCE, nbytes) // (2 * max(pairs_of_row, 1)))
    for first in range(0, len(rows) if nbytes else 0, height):
        wanted = rows[first : first + height]
        elements = part[_elements_of(wanted) if len(entry.shape) == 1 else _as_index(wanted)]
        out[first * pairs_of_row :][: len(wanted) * pairs_of_row] = pack(as_bits(elements, entry.dtype), entry.dtype)
    return torch.from_numpy(out.view(np.int8))


def _elements_of(pairs: range | np.ndarray) -> slice | np.ndarray:
    """The index of the elements that make those pairs of a vector."""
    if isinstance(pairs, range) and pairs.step == 1:
        return slice(2 * pairs.start, 2 * pairs.stop)
    return (2 * np.asarray(pairs)[:, None] + np.arange(2)).reshape(-1)


def _as_index(rows: range | np.ndarray) -> slice | np.ndarray:
    return slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows


def _part_of_pairs(file: SparseFile, name: str, shape: tuple[int, ...], parts: tuple[Any, ...]) -> torch.Tensor:
    """A tensor of pairs of `shape`, indexed: reads the rows that the first part of the index chooses, if it does."""
    first, rest = (parts[0], parts[1:]) if parts else (slice(None), ())
    rows: range | np.ndarray = range(shape[0])
    chosen: Any = (first, *rest)
    if _is_basic(parts) and isinstance(first, slice):
        rows, chosen = range(*first.indices(shape[0])), (slice(None), *rest)
    elif _is_basic(parts) and isinstance(first, (int, np.integer)):
        row = int(first) % shape[0]
        rows, chosen = range(row, row + 1), (0, *rest)
    elif len(shape) > 1 and (found := _chosen_rows(parts, shape)) is not None and found.dtype != np.bool_:
        rows, chosen = found, (slice(None), *rest)
    return _pairs(file, name, rows).reshape(len(rows), *shape[1:])[chosen]


def _is_basic(parts: tuple[Any, ...]) -> bool:
    """Whether an index has nothing but integers, slices, None and an ellipsis."""
    # numpy takes one ellipsis, torch several
    return sum(part is Ellipsis for part in parts) < 2 and all(
        part is None
        or part is Ellipsis
        or isinstance(part, slice)
        or (isinstance(part, (int, np.integer)) and not isinstance(part, bool))
        for part in parts
    )


def _chosen_rows(parts: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray | None:
    """Numbers of the rows that the first part of an index chooses, if it is a list and nothing else in the index is."""
    first = parts[0]
    if not shape or not _is_basic(parts[1:]) or Ellipsis in parts[1:] or isinstance(first, (int, np.generic)):
        return None
    try:
        chosen = np.asarray(first)
    except (ValueError, TypeError, RuntimeError):
        return None
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iub"):
        return None
    if chosen.dtype.kind == "u":
        # bytes are a mask to torch
        return None
    return chosen if chosen.size else chosen.astype(np.int64)
