"""What a file of dense tensors can have: tensors of torch that loading brings back as they were.

Each check says which tensor is in its way, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from sparsefmt.adapters import Rows, identity_of, mistakes
from sparsefmt.adapters import torch as adapter
from sparsefmt.adapters.torch import check_kind, is_strided
from sparsefmt.checkpoints.masks import expect_one_shape, masked_pairs
from sparsefmt.errors import FormatError, UnsupportedError, in_tensor
from sparsefmt.made_on_demand import MadeOnDemand
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import sharing
from sparsefmt.torch.sharing import SharedTensorsError
from sparsefmt.torch.widened import as_stored


class _Pruned(NamedTuple):
    """A tensor that torch.nn.utils.prune keeps in two."""

    original: torch.Tensor
    mask: torch.Tensor

    def product(self) -> torch.Tensor:
        """The tensor that the pruned module computes with."""
        return (self.mask.to(dtype=self.original.dtype) * self.original).detach()


class Widened(NamedTuple):
    """A tensor that is float32 while its model computes, and the dtype that it is stored in if that loses nothing."""

    tensor: torch.Tensor
    dtype: torch.dtype


def rows_of(value: torch.Tensor | SparseTensor | _Pruned | Widened) -> Rows | SparseTensor:
    """A tensor of a state as it is written."""
    if isinstance(value, SparseTensor):
        return value
    if isinstance(value, Widened):
        return adapter.rows_of(as_stored(*value))
    return adapter.rows_of(value.product() if isinstance(value, _Pruned) else value)


def folded(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors, with each pair of an original and a mask in place of the two."""
    pairs = masked_pairs(tensors)
    parts = {name for pair in pairs.values() for name in pair}
    whole = {name: tensor for name, tensor in tensors.items() if name not in parts}
    for name, (original, mask) in pairs.items():
        if name in whole:
            raise FormatError("mask-name", f"it is there beside {original!r}, which is to be stored so", tensor=name)
        whole[name] = _Pruned(tensors[original], tensors[mask])
    return whole


def checked(tensors: Mapping[str, torch.Tensor], fold_masks: bool) -> MadeOnDemand:
    """The tensors as they are to be stored, made one by one. Raises what stands against storing any."""
    made = MadeOnDemand(tensors, rows_of)
    if fold_masks:
        tensors = folded(tensors)
        made = MadeOnDemand(tensors, rows_of)
    check_kinds(tensors)
    check_contiguous(tensors)
    shared = [sorted(names) for names in sharing.find_shared_tensors(strided(tensors)) if len(names) > 1]
    shared += [[kept, *dropped] for kept, dropped in tied_pairs(tensors).items()]
    if shared:
        groups = "; ".join(", ".join(map(repr, names)) for names in shared)
        raise SharedTensorsError(
            "tensors-shared",
            f"these tensors share memory, which loading would not bring back: {groups}. save_model keeps one name of"
            " each group; .clone() makes a tensor with memory of its own",
        )
    return made


def strided(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Those tensors that have memory to be shared."""
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor) and is_strided(tensor)}


def tied_pairs(tensors: Mapping[str, Any]) -> dict[str, list[str]]:
    """Of pairs of one original and one mask, the first name, and the others."""
    names: dict[object, list[str]] = {}
    for name, value in sorted(tensors.items(), key=lambda item: str(item[0])):
        identity = tuple(map(identity_of, value)) if isinstance(value, _Pruned) else (None,)
        if None not in identity:
            names.setdefault(identity, []).append(name)
    return {kept: dropped for kept, *dropped in names.values() if dropped}


def check_kinds(tensors: Mapping[str, Any]) -> None:
    """Raise FormatError or UnsupportedError for what is not a tensor, or whose elements cannot be had."""
    for name, value in tensors.items():
        if isinstance(value, SparseTensor):
            continue
        for tensor in value if isinstance(value, _Pruned) else (value,):
            if not isinstance(tensor, torch.Tensor):
                raise FormatError(
                    "tensors-invalid", _refusal(tensor), tensor=name if isinstance(name, str) else repr(name)
                )
            with in_tensor(name):
                check_kind(tensor)
        if isinstance(value, _Pruned):
            with in_tensor(name):
                expect_one_shape(tuple(value.original.shape), tuple(value.mask.shape))


def _refusal(value: Any) -> str:
    """Why this, which is not a tensor of torch, cannot be stored."""
    if isinstance(value, np.ndarray):
        return "it is a numpy array: torch.from_numpy makes a tensor of it, and sparsefmt.save_file takes it as it is"
    return mistakes.refusal(value) or f"its type is {type(value).__name__}, not torch.Tensor"


def check_contiguous(tensors: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for a tensor that would come back in another memory order."""
    for name, tensor in strided(tensors).items():
        if not tensor.is_contiguous():
            raise UnsupportedError(
                "tensor-not-contiguous",
                f"strides {tuple(tensor.stride())} of shape {list(tensor.shape)} are not contiguous: call"
                " .contiguous() on it first",
                tensor=name,
            )
