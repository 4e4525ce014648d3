"""Which tensors of torch share memory, and under which name to keep them: the rules of safetensors, on its terms.

A storage is the memory that torch allocated; a tensor is a view of one. Tensors share if they are on one device, in one
storage, and the bytes between their first and last elements overlap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch

from sparsefmt.errors import SparsefmtError


class SharedTensorsError(SparsefmtError, RuntimeError):
    """Tensors share memory where each must have its own. A RuntimeError too, as in safetensors."""


def storage_ptr(tensor: torch.Tensor) -> int:
    """Address of the storage; 0 for a tensor without data."""
    return tensor.untyped_storage().data_ptr()


def storage_size(tensor: torch.Tensor) -> int:
    """Bytes of the storage, of which the tensor may use a part."""
    return tensor.untyped_storage().nbytes()


def end_ptr(tensor: torch.Tensor) -> int:
    """Address after the last byte of the tensor's last element."""
    if not tensor.numel():
        return tensor.data_ptr()
    # strides of torch are never negative: the element at the highest indices lies last
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def is_complete(tensor: torch.Tensor) -> bool:
    """Whether the tensor has as many elements as its storage has room for, from its start."""
    return tensor.data_ptr() == storage_ptr(tensor) and tensor.numel() * tensor.element_size() == storage_size(tensor)


def find_shared_tensors(state_dict: Mapping[str, torch.Tensor]) -> list[set[str]]:
    """Names in groups: those of one group share memory with each other, directly or by way of others.

    A tensor that shares with none is a group of its own; tensors without data are in no group. O(n log n).
    """
    storages: dict[tuple[torch.device, int, int], list[str]] = {}
    for name, tensor in state_dict.items():
        if tensor.device.type != "meta" and storage_ptr(tensor) and storage_size(tensor):
            storages.setdefault((tensor.device, storage_ptr(tensor), storage_size(tensor)), []).append(name)
    groups: list[set[str]] = []
    for names in storages.values():
        areas = sorted((state_dict[name].data_ptr(), end_ptr(state_dict[name]), name) for name in names)
        covered = -1
        for begin, end, name in areas:
            if begin < covered:
                groups[-1].add(name)
            else:
                groups.append({name})
            covered = max(covered, end)
    return groups


def remove_duplicate_names(
    state_dict: Mapping[str, torch.Tensor],
    *,
    preferred_names: Iterable[str] | None = None,
    discard_names: Collection[str] | None = None,
) -> dict[str, list[str]]:
    """Which name of each group of tensors that share memory to keep, and which others go with it.

    Kept is a tensor that covers its storage, so that the others can be views of it: of those the first by name, but one
    of `preferred_names` before all, and one of `discard_names` only if there is no other.

    Returns:
        name kept to names dropped, for groups that have any.

    Raises:
        SharedTensorsError: no tensor of a group covers its storage.
    """
    preferred, discarded = set(preferred_names or ()), set(discard_names or ())
    dropped = {}
    for group in find_shared_tensors(state_dict):
        complete = {name for name in group if is_complete(state_dict[name])}
        if not complete:
            raise SharedTensorsError(
                "tensors-incomplete",
                f"of {', '.join(map(repr, sorted(group)))}, none covers the memory that torch holds for them: which to"
                " keep cannot be told; .clone() makes a tensor with memory of its own",
            )
        kept = min(preferred & complete or complete - discarded or complete)
        if len(group) > 1:
            dropped[kept] = sorted(group - {kept})
    return dropped
