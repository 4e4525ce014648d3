"""The twin of safetensors.numpy: the same functions, which take and give dense arrays. Only the import changes.

It keeps more than safetensors does: bfloat16, fp8 and sub-byte types come back as types of ml_dtypes, and arrays in any
memory order or byte order are stored as their elements.

For compressed tensors, use `sparsefmt.load_file` and the other functions of `sparsefmt`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from sparsefmt import dense_files
from sparsefmt.adapters import numpy as adapter
from sparsefmt.container.sources import Backend
from sparsefmt.made_on_demand import MadeOnDemand
from sparsefmt.save_options import NegativeZeros, SaveOptions
from sparsefmt.urls import as_place
from sparsefmt.writing import file_content, write_file

__all__ = ["load", "load_file", "save", "save_file"]


def save(
    tensor_dict: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
) -> bytes:
    """The bytes that `save_file` writes, for the same arguments."""
    return file_content(MadeOnDemand(tensor_dict, _as_it_is), metadata, SaveOptions(layout, codec, negative_zeros))


def save_file(
    tensor_dict: Mapping[str, np.ndarray],
    filename: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Save arrays to a .sparsefmt file. The file depends on names and elements, not on the order of the dict.

    Args:
        tensor_dict: name to numpy array in any byte order and memory order. An array under two names is stored once.
        filename: the destination, usually ending in .sparsefmt. An old file is replaced once the new one is whole.
            Or a binary file object, as in `sparsefmt.save_file`.
        metadata: texts to keep with the tensors.
        layout, codec, negative_zeros, storage_options: as in `sparsefmt.save_file`.

    Raises:
        SparsefmtError: a name, dtype, shape or metadata cannot be stored. safetensors raises SafetensorError, TypeError
            or AttributeError.
        OSError: the disk is full, the folder not writable, ….

    Cost: the memory of a few tiles, in addition to the arrays.

    Example:
        >>> import numpy as np
        >>> from sparsefmt.numpy import save_file
        >>> save_file({"weight": np.eye(64, dtype=np.float32)}, "model.sparsefmt")
    """
    tensors = MadeOnDemand(tensor_dict, _as_it_is)
    write_file(as_place(filename, storage_options), tensors, metadata, SaveOptions(layout, codec, negative_zeros))


def load(data: bytes | BinaryIO, *, max_decoded_bytes: int | None = None) -> dict[str, np.ndarray]:
    """Load all tensors from the bytes of a file; in all else like `load_file`."""
    return dense_files.load(data, adapter, max_decoded_bytes)


def load_file(
    filename: str | os.PathLike[str] | BinaryIO,
    *,
    backend: Backend = "mmap",
    max_decoded_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Load all tensors of a .sparsefmt file as dense arrays, each with its own memory, in the order of the file.

    Each name that is tied in the file gets an array, as from safetensors, and all of them count towards the limit.

    Args:
        filename: the file, or a binary file object, as in `sparsefmt.load_file`.
        backend, max_decoded_bytes, storage_options: as in `sparsefmt.load_file`.

    Raises:
        FormatError, ChecksumError: the file is damaged, forged, or not a .sparsefmt file. safetensors raises
            SafetensorError.
        UnsupportedError: it needs a newer version of the library.
        LimitError: it exceeds the limits of SPEC.md, `max_decoded_bytes`, or memory.
        ValueError: the backend is unknown.
        OSError: it cannot be read.

    Cost: the dense arrays, and one tile per thread while a tensor is read.

    Example:
        >>> from sparsefmt.numpy import load_file
        >>> weight = load_file("model.sparsefmt")["weight"]
    """
    return dense_files.load_file(as_place(filename, storage_options), adapter, "cpu", backend, max_decoded_bytes)


def _as_it_is(array: np.ndarray) -> np.ndarray:
    return array
