"""Parts of a tensor in a file, indexed as torch does it.

Elements are carried as signed integers of the same width, which torch can index, unlike some floats. F4 comes in pairs,
a byte each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sparsefmt.adapters import numpy as numpy_adapter
from sparsefmt.dtypes import DType, as_bits, pack
from sparsefmt.errors import LimitError
from sparsefmt.file_tensor import FileTensor

_PAIRS_AT_ONCE = 1 << 22
"""Elements of F4 to pack at a time: as fast as more, and little beside the tensor."""


def carried(array: np.ndarray, dtype: DType) -> torch.Tensor:
    """The elements of an array, or their bits, as signed integers of their width. The same memory, if it can be."""
    bits = as_bits(array, dtype)
    return torch.from_numpy(bits.view(f"i{bits.itemsize}"))


def indexed(stored: FileTensor, shape: tuple[int, ...], key: Any) -> torch.Tensor:
    """`dense[key]`, carried, for a tensor that has `shape` in torch. Reads the rows that the first part selects.

    Raises:
        IndexError, TypeError: torch raises them for an index that it does not take.
        as `FileTensor.whole`.

    Cost: None, and lists or tensors in another than the first place, read and hold the whole tensor.
    """
    parts = key if isinstance(key, tuple) else (key,)
    basic = _is_basic(parts)
    if basic:
        # torch's errors for what does not fit, without a byte of data
        torch.empty(shape, dtype=torch.int8, device="meta")[key]
    if stored.dtype.packed:
        return _part_of_pairs(stored, shape, parts)
    if basic:
        # for these, numpy and torch agree
        return carried(numpy_adapter.part_of(stored, key), stored.dtype)
    rows = _selected_rows(parts, shape)
    if rows is None:
        return carried(stored.whole(), stored.dtype)[key]
    return carried(stored[rows], stored.dtype)[(slice(None), *parts[1:])]


def pairs(stored: FileTensor, rows: range | np.ndarray) -> torch.Tensor:
    """Those rows of a tensor of pairs, a byte each, in one dimension. Holds a few elements beside the result.

    A row is what the first dimension of the tensor of pairs counts: of a vector, a pair.

    Raises:
        LimitError: they take more than the file may decode to.
    """
    dtype, is_vector = stored.dtype, len(stored.shape) == 1
    pairs_of_row = 1 if is_vector else stored.cols // 2
    nbytes = len(rows) * pairs_of_row
    stored.ask(nbytes)
    try:
        out = np.empty(nbytes, np.uint8)
    except (MemoryError, ValueError):
        raise LimitError("memory", f"{nbytes:,} bytes of pairs do not fit in memory", tensor=stored.name) from None
    # elements are read a byte each, no more at a time than the result has bytes
    height = max(1, min(_PAIRS_AT_ONCE, nbytes) // (2 * max(pairs_of_row, 1)))
    for first in range(0, len(rows) if nbytes else 0, height):
        wanted = rows[first : first + height]
        elements = stored[_elements_of(wanted) if is_vector else _as_index(wanted)]
        out[first * pairs_of_row :][: len(wanted) * pairs_of_row] = pack(as_bits(elements, dtype), dtype)
    return torch.from_numpy(out.view(np.int8))


def _elements_of(pairs: range | np.ndarray) -> slice | np.ndarray:
    """The index of the elements that make those pairs of a vector."""
    if isinstance(pairs, range) and pairs.step == 1:
        return slice(2 * pairs.start, 2 * pairs.stop)
    return (2 * np.asarray(pairs)[:, None] + np.arange(2)).reshape(-1)


def _as_index(rows: range | np.ndarray) -> slice | np.ndarray:
    return slice(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows


def _part_of_pairs(stored: FileTensor, shape: tuple[int, ...], parts: tuple[Any, ...]) -> torch.Tensor:
    """A tensor of pairs of `shape`, indexed: reads the rows that the first part of the index selects, if it does."""
    first, rest = (parts[0], parts[1:]) if parts else (slice(None), ())
    rows: range | np.ndarray = range(shape[0])
    selected: Any = (first, *rest)
    if _is_basic(parts) and isinstance(first, slice):
        rows, selected = range(*first.indices(shape[0])), (slice(None), *rest)
    elif _is_basic(parts) and isinstance(first, (int, np.integer)):
        row = int(first) % shape[0]
        rows, selected = range(row, row + 1), (0, *rest)
    elif len(shape) > 1 and (found := _selected_rows(parts, shape)) is not None and found.dtype != np.bool_:
        rows, selected = found, (slice(None), *rest)
    return pairs(stored, rows).reshape(len(rows), *shape[1:])[selected]


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


def _selected_rows(parts: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray | None:
    """Numbers of the rows that the first part of an index selects, if it is a list and nothing else in the index is."""
    first = parts[0]
    if not shape or not _is_basic(parts[1:]) or Ellipsis in parts[1:] or isinstance(first, (int, np.generic)):
        return None
    try:
        selected = np.asarray(first)
    except (ValueError, TypeError, RuntimeError):
        return None
    if selected.ndim != 1 or (selected.size and selected.dtype.kind not in "iub"):
        return None
    if selected.dtype.kind == "u":
        # bytes are a mask to torch
        return None
    return selected if selected.size else selected.astype(np.int64)
