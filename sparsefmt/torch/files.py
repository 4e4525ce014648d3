"""Files of dense tensors, as safetensors.torch has them.

Tensors are moved as bits, whatever their dtype. As in safetensors, `save_file` refuses tensors that share memory or are
not contiguous, since loading would bring back something else. Models may have such tensors: `model_files.py`.

Sparse tensors of torch are taken too, which safetensors refuses. They come back as dense tensors.

Names that are tied in a file, as `sparsefmt.save_file` writes them, load as one tensor. `save_model` can save it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from sparsefmt import dense_files
from sparsefmt.adapters import torch as adapter
from sparsefmt.container.sources import Backend
from sparsefmt.save_options import NegativeZeros, SaveOptions
from sparsefmt.torch.storable import (
    checked,
)
from sparsefmt.urls import as_place
from sparsefmt.writing import file_content, write_file


def save(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    fold_masks: bool = False,
) -> bytes:
    """The bytes that `save_file` writes, for the same arguments."""
    return file_content(checked(tensors, fold_masks), metadata, SaveOptions(layout, codec, negative_zeros))


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    fold_masks: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Save tensors to a .sparsefmt file. It depends on names and elements, not on the order of the dict.

    Args:
        tensors: name to tensor on any device: strided and contiguous, or sparse (COO, CSR, CSC, BSR, BSC, and 2:4 as
            CUTLASS has it), which is stored as the dense tensor that it stands for. Conjugated and negated views are
            stored as the elements they have.
        filename: where to, usually ending in .sparsefmt. An old file is replaced once the new one is whole.
            Or a binary file object, as in `sparsefmt.save_file`.
        metadata: texts to keep with the tensors.
        layout, codec, negative_zeros, storage_options: as in `sparsefmt.save_file`.
        fold_masks: store what torch.nn.utils.prune keeps as `X_orig` and `X_mask` as `X` alone: their product, as torch
            computes it, in which a pruned element is 0.0 with the sign it had, and NaN if it was Inf or NaN. By default
            the two are stored as they are, with which pruning can go on.

    Raises:
        SharedTensorsError: tensors share memory; it is a RuntimeError too. `save_model` is for such.
        UnsupportedError: a dtype that the format does not have; a tensor that is not contiguous, or of a kind whose
            elements cannot be had, such as nested ones.
        SparsefmtError: a name, shape or metadata that cannot be stored. Where safetensors raises SafetensorError,
            TypeError, KeyError or ValueError, this is what is raised, and it is a ValueError.
        NotImplementedError: a tensor of device "meta", which has no data; torch's own, and a RuntimeError.
        OSError: the disk is full, the folder not writable, ….

    Cost: holds a few tiles beside the tensors, and one tensor at a time of those on other devices and of products with
        a mask. Of a sparse tensor, 8 bytes for each element stored, and a sorted copy where it is not sorted by row.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import save_file
        >>> save_file({"weight": torch.eye(64, dtype=torch.bfloat16)}, "model.sparsefmt")
    """
    write_file(
        as_place(filename, storage_options),
        checked(tensors, fold_masks),
        metadata,
        SaveOptions(layout, codec, negative_zeros),
    )


def load(data: bytes | BinaryIO, *, max_decoded_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """Load all tensors from the bytes of a file, on the CPU; otherwise like `load_file`."""
    return dense_files.load(data, adapter, max_decoded_bytes)


def load_file(
    filename: str | os.PathLike[str] | BinaryIO,
    device: Any = "cpu",
    *,
    backend: Backend = "mmap",
    max_decoded_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Load all tensors of a .sparsefmt file as dense tensors, in the order of the file.

    Names that are tied in the file get one tensor, as in the `state_dict` of a model: what is written to one is written
    to all. Every other tensor has memory of its own.

    Args:
        filename: the file, or a binary file object, as in `sparsefmt.load_file`.
        device: where tensors are wanted: whatever torch takes for a device.
        backend, max_decoded_bytes, storage_options: as in `sparsefmt.load_file`.

    Raises:
        FormatError, ChecksumError: the file is damaged, forged, or no .sparsefmt file, where safetensors raises
            SafetensorError.
        UnsupportedError: it needs a newer version of the library, or has a dtype that torch does not have.
        LimitError: it is beyond the limits of SPEC.md, of `max_decoded_bytes`, or of memory.
        RuntimeError, AssertionError: torch's own, for a device that does not exist or is not there.
        ValueError: another backend.
        OSError: it cannot be read.

    Cost: the dense tensors, and one tile per thread while a tensor is read; for other devices, one tensor at a time on
    the CPU.

    Example:
        >>> from sparsefmt.torch import load_file
        >>> weight = load_file("model.sparsefmt", device="cpu")["weight"]
    """
    return dense_files.load_file(as_place(filename, storage_options), adapter, device, backend, max_decoded_bytes)
