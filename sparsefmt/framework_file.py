"""FrameworkFile: an open file whose tensors are dense tensors of a framework, for `safe_open` and its slices."""

from __future__ import annotations

from typing import Any

from sparsefmt.adapters import Adapter, adapter_of
from sparsefmt.dense_files import all_tensors
from sparsefmt.file_tensor import FileTensor
from sparsefmt.sparse_file import SparseFile


class FrameworkFile:
    """A file that several objects use. It is closed when the last of them is freed. It can be pickled if `file` can.

    Args:
        file: the open file.
        framework: as safetensors calls it.
        device: as the adapter of the framework has it.
    """

    def __init__(self, file: SparseFile, framework: str, device: Any) -> None:
        self.file = file
        self._framework = framework
        self._device = device

    @property
    def adapter(self) -> Adapter:
        """The adapter of the framework. It is not kept: it is a module, which cannot be pickled."""
        return adapter_of(self._framework)

    def stored(self, name: str) -> FileTensor:
        """A tensor, of which nothing has been read yet."""
        return self.file.tensor(name)

    def tensor(self, name: str) -> Any:
        """A tensor as the framework has it, on the device. Raises as `adapter.tensor_of`."""
        return self.adapter.tensor_of(self.stored(name), self._device)

    def tensors(self) -> dict[str, Any]:
        """All tensors by name. Raises as `all_tensors`."""
        return all_tensors(self.file, self.adapter, self._device)

    def part(self, name: str, key: Any) -> Any:
        """`tensor(name)[key]`, of which only those tiles are read that it takes. Raises as `adapter.part_of`."""
        return self.adapter.part_of(self.stored(name), key, self._device)

    def __del__(self) -> None:
        # an object that could not be unpickled has no file
        file = self.__dict__.get("file")
        if file is not None:
            file.close()
