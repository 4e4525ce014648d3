"""Fills a model as it was planned: layers that are pruned become SparseLinear, and all others stay dense."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from sparsefmt.adapters import torch as adapter
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import in_file, in_tensor
from sparsefmt.quantizing import quantized
from sparsefmt.quantizing.rows import FLOATS
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.compress_experts import put_matrices, read_stack
from sparsefmt.torch.dense_layers import is_conv1d
from sparsefmt.torch.derived import dequantized, rows_of, transposed
from sparsefmt.torch.layers import Holder, is_convolution, layout_for, replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.loading_plan import Plan, held, is_sparse
from sparsefmt.torch.models import why_multiplied_out, why_not_quantized, why_stack_not_quantized
from sparsefmt.torch.scaled_state import empty_like
from sparsefmt.torch.scales import chosen_activations
from sparsefmt.torch.selection import Selection
from sparsefmt.torch.stored_tensors import Stored
from sparsefmt.torch.summary import Quantizing
from sparsefmt.torch.widened import SIXTEEN_BITS, note
from sparsefmt.torch.with_stacks import stacks_of


def load_dense(plan: Plan) -> None:
    """Fill what is dense in any case. Empties the list, which would keep modules alive that are replaced later."""
    while plan.dense:
        tensor, holders = plan.dense.pop()
        with in_file(tensor.path):
            _fill(holders, tensor.dense(held(holders[0]).dtype), plan.noting)


class WeightLoader:
    """Fills the layers that are SparseLinear, replaces those that are pruned, and fills the others."""

    def __init__(self, model: torch.nn.Module, plan: Plan, selection: Selection) -> None:
        self._model, self._plan, self._selection = model, plan, selection
        self._loaded: dict[tuple[Place, str, bool], SparseLinear] = {}
        """Layers by what they have from the files."""

    def load_all(self) -> None:
        """Load the weights of the plan. Empties its list, so that nothing here keeps a dense weight after its layer has
        been replaced."""
        self._plan.weights.reverse()
        while self._plan.weights:
            self._load(*self._plan.weights.pop())
        self._plan.stacks.reverse()
        while self._plan.stacks:
            self._load_stack(*self._plan.stacks.pop())

    def _load(self, stored: Stored, holders: list[Holder]) -> None:
        """Load the weight of the linear layers that share it."""
        weight: _Compressed | _Dense | None = None
        if any((*stored.identity, _is_transposed(holder.module)) not in self._loaded for holder in holders):
            with in_file(stored.path):
                weight = self._read(stored, holders)
        if isinstance(weight, _Dense):
            _fill(holders, weight.tensor, self._plan.noting)
            self._plan.reasons |= {holder.layer: weight.reason for holder in holders}
            return
        self._plan.sparse |= {holder.layer for holder in holders}
        own: dict[bool, SparseLinear] = {}
        for name, module in {id(holder.module): (holder.layer, holder.module) for holder in holders}.values():
            layer = module if isinstance(module, SparseLinear) else empty_like(module)
            same = (*stored.identity, layer.transposed)
            if layer.transposed in own:
                layer.share_weight(own[layer.transposed])
            elif same in self._loaded:
                # tied in the file, and not in the model
                layer.share_memory_with(self._loaded[same])
            else:
                assert weight is not None
                self._put(layer, weight)
            self._loaded[same] = own[layer.transposed] = layer
            layer.name = name
            if layer is not module:
                replace(self._model, module, layer)

    def _load_stack(self, stored: Stored, holder: Holder) -> None:
        """Load the weights of experts: fill a SparseStack, make one, or fill the Parameter."""
        stack = stacks_of(holder.module).get(holder.attribute)
        with in_file(stored.path), in_tensor(stored.name):
            found = read_stack(stored, holder, self._selection, stack)
        if isinstance(found, str):
            with in_file(stored.path):
                _fill([holder], stored.dense(held(holder).dtype), self._plan.noting)
            self._plan.reasons[holder.key] = found
            return
        self._plan.sparse.add(holder.key)
        if stored.is_scaled:
            self._plan.quantizing = self._plan.quantizing or Quantizing({}, {})
            self._plan.quantizing.left_out[holder.key] = why_multiplied_out(holder.module)
        if stack is not None:
            stack.set_weights(found)
            return
        put_matrices(holder, found, held(holder))
        if self._plan.quantizing is not None and not stored.is_scaled and self._selection.quantization is not None:
            self._plan.quantizing.left_out[holder.key] = why_stack_not_quantized(holder.module)

    def _put(self, layer: SparseLinear, weight: _Compressed) -> None:
        if layer.transposed:
            layer.set_weight(transposed(weight.multiplied_out(), self._selection.layout))
            return
        layer.set_weight(weight.tensor, weight.scale)
        if weight.scale is not None:
            activations = chosen_activations(self._selection.activations, weight.activations)
            layer.set_activations(activations, None if activations is None else weight.input_scale)

    def _read(self, stored: Stored, holders: list[Holder]) -> _Compressed | _Dense:
        """The weight of linear layers: compressed, or dense with the reason."""
        selection = self._selection
        if stored.is_scaled and is_convolution(holders[0].module):
            return _Dense(stored.dense(held(holders[0]).dtype), "it has scales, which convolutions cannot have")
        if stored.is_scaled:
            tensor = stored.compressed(selection.layout)
            return _Compressed(tensor, stored.scales(), stored.input_scale(), stored.activations)
        weight = _read(stored, holders, selection)
        how, quantizing = selection.quantization, self._plan.quantizing
        if isinstance(weight, _Dense) or how is None or quantizing is None:
            return weight
        tensor = weight.tensor
        first = holders[0].module
        is_other = is_convolution(first) or any(_is_transposed(holder.module) for holder in holders)
        reason = why_not_quantized(first) if is_other else None
        if tensor.operand().dtype.name not in FLOATS:
            reason = f"its weight has dtype {tensor.dtype}"
        if reason is not None:
            quantizing.left_out.update((holder.layer, reason) for holder in holders)
            return weight
        with in_tensor(stored.name):
            made = quantized(rows_of(tensor), how)
        quantizing.losses[holders[0].layer] = made.loss
        return _Compressed(SparseTensor._from_rows(made.rows, selection.layout, budget=tensor.budget), made.scale)


def _is_transposed(module: torch.nn.Module) -> bool:
    return module.transposed if isinstance(module, SparseLinear) else is_conv1d(module)


class _Compressed(NamedTuple):
    """A weight that is compressed: its elements, their scales, and what the file says of activations."""

    tensor: SparseTensor
    scale: np.ndarray | None = None
    input_scale: float | None = None
    activations: str | None = None

    def multiplied_out(self) -> SparseTensor:
        """The weight without scales, in float32 if it has any."""
        return self.tensor if self.scale is None else dequantized(self.tensor, self.scale)


class _Dense(NamedTuple):
    """A weight that is not compressed."""

    tensor: torch.Tensor
    reason: str


def _read(stored: Stored, holders: list[Holder], selection: Selection) -> _Compressed | _Dense:
    """The weight of linear layers as it is stored: compressed, or dense with the reason."""
    filled = any(is_sparse(holder) for holder in holders)
    trainable = not filled and any(held(holder).requires_grad for holder in holders)
    module = holders[0].module
    if stored.is_stored_sparse:
        reason = None if filled else selection.why_not_worth_of(module, stored.filling(), trainable=trainable)
        if reason is None:
            return _Compressed(stored.compressed(layout_for(module, selection.layout)))
        return _Dense(stored.dense(), reason)
    tensor = stored.dense()
    if not filled and not tensor.is_floating_point():
        return _Dense(tensor, f"its weight has dtype {tensor.dtype}")
    with in_tensor(stored.name):
        matrix = adapter.rows_of(tensor)
    if not filled:
        reason = selection.why_not_worth_of(module, matrix.filling(matrix.survey()), trainable=trainable)
        if reason is not None:
            return _Dense(tensor, reason)
    layout = selection.layout if filled else layout_for(module, selection.layout)
    return _Compressed(SparseTensor.from_dense(matrix, layout))


def _fill(holders: list[Holder], tensor: torch.Tensor, noting: bool) -> None:
    """Copy a tensor into what the model has, or, where that is on device "meta", put it in its place."""
    there = held(holders[0])
    if there.device.type != "meta":
        if noting and there.dtype == torch.float32 and tensor.dtype in SIXTEEN_BITS:
            for holder in holders:
                note(holder.module, holder.attribute, tensor.dtype)
        with torch.no_grad():
            there.copy_(tensor)
        return
    if isinstance(there, torch.nn.Parameter):
        tensor = torch.nn.Parameter(tensor, requires_grad=there.requires_grad)
    for holder in holders:
        if holder.attribute in holder.module._parameters:
            assert isinstance(tensor, torch.nn.Parameter)
            holder.module._parameters[holder.attribute] = tensor
        else:
            holder.module._buffers[holder.attribute] = tensor
