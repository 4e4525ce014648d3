"""Scaled weights in the state of a model: which there are, and layers that take them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sparsefmt.checkpoints.scales import Beside, checked_input_scale, checked_scales, input_scale_name, scale_name
from sparsefmt.torch.convolution import empty_convolution
from sparsefmt.torch.dense_layers import is_conv1d
from sparsefmt.torch.layers import holders_of_parameters, is_convolution, joined, modules_with_names, replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.scaled_operator import dequantized
from sparsefmt.torch.scales import array_of
from sparsefmt.torch.selection import Selection, why_dense


def scaled_weights(model: torch.nn.Module) -> dict[str, str]:
    """Names of the scaled weights of a model, and of their scales, as `tensors_of` has them."""
    return {
        joined(name, "weight"): joined(name, "weight_scale")
        for name, module in modules_with_names(model)
        if isinstance(module, SparseLinear) and module.weight_scale is not None
    }


def rounded_weights(model: torch.nn.Module) -> set[str]:
    """Names of the scaled weights of a model whose layers round activations to eight bits."""
    return {
        joined(name, "weight")
        for name, module in modules_with_names(model)
        if isinstance(module, SparseLinear) and module.activations is not None
    }


def empty_like(module: torch.nn.Module) -> SparseLinear:
    """A SparseLinear for a layer, or a compressed convolution, with its bias and without weights."""
    if is_convolution(module):
        return empty_convolution(module)
    weight = module._parameters["weight"]
    assert weight is not None
    swapped = is_conv1d(module)
    in_features, out_features = weight.shape if swapped else weight.shape[::-1]
    made = SparseLinear(in_features, out_features, bias=False, device="cpu", dtype=weight.dtype, transposed=swapped)
    made.bias = module._parameters.get("bias")
    return made.like(module)


def take_scaled(model: torch.nn.Module, state: dict[str, torch.Tensor], scaled: Mapping[str, Beside]) -> None:
    """Prepare a model for a state in which some weights are scaled, as the file has them, and the state for the model.

    Linear layers with such weights are replaced by SparseLinear. What cannot be replaced gets the weight multiplied
    out. Scales have the names afterwards that a SparseLinear has for them.

    Args:
        scaled: names of weights in the state, and what belongs to them.

    Raises:
        FormatError: a weight and its scales do not fit.
    """
    scales = {}
    for weight, beside in scaled.items():
        array = checked_scales(weight, tuple(state[weight].shape), beside.scale, array_of(state[beside.scale]))
        scales[weight] = torch.from_numpy(array)
        if beside.input_scale is not None:
            checked_input_scale(weight, beside.input_scale, array_of(state[beside.input_scale]))
    for name in {beside.scale for beside in scaled.values()}:
        del state[name]
    made = dict(_layers_for(model, scales))
    for weight, scale in scales.items():
        if weight in made:
            state[scale_name(weight)] = scale
            made[weight].activations = scaled[weight].activations or made[weight].activations
        else:
            dense = state.pop(weight)
            state.pop(input_scale_name(weight), None)
            state[weight] = dequantized(dense.cpu(), scale, torch.float32).to(dense.device)


def _layers_for(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, SparseLinear]:
    """Replace the linear layers that can be, by names of their weights; with those that are SparseLinear already."""
    found = {
        joined(name, "weight"): module
        for name, module in modules_with_names(model)
        if isinstance(module, SparseLinear) and not module.transposed and not is_convolution(module)
    }
    everything = Selection(min_size=0)
    for holders in holders_of_parameters(model).values():
        named = [holder for holder in holders if holder.key in weights]
        if not named or any(is_conv1d(holder.module) or is_convolution(holder.module) for holder in holders):
            continue
        if why_dense(holders, everything):
            continue
        first: SparseLinear | None = None
        for holder in {id(holder.module): holder for holder in holders}.values():
            layer = empty_like(holder.module)
            if first is not None:
                layer.share_weight(first)
            first = layer
            replace(model, holder.module, layer)
            layer.name = holder.layer
            found |= {other.key: layer for other in holders if other.module is holder.module}
    return found
