"""safe_open: an open file with the methods of safetensors' own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

from sparsefmt import notebooks
from sparsefmt.adapters import adapter_of
from sparsefmt.api import open_file
from sparsefmt.container import file_objects
from sparsefmt.container.sources import Backend
from sparsefmt.errors import SparsefmtError, file_closed
from sparsefmt.framework_file import FrameworkFile
from sparsefmt.safe_slice import SafeSlice
from sparsefmt.urls import as_place


class safe_open:
    """Open a .sparsefmt file for reading dense tensors of a framework one by one, or parts of them.

    A twin of `safetensors.safe_open`. For compressed tensors, use `sparsefmt.open_file`. Opening reads the index alone,
    in milliseconds. Tensors and slices stay valid after the file is closed. The open file and its slices can be pickled
    if the file was opened by its path, for instance for the workers of a DataLoader, which open it again when they use
    it.

    Args:
        filename: the file to open, or a binary file object, as in `sparsefmt.open_file`.
        framework: "np" or "numpy"; "pt", "torch" or "pytorch".
        device: the device for tensors: "cpu", or, for torch, any device of torch.
        backend, max_decoded_bytes, storage_options: as in `sparsefmt.open_file`.

    Raises:
        FormatError, ChecksumError: the file is damaged, forged, or not a .sparsefmt file.
        UnsupportedError: the file needs a newer version of the library, the framework is unknown, or numpy lacks the
            device.
        LimitError: the file exceeds the limits of SPEC.md, or memory; or a tensor exceeds `max_decoded_bytes`.
        ValueError: the backend is unknown.
        OSError: the file cannot be read.
        RuntimeError, AssertionError: torch raises them for a text that is not a device, and, when a tensor is read, for
            a device that the machine does not have.

    Where safetensors raises SafetensorError, this raises SparsefmtError or one of its subclasses. Indices out of range
    raise IndexError instead.

    Example:
        >>> with sparsefmt.safe_open("model.sparsefmt", framework="pt", device="cpu") as f:
        ...     rows = f.get_slice("weight")[8:16]
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | BinaryIO,
        framework: str,
        device: Any = "cpu",
        *,
        backend: Backend = "mmap",
        max_decoded_bytes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._filename = file_objects.name_of(filename)
        device = adapter_of(framework).device_of(device)
        place = as_place(filename, storage_options)
        file = open_file(place, backend=backend, max_decoded_bytes=max_decoded_bytes)
        self._path = file.reader.path
        self._held: FrameworkFile | None = FrameworkFile(file, framework, device)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, once its last slice has been freed."""
        self._held = None

    def _repr_html_(self) -> str:
        """What notebooks show: as of `sparsefmt.open_file`, from the index alone."""
        held = self._held
        return notebooks.box(("safe_open: the file is closed",)) if held is None else held.file._repr_html_()

    def keys(self) -> list[str]:
        """Names of all tensors, sorted."""
        held = self._open()
        return held.file.keys()

    def offset_keys(self) -> list[str]:
        """Names of all tensors in the order of the file, which is the fastest order to read them in."""
        held = self._open()
        return held.file.reader.index.offset_keys()

    def metadata(self) -> dict[str, str] | None:
        """The texts that were saved with the tensors; None if there are none."""
        held = self._open()
        return held.file.metadata() or None

    def get_tensor(self, name: str) -> Any:
        """One tensor, dense, bit for bit, on the device.

        Raises:
            SparsefmtError: there is no such tensor, or the file is closed.
            UnsupportedError: the framework does not have its dtype.
            FormatError, ChecksumError: the file is damaged or forged.

        Cost: the memory of the tensor, and of one tile per thread.
        """
        return self._containing(name).tensor(name)

    def get_tensors(self) -> dict[str, Any]:
        """All tensors by name, in the order of `offset_keys`. With torch, names that are tied in the file get one
        tensor, as in a model. With numpy, each gets an array.

        Raises:
            LimitError: they take more than `max_decoded_bytes` together.
            as `get_tensor`.
        """
        return self._open().tensors()

    def get_slice(self, name: str) -> SafeSlice:
        """A tensor to be indexed. Only the tiles that an index asks for are read: `f.get_slice("w")[8:16, ::2]`.

        Raises:
            SparsefmtError: there is no such tensor, or the file is closed.
        """
        return SafeSlice(self._containing(name), name)

    def _containing(self, name: str) -> FrameworkFile:
        held = self._open()
        if name not in held.file:
            raise SparsefmtError(
                "tensor-missing",
                f"no tensor {name!r} in {self._filename}; it has {len(held.file)} others",
                path=self._path,
            )
        return held

    def _open(self) -> FrameworkFile:
        """The object that keeps the file open. A caller holds it, since another thread may drop ours meanwhile."""
        held = self._held
        if held is None:
            raise file_closed(self._path)
        return held
