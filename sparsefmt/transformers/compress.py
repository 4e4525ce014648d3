"""Compress: what transformers does with each weight of a dense file while it loads a model of compressed layers."""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import get_module_from_name

from sparsefmt.adapters.torch import rows_of
from sparsefmt.errors import in_tensor
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.compress_experts import compressed_matrices, rows_of_stack
from sparsefmt.torch.expert_kinds import projection_of
from sparsefmt.torch.layers import Holder
from sparsefmt.torch.mapped_files import MappedFiles
from sparsefmt.torch.matrix_views import in_shape
from sparsefmt.torch.selection import Selection
from sparsefmt.transformers.compressed_parameter import StandIn
from sparsefmt.transformers.compressed_stack import StackStandIn


class Compress(ConversionOps):
    """Makes a StandIn of a pruned matrix; leaves one alone that is not pruned enough, or would not become smaller.

    Args:
        mismatched: gets the names of those whose shape is not that of the model.
        files: are told of each that is compressed.
    """

    def __init__(self, selection: Selection, mismatched: set[str], files: MappedFiles) -> None:
        self._selection = selection
        self._mismatched = mismatched
        self._files = files

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        model = kwargs["model"]
        return {name: self._compressed(model, name, value) for name, value in input_dict.items()}

    def _compressed(self, model: Any, name: str, value: Any) -> torch.Tensor:
        tensor = value[0] if isinstance(value, list) else value
        if tensor.shape != model.get_parameter_or_buffer(name).shape:
            self._mismatched.add(name)
            return tensor
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        module, attribute = get_module_from_name(model, name)
        if tensor.dim() == 3 and projection_of(module, attribute) is not None:
            with in_tensor(name):
                return self._compressed_stack(module, attribute, tensor)
        if tensor.dim() != 2 or projection_of(module, attribute) is not None:
            return tensor
        with in_tensor(name):
            matrix = rows_of(tensor)
        if self._selection.why_not_worth(matrix.filling(matrix.survey()), trainable=False) is not None:
            return tensor
        self._files.compressed(tensor)
        return StandIn(SparseTensor._from_rows(matrix, self._selection.layout, None))

    def _compressed_stack(self, module: Any, attribute: str, tensor: torch.Tensor) -> torch.Tensor:
        """The weights of experts, which are merged by now."""
        projection = projection_of(module, attribute)
        assert projection is not None
        if projection.by_heads:
            projection = projection._replace(swapped=False)
        rows = rows_of_stack(projection, tensor)
        matrices = compressed_matrices(rows, Holder("", module, attribute), self._selection, trainable=False)
        if isinstance(matrices, str):
            return tensor
        self._files.compressed(tensor)
        if projection.by_heads:
            return StandIn(in_shape(matrices[0], tuple(tensor.shape)))
        return StackStandIn(matrices, projection.swapped)
