"""The tensors of a .sparsefmt file as transformers reads them: each when it is indexed, like slices of safetensors.

The tensors of a quantized checkpoint, of safetensors too, are read in the same way: a weight and its scales are one
tensor then.
"""

from __future__ import annotations

from typing import Any

import safetensors
import torch

from sparsefmt.adapters import torch as adapter
from sparsefmt.adapters.torch import TORCH_DTYPES
from sparsefmt.api import open_file
from sparsefmt.checkpoints.quantized import QuantizedWeight
from sparsefmt.checkpoints.quantized_files import QuantizedFiles
from sparsefmt.checkpoints.scales import Beside, checked_input_scale, checked_scales, scaled_in
from sparsefmt.container import budget
from sparsefmt.errors import in_file
from sparsefmt.file_tensor import FileTensor
from sparsefmt.scales import INT8, Scales
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.stacking import matrices_of
from sparsefmt.transformers.compressed_parameter import ScalesOf, StandIn
from sparsefmt.transformers.compressed_stack import StackStandIn
from sparsefmt.transformers.config import SparsefmtConfig
from sparsefmt.transformers.files import SUFFIX

ARGUMENT = "SparsefmtConfig(max_decoded_bytes=...)"
"""What raises the limit of `from_pretrained`, given as its quantization_config."""


class CompressedFile(str):
    """A path of a file whose sparse matrices shall stay compressed.

    As a text, it ends as .sparsefmt files do, by which `patches` knows it, whatever the file is.

    Attributes:
        path: of the file.
        config: how the file is read, and in which layout they are held.
        quantized: all files of the checkpoint, if its config.json says which weights are quantized.
    """

    path: str
    config: SparsefmtConfig
    quantized: QuantizedFiles | None

    def __new__(cls, path: str, config: SparsefmtConfig, quantized: QuantizedFiles | None = None) -> CompressedFile:
        made = super().__new__(cls, path if path.endswith(SUFFIX) else f"{path}{SUFFIX}")
        made.path = path
        made.config = config
        made.quantized = quantized
        return made


def state_dict(path: str, map_location: Any = "cpu") -> dict[str, Any]:
    """The tensors of one file by name, each read when it is indexed, as slices of safetensors are.

    Args:
        path: a CompressedFile, or a file of which all tensors are wanted dense.
        map_location: "meta" for tensors without data.
    """
    if isinstance(path, CompressedFile) and path.path != path:
        return _of_safetensors(path, str(map_location) == "meta")
    config = path.config if isinstance(path, CompressedFile) else SparsefmtConfig()
    with in_file(path):
        file = open_file(path, backend=config.backend, max_decoded_bytes=config.max_decoded_bytes)
        slices: dict[str, LazyTensor | LazyWeight] = {**_lazy_tensors(file, path)}
    file.count_together()
    if isinstance(path, CompressedFile) and path.quantized is not None:
        names = path.quantized.names_in(path)
        slices = {name: slices[name] for name in names if name in slices}
        slices.update(_made_of_several(path, file))
    if str(map_location) == "meta":
        return {name: part.without_data() for name, part in slices.items()}
    return slices


def _lazy_tensors(file: SparseFile, path: str) -> dict[str, LazyTensor]:
    """All tensors of a file, those that its metadata says are scales with their weights."""
    scaled = scaled_in(file.metadata(), file, file.reader.index.tied)
    others = {name for beside in scaled.values() for name in beside.names}
    return {name: LazyTensor(file, path, name, scaled.get(name)) for name in file if name not in others}


def _of_safetensors(path: CompressedFile, without_data: bool) -> dict[str, Any]:
    """As `state_dict`: what is quantized or made of several tensors, and all else as the library gives it."""
    assert path.quantized is not None
    made = _made_of_several(path, None)
    tensors: dict[str, Any] = {**made}
    with safetensors.safe_open(path.path, framework="pt") as file:
        tensors |= {name: file.get_slice(name) for name in path.quantized.names_in(path.path) if name not in made}
        if not without_data:
            return tensors
        return {
            name: part.without_data() if isinstance(part, LazyWeight) else file.get_tensor(name).to("meta")
            for name, part in tensors.items()
        }


def _made_of_several(path: CompressedFile, file: SparseFile | None) -> dict[str, LazyWeight]:
    """What one file of a checkpoint has in several tensors: quantized weights, and bitmasks.

    file: the same, where it is a .sparsefmt file.
    """
    quantized = path.quantized
    assert quantized is not None
    scaled = {} if file is None else scaled_in(file.metadata(), file, file.reader.index.tied)
    rounded = {name for name, beside in scaled.items() if beside.activations is not None}
    return {
        name: LazyWeight(name, path, file if name in quantized.stored else None, name in rounded)
        for name in quantized.names_in(path.path)
        if name in quantized.weights or name not in quantized.stored
    }


class LazyWeight:
    """A tensor in an open file that is made of several, with what transformers calls on a slice of safetensors.

    Args:
        file: the .sparsefmt file that has its elements under its name, if there is one.
        is_rounded: whether that file says that activations are rounded to eight bits.
    """

    def __init__(self, name: str, path: CompressedFile, file: SparseFile | None, is_rounded: bool = False) -> None:
        assert path.quantized is not None
        self._name = name
        self._path = path
        self._files = path.quantized
        self._file = file
        self._is_rounded = is_rounded

    @property
    def _weight(self) -> QuantizedWeight | None:
        return self._files.weights.get(self._name)

    def get_shape(self) -> list[int]:
        return list(self._files.rows_of(self._name).shape)

    def get_dtype(self) -> str:
        """Of the product of elements and scales float32, which transformers rounds to what the model has."""
        return "F32" if self._weight is not None else self._files.rows_of(self._name).dtype.name

    def without_data(self) -> torch.Tensor:
        """The same on device "meta"."""
        return torch.empty(self.get_shape(), dtype=TORCH_DTYPES[self.get_dtype()], device="meta")

    def __getitem__(self, key: Any) -> torch.Tensor:
        with in_file(self._path.path), budget.calling_it(ARGUMENT):
            stand_in = StandIn(self._elements(), self._scales(), TORCH_DTYPES[self.get_dtype()])
            # what is not a weight of a layer is as any other tensor is
            whole = stand_in if stand_in.dim() == 2 else stand_in.dense()
            return whole if key is Ellipsis else whole[key]

    def _elements(self) -> SparseTensor:
        layout = self._path.config.layout
        if self._file is None:
            return SparseTensor._from_rows(self._files.rows_of(self._name), layout, None)
        found = self._file.load(self._name, layout)
        return found if isinstance(found, SparseTensor) else SparseTensor.from_dense(found, layout)

    def _scales(self) -> ScalesOf | None:
        weight = self._weight
        if weight is None:
            return None
        of_weight = Scales(weight.scales(), *weight.rows().shape).as_rows()
        is_eight_bits = weight.scheme.activations in ("int8", "int8-static") or self._is_rounded
        return ScalesOf(torch.from_numpy(of_weight), weight.input_scale(), INT8 if is_eight_bits else None)


class LazyTensor:
    """A tensor in an open file, with what transformers calls on a slice of safetensors.

    Args:
        beside: what belongs to it in that file, if it is a scaled weight. It has the dtype of its scales, to code.
    """

    def __init__(self, file: SparseFile, path: str, name: str, beside: Beside | None = None) -> None:
        self._file = file
        self._path = path
        self._name = name
        self._beside = beside

    @property
    def _tensor(self) -> FileTensor:
        return self._file.tensor(self._name)

    @property
    def _typed(self) -> FileTensor:
        """The tensor whose dtype it has."""
        return self._tensor if self._beside is None else self._file.tensor(self._beside.scale)

    def get_shape(self) -> list[int]:
        return list(adapter.shape_of(self._tensor))

    def get_dtype(self) -> str:
        return self._typed.dtype.name

    def without_data(self) -> torch.Tensor:
        """The same on device "meta"."""
        return torch.empty(self.get_shape(), dtype=adapter.torch_dtype_of(self._typed), device="meta")

    def __getitem__(self, key: Any) -> torch.Tensor:
        with in_file(self._path), budget.calling_it(ARGUMENT):
            if self._beside is not None:
                made = self._scaled(self._beside)
                if key is not Ellipsis:
                    return made.dense()[key]
                return made if isinstance(self._path, CompressedFile) else made.dense()
            if key is not Ellipsis:
                return adapter.part_of(self._tensor, key)
            if isinstance(self._path, CompressedFile) and len(self.get_shape()) in (2, 3, 4):
                tensor = self._file.load(self._name, self._path.config.layout)
                if isinstance(tensor, SparseTensor):
                    is_stack = tensor.ndim == 3 and tensor.tiling.row_dims == 2
                    return StackStandIn(matrices_of(tensor, len(tensor))) if is_stack else StandIn(tensor)
            return adapter.tensor_of(self._tensor)

    def _scaled(self, beside: Beside) -> StandIn:
        """A scaled weight, with what belongs to it."""
        elements = self._file.load(self._name, self._layout)
        tensor = elements if isinstance(elements, SparseTensor) else SparseTensor.from_dense(elements, self._layout)
        stored, fixed = self._file.get_tensor(beside.scale), beside.input_scale
        of_weight = torch.from_numpy(checked_scales(self._name, tensor.shape, beside.scale, stored))
        of_input = None if fixed is None else checked_input_scale(self._name, fixed, self._file.get_tensor(fixed))
        # a fixed scale has no other use
        activations = beside.activations if of_input is None else INT8
        return StandIn(tensor, ScalesOf(of_weight, of_input, activations), adapter.torch_dtype_of(self._typed))

    @property
    def _layout(self) -> str:
        return self._path.config.layout if isinstance(self._path, CompressedFile) else "auto"
