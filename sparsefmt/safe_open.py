"""safe_open: an open file with the methods of safetensors' own."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from sparsefmt.adapters import Adapter, adapter_of
from sparsefmt.api import open_file
from sparsefmt.container import file_objects
from sparsefmt.container.sources import Backend
from sparsefmt.dense_files import all_tensors
from sparsefmt.errors import SparsefmtError, file_closed
from sparsefmt.file_tensor import FileTensor
from sparsefmt.sparse_file import SparseFile


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
        backend: "mmap" maps the file if its file system can, and reads it otherwise; "pread" reads into memory, for
            network file systems and files that may be truncated while in use.
        max_decoded_bytes: as in `sparsefmt.open_file`: raise it for a file that you trust.

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
    ) -> None:
        self._filename = file_objects.name_of(filename)
        self._wanted = _Wanted(framework, adapter_of(framework).device_of(device))
        self._held: _Held | None = _Held(open_file(filename, backend=backend, max_decoded_bytes=max_decoded_bytes))

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, once its last slice has been freed."""
        self._held = None

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
        held = self._containing(name)
        return self._wanted.adapter.tensor_of(held.file.tensor(name), self._wanted.device)

    def get_tensors(self) -> dict[str, Any]:
        """All tensors by name, in the order of `offset_keys`. With torch, names that are tied in the file get one
        tensor, as in a model. With numpy, each gets an array.

        Raises:
            LimitError: they take more than `max_decoded_bytes` together.
            as `get_tensor`.
        """
        held = self._open()
        return all_tensors(held.file, self._wanted.adapter, self._wanted.device)

    def get_slice(self, name: str) -> SafeSlice:
        """A tensor to be indexed. Only the tiles that an index asks for are read: `f.get_slice("w")[8:16, ::2]`.

        Raises:
            SparsefmtError: there is no such tensor, or the file is closed.
        """
        return SafeSlice(self._containing(name), name, self._wanted)

    def _containing(self, name: str) -> _Held:
        held = self._open()
        if name not in held.file:
            raise SparsefmtError(
                "tensor-missing", f"no tensor {name!r} in {self._filename}; it has {len(held.file)} others"
            )
        return held

    def _open(self) -> _Held:
        """The object that keeps the file open. A caller holds it, since another thread may drop ours meanwhile."""
        held = self._held
        if held is None:
            raise file_closed(self._filename)
        return held


class SafeSlice:
    """A tensor in an open file, to be indexed like a tensor of the framework. It keeps the file open."""

    def __init__(self, held: _Held, name: str, wanted: _Wanted) -> None:
        self._held = held
        self._name = name
        self._wanted = wanted

    def get_shape(self) -> list[int]:
        """Shape of the tensor, as `get_tensor` gives it."""
        return list(self._wanted.adapter.shape_of(self._stored))

    def get_dtype(self) -> str:
        """Name of the dtype, as in safetensors: "F32", "BF16" …"""
        return self._stored.dtype.name

    def __getitem__(self, key: Any) -> Any:
        """`get_tensor(name)[key]`, contiguous and with its own memory.

        Args:
            key: whatever the framework takes as an index.

        Raises:
            IndexError, ValueError, TypeError: the framework does not take the index.
            FormatError, ChecksumError: the file is damaged or forged.

        Cost: reads the tiles of the rows that are asked for. An index with None, or with lists or arrays in a place
        other than the first, reads and holds the whole tensor.
        """
        key = _without_ellipsis(key, len(self.get_shape()))
        return self._wanted.adapter.part_of(self._stored, key, self._wanted.device)

    @property
    def _stored(self) -> FileTensor:
        return self._held.file.tensor(self._name)

    # element-wise, as for the tensor; `is` compares slices as objects
    def __eq__(self, other: object) -> Any:
        return self[...] == other

    def __ne__(self, other: object) -> Any:
        return self[...] != other

    __hash__ = object.__hash__


def _without_ellipsis(key: Any, ndim: int) -> Any:
    """Replace the ellipsis of an index of integers and slices by slices, to see which rows the index asks for.

    Other indices stay as they are.
    """
    parts = key if isinstance(key, tuple) else (key,)
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    others = [part for part in parts if part is not Ellipsis]
    simple = all(isinstance(part, (int, slice)) and not isinstance(part, bool) for part in others)
    if len(places) != 1 or not simple or len(others) > ndim:
        return key
    (place,) = places
    return (*parts[:place], *[slice(None)] * (ndim - len(others)), *parts[place + 1 :])


class _Wanted(NamedTuple):
    """The framework and the device that were asked for. It can be pickled; an adapter is a module, and cannot.

    Attributes:
        framework: as safetensors calls it.
        device: as the adapter has it.
    """

    framework: str
    device: Any

    @property
    def adapter(self) -> Adapter:
        return adapter_of(self.framework)


class _Held:
    """A file that several objects use. It is closed when the last of them is freed."""

    def __init__(self, file: SparseFile) -> None:
        self.file = file

    def __del__(self) -> None:
        # an object that could not be unpickled has no file
        file = self.__dict__.get("file")
        if file is not None:
            file.close()
