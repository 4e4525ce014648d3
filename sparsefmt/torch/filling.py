"""Fills a model as it was planned: layers that are pruned become SparseLinear, and all others stay dense."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from sparsefmt.adapters import torch as adapter
from sparsefmt.errors import in_file, in_tensor
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.dense_layers import is_conv1d
from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import Holder, replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.loading_plan import Plan, Stored, held, is_sparse
from sparsefmt.torch.selection import Selection
from sparsefmt.torch.widened import SIXTEEN_BITS, note, pass_on


def load_dense(plan: Plan) -> None:
    """Fill what is dense in any case. Empties the list, which would keep modules alive that are replaced later."""
    while plan.dense:
        tensor, holders = plan.dense.pop()
        with in_file(tensor.path):
            _fill(holders, tensor.dense(), plan.noting)


class WeightLoader:
    """Fills the layers that are SparseLinear, replaces those that are pruned, and fills the others."""

    def __init__(self, model: torch.nn.Module, plan: Plan, selection: Selection) -> None:
        self._model, self._plan, self._selection = model, plan, selection
        self._loaded: dict[tuple[Path, str, bool], SparseLinear] = {}
        """Layers by what they have from the files."""

    def load_all(self) -> None:
        """Load the weights of the plan. Empties its list, so that nothing here keeps a dense weight after its layer has
        been replaced."""
        self._plan.weights.reverse()
        while self._plan.weights:
            self._load(*self._plan.weights.pop())

    def _load(self, stored: Stored, holders: list[Holder]) -> None:
        """Load the weight of the linear layers that share it."""
        weight = None
        if any((*stored.identity, _is_transposed(holder.module)) not in self._loaded for holder in holders):
            with in_file(stored.path):
                weight = _read(stored, holders, self._selection)
        if isinstance(weight, _Dense):
            _fill(holders, weight.tensor, self._plan.noting)
            self._plan.reasons |= {holder.layer: weight.reason for holder in holders}
            return
        self._plan.sparse |= {holder.layer for holder in holders}
        own: dict[bool, SparseLinear] = {}
        for name, module in {id(holder.module): (holder.layer, holder.module) for holder in holders}.values():
            layer = module if isinstance(module, SparseLinear) else _empty_like(module)
            same = (*stored.identity, layer.transposed)
            if layer.transposed in own:
                layer.share_weight(own[layer.transposed])
            elif same in self._loaded:
                # tied in the file, and not in the model
                layer.share_memory_with(self._loaded[same])
            else:
                assert weight is not None
                layer.set_weight(transposed(weight, self._selection.layout) if layer.transposed else weight)
            self._loaded[same] = own[layer.transposed] = layer
            layer.name = name
            if layer is not module:
                replace(self._model, module, layer)


def _is_transposed(module: torch.nn.Module) -> bool:
    return module.transposed if isinstance(module, SparseLinear) else is_conv1d(module)


class _Dense(NamedTuple):
    """A weight that is not compressed."""

    tensor: torch.Tensor
    reason: str


def _read(stored: Stored, holders: list[Holder], selection: Selection) -> SparseTensor | _Dense:
    """The weight of linear layers: compressed, or dense with the reason."""
    entry, filled = stored.entry, any(is_sparse(holder) for holder in holders)
    trainable = not filled and any(held(holder).requires_grad for holder in holders)
    if entry.layout.sparse:
        reason = selection.why_not_worth(stored.file.reader.in_memory.filling(entry), trainable=trainable)
        if filled or reason is None:
            weight = stored.file.load(stored.name, selection.layout)
            assert isinstance(weight, SparseTensor)
            return weight
        return _Dense(stored.dense(), reason)
    tensor = stored.dense()
    if not filled and not tensor.is_floating_point():
        return _Dense(tensor, f"its weight has dtype {tensor.dtype}")
    with in_tensor(stored.name):
        matrix = adapter.rows_of(tensor)
    if not filled:
        reason = selection.why_not_worth(matrix.filling(matrix.survey()), trainable=trainable)
        if reason is not None:
            return _Dense(tensor, reason)
    return SparseTensor.from_dense(matrix, selection.layout)


def _empty_like(module: torch.nn.Module) -> SparseLinear:
    """A SparseLinear for a layer, with its bias and without weights."""
    rows, cols = module._parameters["weight"].shape  # type: ignore[union-attr]
    swapped = is_conv1d(module)
    in_features, out_features = (rows, cols) if swapped else (cols, rows)
    made = SparseLinear(in_features, out_features, bias=False, device="cpu", transposed=swapped)
    made.bias = module._parameters.get("bias")
    pass_on(module, made, ["bias"])
    made.weight_requires_grad = module._parameters["weight"].requires_grad  # type: ignore[union-attr]
    return made.train(module.training)


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
