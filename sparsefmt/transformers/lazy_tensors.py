"""The tensors of a .sparsefmt file as transformers reads them: each when it is indexed, like slices of safetensors."""

from __future__ import annotations

from typing import Any

import torch

from sparsefmt.adapters import torch as adapter
from sparsefmt.api import open_file
from sparsefmt.checkpoints.scales import checked_input_scale, checked_scales, input_scale_name, scales_in
from sparsefmt.container import budget
from sparsefmt.errors import in_file
from sparsefmt.file_tensor import FileTensor
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.transformers.compressed_parameter import ScalesOf, StandIn
from sparsefmt.transformers.config import SparsefmtConfig

ARGUMENT = "SparsefmtConfig(max_decoded_bytes=...)"
"""What raises the limit of `from_pretrained`, given as its quantization_config."""


class CompressedFile(str):
    """A path of a file whose sparse matrices shall stay compressed.

    Attributes:
        config: how the file is read, and in which layout they are held.
    """

    config: SparsefmtConfig

    def __new__(cls, path: str, config: SparsefmtConfig) -> CompressedFile:
        made = super().__new__(cls, path)
        made.config = config
        return made


def state_dict(path: str, map_location: Any = "cpu") -> dict[str, Any]:
    """The tensors of one file by name, each read when it is indexed, as slices of safetensors are.

    Args:
        path: a CompressedFile, or a file of which all tensors are wanted dense.
        map_location: "meta" for tensors without data.
    """
    config = path.config if isinstance(path, CompressedFile) else SparsefmtConfig()
    with in_file(path):
        file = open_file(path, backend=config.backend, max_decoded_bytes=config.max_decoded_bytes)
        pairs = scales_in(file.metadata(), file)
    file.count_together()
    tied = file.reader.index.tied
    slices = {name: LazyTensor(file, path, name) for name in file}
    for name, lazy in slices.items():
        lazy.scale = pairs.get(name, pairs.get(tied.get(name, name)))
        if lazy.scale is not None and input_scale_name(name) in file:
            lazy.input_scale = input_scale_name(name)
    scales = {name for lazy in slices.values() for name in (lazy.scale, lazy.input_scale)}
    slices = {name: lazy for name, lazy in slices.items() if name not in scales}
    if str(map_location) == "meta":
        return {name: part.without_data() for name, part in slices.items()}
    return slices


class LazyTensor:
    """A tensor in an open file, with what transformers calls on a slice of safetensors.

    Attributes:
        scale, input_scale: names of the scales in that file, if it is a scaled weight. It has the dtype of its scales,
            to code.
    """

    def __init__(self, file: SparseFile, path: str, name: str) -> None:
        self._file = file
        self._path = path
        self._name = name
        self.scale: str | None = None
        self.input_scale: str | None = None

    @property
    def _tensor(self) -> FileTensor:
        return self._file.tensor(self._name)

    @property
    def _typed(self) -> FileTensor:
        """The tensor whose dtype it has."""
        return self._tensor if self.scale is None else self._file.tensor(self.scale)

    def get_shape(self) -> list[int]:
        return list(adapter.shape_of(self._tensor))

    def get_dtype(self) -> str:
        return self._typed.dtype.name

    def without_data(self) -> torch.Tensor:
        """The same on device "meta"."""
        return torch.empty(self.get_shape(), dtype=adapter.torch_dtype_of(self._typed), device="meta")

    def __getitem__(self, key: Any) -> torch.Tensor:
        with in_file(self._path), budget.calling_it(ARGUMENT):
            if self.scale is not None:
                made = self._scaled(self.scale)
                if key is not Ellipsis:
                    return made.dense()[key]
                return made if isinstance(self._path, CompressedFile) else made.dense()
            if key is not Ellipsis:
                return adapter.part_of(self._tensor, key)
            if isinstance(self._path, CompressedFile) and len(self.get_shape()) == 2:
                tensor = self._file.load(self._name, self._path.config.layout)
                if isinstance(tensor, SparseTensor):
                    return StandIn(tensor)
            return adapter.tensor_of(self._tensor)

    def _scaled(self, scale: str) -> StandIn:
        """A scaled weight. scale: name of its scales."""
        elements = self._file.load(self._name, self._layout)
        tensor = elements if isinstance(elements, SparseTensor) else SparseTensor.from_dense(elements, self._layout)
        of_weight = checked_scales(self._name, tensor.shape, scale, self._file.get_tensor(scale))
        of_input = None
        if self.input_scale is not None:
            of_input = checked_input_scale(self._name, self.input_scale, self._file.get_tensor(self.input_scale))
        return StandIn(tensor, ScalesOf(torch.from_numpy(of_weight), of_input), adapter.torch_dtype_of(self._typed))

    @property
    def _layout(self) -> str:
        return self._path.config.layout if isinstance(self._path, CompressedFile) else "auto"
