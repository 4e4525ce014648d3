"""The tensors of a checkpoint as `load_into` takes them: each when it is its turn, a scaled weight with its scales.

Most lie in a .sparsefmt file under the name that they have. Those of a quantized checkpoint may be made of several, in
several files, of safetensors too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from sparsefmt.adapters import torch as adapter
from sparsefmt.adapters.torch import as_torch
from sparsefmt.checkpoints.quantized_files import QuantizedFiles
from sparsefmt.checkpoints.scales import Beside, checked_input_scale, checked_scales
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.remote_path import Place
from sparsefmt.dtypes import DType
from sparsefmt.layouts.auto import Filling
from sparsefmt.scales import INT8, Scales
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import derived
from sparsefmt.torch.scaled_operator import dequantized
from sparsefmt.torch.stacking import matrices_of


class Stored(ABC):
    """A tensor in a file, or a scaled weight with its scales.

    Attributes:
        path: of the file.
        name: of the tensor.
        dtype: of the elements.
        shape: as torch has it.
        identity: the same for names that are tied in the file.
        is_scaled: whether it has scales.
        is_stored_sparse: whether its elements have a sparse layout in the file.
        activations: "int8" where the checkpoint says of this weight that activations are rounded so; None elsewhere.
    """

    path: Place
    name: str
    is_scaled = False
    is_stored_sparse = False
    activations: str | None = None

    @property
    @abstractmethod
    def dtype(self) -> DType: ...

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    def identity(self) -> tuple[Place, str]:
        return self.path, self.name

    @abstractmethod
    def filling(self) -> Filling:
        """What is stored sparse, as `auto` judges it."""

    @abstractmethod
    def compressed(self, layout: str) -> SparseTensor:
        """The elements of a matrix. layout: as in `sparsefmt.load_file`."""

    def multiplied_out(self, layout: str) -> SparseTensor:
        """A matrix, compressed; of a scaled weight, elements times scales, in float32."""
        scales, made = self.scales(), self.compressed(layout)
        return made if scales is None else derived.dequantized(made, scales)

    def matrices(self, count: int, layout: str) -> list[SparseTensor]:
        """The matrices of a stack of so many. layout: as in `compressed`."""
        return matrices_of(self.compressed(layout), count, layout)

    @abstractmethod
    def elements(self) -> torch.Tensor:
        """The elements, dense, in memory of their own."""

    def scales(self) -> np.ndarray | None:
        """Float32 (rows, groups), if it is a scaled weight. Raises FormatError if they do not fit."""
        return None

    def input_scale(self) -> float | None:
        """The fixed scale of activations, if there is one. Raises FormatError if it is not a positive number."""
        return None

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor; of a scaled weight, elements times scales, in that dtype or float32."""
        scales = self.scales()
        if scales is None:
            return self.elements()
        return dequantized(self.elements(), torch.from_numpy(scales), dtype or torch.float32)


class StoredInFile(Stored):
    """A tensor in a .sparsefmt file under its name.

    Args:
        beside: what belongs to it in that file, if it is a scaled weight.
    """

    def __init__(self, file: SparseFile, path: Place, name: str, beside: Beside | None = None) -> None:
        self._file = file
        self.path = path
        self.name = name
        self._beside = beside
        if beside is not None:
            self.is_scaled = True
            # a fixed scale has no other use
            self.activations = INT8 if beside.input_scale is not None else beside.activations

    @property
    def _entry(self) -> TensorEntry:
        return self._file.reader.index.entry(self.name)

    @property
    def dtype(self) -> DType:
        return self._entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return adapter.shape_of(self._file.tensor(self.name))

    @property
    def identity(self) -> tuple[Place, str]:
        return self.path, self._file.reader.index.tied.get(self.name, self.name)

    @property
    def is_stored_sparse(self) -> bool:  # type: ignore[override]
        return self._entry.layout.sparse

    def filling(self) -> Filling:
        return self._file.reader.in_memory.filling(self._entry)

    def compressed(self, layout: str) -> SparseTensor:
        found = self._file.load(self.name, layout)
        return found if isinstance(found, SparseTensor) else SparseTensor.from_dense(found, layout)

    def elements(self) -> torch.Tensor:
        return adapter.tensor_of(self._file.tensor(self.name))

    def scales(self) -> np.ndarray | None:
        if self._beside is None:
            return None
        name = self._beside.scale
        return checked_scales(self.name, self.shape, name, self._file.get_tensor(name))

    def input_scale(self) -> float | None:
        name = None if self._beside is None else self._beside.input_scale
        return None if name is None else checked_input_scale(self.name, name, self._file.get_tensor(name))


class StoredInSeveral(Stored):
    """A tensor of a quantized checkpoint.

    Args:
        files: of the checkpoint.
        inner: its elements, where a .sparsefmt file has them under the name.
    """

    def __init__(self, files: QuantizedFiles, path: Place, name: str, inner: StoredInFile | None = None) -> None:
        self._files = files
        self._inner = inner
        self._weight = files.weights.get(name)
        self.path = path
        self.name = name
        self.is_scaled = self._weight is not None
        if self._weight is not None:
            is_eight_bits = self._weight.scheme.activations in ("int8", "int8-static")
            self.activations = INT8 if is_eight_bits else None if inner is None else inner.activations

    @property
    def dtype(self) -> DType:
        return self._files.rows_of(self.name).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._files.rows_of(self.name).shape

    def filling(self) -> Filling:
        rows = self._files.rows_of(self.name)
        return rows.filling(rows.survey())

    def compressed(self, layout: str) -> SparseTensor:
        if self._inner is not None:
            return self._inner.compressed(layout)
        return SparseTensor._from_rows(self._files.rows_of(self.name), layout, None)

    def elements(self) -> torch.Tensor:
        if self._inner is not None:
            return self._inner.elements()
        rows = self._files.rows_of(self.name)
        bits = np.array(rows.bits(0, rows.rows))
        return as_torch(bits.view(rows.dtype.numpy), rows.dtype).reshape(rows.shape)

    def scales(self) -> np.ndarray | None:
        weight = self._weight
        return None if weight is None else Scales(weight.scales(), *weight.rows().shape).as_rows()

    def input_scale(self) -> float | None:
        return None if self._weight is None else self._weight.input_scale()
