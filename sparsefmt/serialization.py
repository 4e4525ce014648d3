"""serialize, serialize_file and deserialize, as safetensors has them: tensors are bytes with a dtype and a shape.

Bytes are the elements as they lie in memory: little-endian, row-major, sub-byte types packed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from sparsefmt.adapters import BytesRows
from sparsefmt.container.sources import source_of_content
from sparsefmt.dtypes import DTYPES, DType, pack
from sparsefmt.errors import SparsefmtError, UnsupportedError
from sparsefmt.file_tensor import FileTensor
from sparsefmt.made_on_demand import MadeOnDemand
from sparsefmt.save_options import NegativeZeros, SaveOptions
from sparsefmt.sparse_file import SparseFile
from sparsefmt.urls import as_place
from sparsefmt.writing import file_content, write_file

_BY_NAME = {str(dtype.numpy): dtype for dtype in DTYPES.values()} | DTYPES
"""dtypes by the names of numpy and ml_dtypes, which are those of torch, and by those in files."""


def serialize(
    tensor_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
) -> bytes:
    """The bytes that `serialize_file` writes, for the same arguments."""
    return file_content(MadeOnDemand(tensor_dict, _rows_of), metadata, SaveOptions(layout, codec, negative_zeros))


def serialize_file(
    tensor_dict: Mapping[str, Any],
    filename: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Save tensors that are bytes to a .sparsefmt file, as `safetensors.serialize_file` does.

    Args:
        tensor_dict: name to a `safetensors.TensorSpec`, whose memory must stay alive for the time of the call, or to a
            dict: {"dtype": "float32", "shape": [2, 3], "data": bytes}. dtypes have the names of numpy and torch, or
            those of the file. `deserialize` gives such dicts.
        filename, metadata, layout, codec, negative_zeros, storage_options: as in `sparsefmt.save_file`.

    Raises:
        SparsefmtError: a dtype that is not known, data of another length than dtype and shape need (`tensor-data`), or
            a name, shape or metadata that cannot be stored. safetensors raises SafetensorError.
        TypeError: a value that is neither.
        ValueError: storage_options for a place that is not a URL.
        OSError: the disk is full, the folder not writable, ….

    Cost: the memory of a few tiles, in addition to the tensors.

    Example:
        >>> from sparsefmt import deserialize, serialize
        >>> data = serialize({"w": {"dtype": "float32", "shape": [2], "data": bytes(8)}})
        >>> deserialize(data)[0][1]["shape"]
        [2]
    """
    tensors = MadeOnDemand(tensor_dict, _rows_of)
    write_file(as_place(filename, storage_options), tensors, metadata, SaveOptions(layout, codec, negative_zeros))


def deserialize(data: bytes | BinaryIO, *, max_decoded_bytes: int | None = None) -> list[tuple[str, dict[str, Any]]]:
    """All tensors in the bytes of a .sparsefmt file, dense, as bytes, as `safetensors.deserialize` gives them.

    Args:
        data: the content of a file, or a binary file object.
        max_decoded_bytes: as in `sparsefmt.load_file`. Tied names count each, since each gets bytes of its own.

    Returns:
        (name, {"dtype": "F32", "shape": [2, 3], "data": bytearray}) of each, in the order of the file.

    Raises:
        FormatError, ChecksumError: the file is damaged, forged, or not a .sparsefmt file. safetensors raises
            SafetensorError.
        UnsupportedError: it needs a newer version of the library.
        LimitError: it exceeds the limits of SPEC.md, `max_decoded_bytes`, or memory.

    Cost: the dense tensors, and one more while it is copied.

    Example:
        >>> for name, tensor in sparsefmt.deserialize(Path("model.sparsefmt").read_bytes()):
        ...     print(name, tensor["dtype"], tensor["shape"])
    """
    with SparseFile(source_of_content(data), max_decoded_bytes=max_decoded_bytes) as file:
        names = file.reader.index.offset_keys()
        tensors = {name: file.tensor(name) for name in names}
        file.reader.budget.ask(sum(tensor.nbytes for tensor in tensors.values()))
        return [(name, _as_dict(tensor)) for name, tensor in tensors.items()]


def _as_dict(tensor: FileTensor) -> dict[str, Any]:
    dtype, dense = tensor.dtype, np.ascontiguousarray(tensor.whole())
    packed = pack(dense.reshape(-1).view(dtype.bits_dtype), dtype) if dtype.packed else dense
    # a bytearray, as safetensors gives it: whoever makes a tensor of it may write to it
    return {"dtype": dtype.name, "shape": list(tensor.shape), "data": bytearray(packed.tobytes())}


def _rows_of(value: Any) -> BytesRows:
    """The rows of a TensorSpec, or of a dict in its place."""
    if isinstance(value, Mapping):
        if missing := {"dtype", "shape", "data"} - value.keys():
            raise SparsefmtError("tensor-data", f"a tensor needs {', '.join(sorted(missing))} too")
        name, shape = value["dtype"], value["shape"]
        content = np.frombuffer(value["data"], np.uint8)
    elif all(hasattr(value, field) for field in ("dtype", "shape", "data_ptr", "data_len")):
        name, shape = value.dtype, value.shape
        memory = (ctypes.c_uint8 * value.data_len).from_address(value.data_ptr) if value.data_len else b""
        content = np.frombuffer(memory, np.uint8)
    else:
        raise TypeError(
            f"a tensor is a safetensors.TensorSpec or a dict of dtype, shape and data, not {type(value).__name__}:"
            " sparsefmt.save takes arrays and tensors"
        )
    dtype = _dtype_of(name)
    rows = BytesRows(lambda offset, size: content[offset : offset + size], dtype, tuple(map(int, shape)))
    if rows.dense_nbytes != content.nbytes:
        raise SparsefmtError(
            "tensor-data",
            f"{content.nbytes:,} bytes of data; {dtype.name} of shape {rows.shape} takes {rows.dense_nbytes:,}",
        )
    return rows


def _dtype_of(name: Any) -> DType:
    found = _BY_NAME.get(str(name))
    if found is None:
        raise UnsupportedError("dtype-unknown", f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return found
