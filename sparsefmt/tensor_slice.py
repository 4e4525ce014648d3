"""TensorSlice: a tensor in an open file that is indexed like a numpy array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsefmt.container.entry import TensorEntry

if TYPE_CHECKING:
    from sparsefmt.sparse_file import SparseFile


class TensorSlice:
    """A tensor in an open file, to be indexed like a numpy array. It can be pickled if the file can."""

    def __init__(self, file: SparseFile, name: str) -> None:
        self._file = file
        self._name = name

    @property
    def _entry(self) -> TensorEntry:
        return self._file.reader.index.entry(self._name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._entry.shape

    @property
    def dtype(self) -> np.dtype:
        return self._entry.dtype.numpy

    def get_shape(self) -> list[int]:
        """Shape of the tensor, as in safetensors."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Name of the dtype, as in safetensors: "F32", "BF16" …"""
        return self._entry.dtype.name

    def __getitem__(self, key: Any) -> np.ndarray:
        """Dense elements, as `get_tensor(name)[key]`. Only the tiles of the rows that `key` asks for are read.

        Raises:
            IndexError: as numpy raises it.
            FormatError, ChecksumError: the file is damaged or forged.
            LimitError: the elements take more than `max_decoded_bytes`, or more than the memory of the machine.
        """
        return self._file.tensor(self._name)[key]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The whole tensor, for `numpy.asarray`."""
        return np.asarray(self[...], dtype)

    # element-wise, as for the tensor; `is` compares slices as objects
    def __eq__(self, other: object) -> Any:
        return self[...] == other

    def __ne__(self, other: object) -> Any:
        return self[...] != other

    __hash__ = object.__hash__
