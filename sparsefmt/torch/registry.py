"""Which weights are known to this process: their tensors verified once, and ready for kernels.

An operator gets the weights as two tensors each time. Their storages identify them, since the tensors of a module, its
copies and its compiled forms have those in common. An entry keeps no memory of the tensors alive, and is removed soon
after they are freed.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from sparsefmt.dtypes import SUMMED_IN_DOUBLE
from sparsefmt.errors import FormatError
from sparsefmt.kernels.operand import Operand
from sparsefmt.lazily import computed_once
from sparsefmt.scales import Scales
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import dequantized, transposed
from sparsefmt.torch.scales import as_kernels_read
from sparsefmt.torch.weight_tensors import WeightTensors, borrowed_memory_of, from_tensors


class Known:
    """Weights that were multiplied by, or made in this process.

    Attributes:
        tensor: the weights; it does not keep the memory of the tensors alive.
        operand: the same as kernels take it.
        wide: whether sums are float64 for every x.
        storages: of the two tensors. As long as there is a reference, no other storage takes their address.
        scales: those that the weights were multiplied with, by the address of their storage and where they begin.
    """

    def __init__(self, tensor: SparseTensor, storages: tuple[StorageWeakRef, StorageWeakRef]) -> None:
        self.operand = tensor.operand()
        self.wide = self.operand.dtype.name in SUMMED_IN_DOUBLE
        self.storages = storages
        self.tensor = tensor
        self.scales: dict[tuple[int, ...], KnownScales] = {}

    @computed_once
    def transposed(self) -> Operand:
        """The transpose, for gradients, with memory of its own. Made when it is first asked for, and kept."""
        return transposed(self.tensor, "auto").operand()

    @computed_once
    def sampled(self) -> Any:
        """What gradients of values need of their positions (`kernels/sampled.py`). Made when it is first asked for."""
        from sparsefmt.kernels.sampled import Sampled

        return Sampled(self.operand)


class KnownScales:
    """Scales that weights were multiplied with.

    Attributes:
        scales: as products take them.
        storage: of the tensor.
    """

    def __init__(self, weights: Known, scales: Scales, storage: StorageWeakRef) -> None:
        self.scales = scales
        self.storage = storage
        self._tensor = weights.tensor

    @computed_once
    def transposed(self) -> Operand:
        """The transpose of the dequantized weights, float32, for gradients; for scales that change along a row."""
        return transposed(dequantized(self._tensor, self.scales.as_rows()), "auto").operand()


_known: dict[tuple[int, ...], Known] = {}
"""By the addresses of the storages, and where in them the tensors begin."""


_look_at = 0
"""How many entries there are when those are looked for whose tensors are gone."""


def remember(weights: WeightTensors) -> None:
    """Take these weights, just made by `to_tensors`, for verified."""
    _learn(weights.arrays, weights.table, check=False)


def trust(weights: WeightTensors) -> None:
    """Take weights for verified that were made of verified ones, and whose values may have become zero."""
    if _key(*weights) not in _known:
        remember(weights)


def known(arrays: torch.Tensor, table: torch.Tensor) -> Known:
    """The weights as kernels take them; verified when they are first seen.

    Raises:
        RuntimeError: there are none.
        FormatError: they are damaged.
    """
    found = _known.get(_key(arrays, table))
    return _learn(arrays, table, check=True) if found is None else found


def known_scales(scale: torch.Tensor, weights: Known) -> KnownScales:
    """Scales (rows, groups) of weights as products take them; verified when they are first seen.

    Raises:
        ValueError: they do not fit the weights, or are negative, NaN or infinite.
        RuntimeError: they are not a contiguous tensor of float32, nor the transpose of one.
    """
    key = scale.untyped_storage()._cdata, scale.data_ptr(), scale.numel()
    found = weights.scales.get(key)
    if found is None:
        for old, entry in list(weights.scales.items()):
            if entry.storage.expired():
                weights.scales.pop(old, None)
        if scale.dtype != torch.float32 or scale.dim() != 2 or not (scale.is_contiguous() or scale.t().is_contiguous()):
            raise RuntimeError("the scales of a SparseLinear are a contiguous tensor (rows, groups) of float32")
        own = scale.shape[1] == 1 or as_kernels_read(scale)
        numbers = _borrowed(scale) if own else scale.numpy()
        scales = Scales(numbers, weights.operand.rows, weights.operand.cols, copy=not own)
        found = weights.scales[key] = KnownScales(weights, scales, StorageWeakRef(scale.untyped_storage()))
    return found


def _borrowed(scale: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor of float32, valid only as long as someone else keeps it alive."""
    if not scale.numel():
        return np.empty(tuple(scale.shape), np.float32)
    memory = (ctypes.c_float * scale.numel()).from_address(scale.data_ptr())
    return np.frombuffer(memory, np.float32).reshape(tuple(scale.shape[::-1])).T


def _key(arrays: torch.Tensor, table: torch.Tensor) -> tuple[int, ...]:
    return (
        arrays.untyped_storage()._cdata,
        arrays.data_ptr(),
        arrays.numel(),
        table.untyped_storage()._cdata,
        table.data_ptr(),
    )


def _learn(arrays: torch.Tensor, table: torch.Tensor, *, check: bool) -> Known:
    global _look_at
    if len(_known) >= _look_at:
        for key, entry in list(_known.items()):
            if any(storage.expired() for storage in entry.storages):
                _known.pop(key, None)
        # a model may have ten thousand experts: not all of them are looked at each time that one has come
        _look_at = len(_known) + min(len(_known) // 8, 64)
    if not table.numel():
        raise RuntimeError("this SparseLinear has no weights yet: load some, or call set_weight")
    if arrays.dtype != torch.uint8 or table.dtype != torch.int64 or not arrays.is_contiguous():
        raise RuntimeError("the weights of a SparseLinear are a contiguous tensor of uint8, and one of int64")
    try:
        tensor = from_tensors(borrowed_memory_of(arrays), table, check=check)
    except FormatError as error:
        raise FormatError(error.code, f"the weights of a SparseLinear are damaged: {error.message}") from None
    entry = Known(tensor, (StorageWeakRef(arrays.untyped_storage()), StorageWeakRef(table.untyped_storage())))
    _known[_key(arrays, table)] = entry
    return entry
