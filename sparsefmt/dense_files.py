"""Loading files as dense tensors of a library: what the twins of safetensors for numpy and torch have in common."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from sparsefmt import api
from sparsefmt.adapters.contract import Adapter
from sparsefmt.container.sources import Backend, source_of_content
from sparsefmt.errors import in_file
from sparsefmt.sparse_file import SparseFile
from sparsefmt.urls import Url


def load(data: bytes | BinaryIO, adapter: Adapter, max_decoded_bytes: int | None) -> dict[str, Any]:
    """All tensors in the bytes of a file, on the CPU; otherwise like `load_file`."""
    with SparseFile(source_of_content(data), max_decoded_bytes=max_decoded_bytes) as file:
        return all_tensors(file, adapter)


def load_file(
    filename: str | os.PathLike[str] | BinaryIO | Url,
    adapter: Adapter,
    device: Any,
    backend: Backend,
    max_decoded_bytes: int | None,
) -> dict[str, Any]:
    """All tensors of a file, as `sparsefmt.open_file` opens it.

    Raises:
        as `sparsefmt.open_file`, `all_tensors`.
    """
    with (
        in_file(filename),
        api.open_file(filename, backend=backend, max_decoded_bytes=max_decoded_bytes) as file,
    ):
        return all_tensors(file, adapter, device)


def all_tensors(file: SparseFile, adapter: Adapter, device: Any = "cpu") -> dict[str, Any]:
    """Every tensor as one of a library, in the order of `Index.offset_keys`. Names that are tied in the file are one
    tensor, or one each, as the adapter has it.

    Raises:
        LimitError: all of them together take more than `max_decoded_bytes`. Nothing has been read then.
        as `adapter.tensor_of`.
    """
    index, device = file.reader.index, adapter.device_of(device)
    tied = index.tied if adapter.SHARES_TIED else {}
    stored = {name: file.tensor(name) for name in file if name not in tied}
    file.reader.budget.ask(sum(map(adapter.nbytes_of, stored.values())))
    file.reader.expect_all()
    made: dict[str, Any] = {}
    tensors = {}
    for name in index.offset_keys():
        target = tied.get(name, name)
        if target not in made:
            made[target] = adapter.tensor_of(stored[target], device)
        tensors[name] = made[target]
    return tensors
