"""From StandIns to SparseLinear layers, when a model has been loaded; and back to dense layers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import is_replaceable, replace, users_of_parameters
from sparsefmt.torch.linear import SparseLinear, is_conv1d
from sparsefmt.transformers.standin import StandIn


def settle(model: torch.nn.Module, includes: Callable[[str], bool]) -> None:
    """Make each linear layer whose weight is a StandIn a SparseLinear, and every other StandIn dense.

    Linear layers that share a weight share the compressed one. A weight that an embedding has too becomes dense, and
    stays tied.

    Args:
        includes: whether the layer of a name may be a SparseLinear.
    """
    for users in users_of_parameters(model).values():
        name, module = users[0]
        parameter = module._parameters[name.rpartition(".")[2]]
        if not isinstance(parameter, StandIn):
            continue
        layers = [(name.removesuffix(".weight"), module) for name, module in users]
        if all(is_replaceable(layer) and includes(name) for name, layer in layers):
            _compress(model, parameter, {id(layer): layer for _, layer in layers})
        else:
            _fill(parameter, users)


def _compress(model: torch.nn.Module, weight: StandIn, layers: dict[int, torch.nn.Module]) -> None:
    made: dict[bool, SparseLinear] = {}
    for layer in layers.values():
        swapped = is_conv1d(layer)
        first = made.get(swapped)
        if first is None:
            tensor = transposed(weight.compressed, weight.compressed.layout) if swapped else weight.compressed
            new = made[swapped] = SparseLinear.from_tensor(tensor, layer._parameters.get("bias"))
        else:
            new = SparseLinear(first.in_features, first.out_features, bias=False, device="cpu")
            new.share_weight(first)
            new.bias = layer._parameters.get("bias")
        new.transposed = swapped
        new.train(layer.training)
        # transformers' mark of what needs no random weights
        new._is_hf_initialized = True  # type: ignore[assignment]
        replace(model, layer, new)
        # the layer lives on until all have been replaced, its weight need not
        layer._parameters["weight"] = None


def _fill(weight: StandIn, users: list[tuple[str, torch.nn.Module]]) -> None:
    dense = torch.nn.Parameter(weight.dense(), requires_grad=weight.requires_grad)
    dense._is_hf_initialized = True  # type: ignore[attr-defined]
    for name, module in users:
        module._parameters[name.rpartition(".")[2]] = dense


def make_dense(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Make every SparseLinear a Linear, or the Conv1D that it was, with weights of a dtype."""
    for layer in [module for module in model.modules() if isinstance(module, SparseLinear)]:
        replace(model, layer, _dense_layer(layer, layer.weight.to_dense().to(dtype)))


def _dense_layer(layer: SparseLinear, weight: torch.Tensor) -> torch.nn.Module:
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        made: torch.nn.Module
        if layer.transposed:
            made = Conv1D(layer.out_features, layer.in_features)
        else:
            made = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight = torch.nn.Parameter(weight.t().contiguous() if layer.transposed else weight, requires_grad=False)
    made.bias = layer.bias  # type: ignore[assignment]
    return made.train(layer.training)
