"""From StandIns to SparseLinear layers, when a model has been loaded; and back to dense layers."""

from __future__ import annotations

import torch

from sparsefmt.errors import in_tensor
from sparsefmt.quantizing import quantized
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.attention import note_output_projections
from sparsefmt.torch.compress_experts import filling_of, put_matrices, turned
from sparsefmt.torch.convolution import empty_convolution
from sparsefmt.torch.dense_layers import is_conv1d
from sparsefmt.torch.derived import rows_of, transposed
from sparsefmt.torch.expert_kinds import Projection, projection_of, what_of
from sparsefmt.torch.layers import Holder, holders_of_parameters, is_convolution, layout_for, replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.matrix_views import as_matrix
from sparsefmt.torch.models import (
    SparsifyResult,
    sparsify_by,
    why_multiplied_out,
    why_not_quantized,
    why_stack_not_quantized,
)
from sparsefmt.torch.scales import chosen_activations, expect_int8
from sparsefmt.torch.selection import Selection, name_of, why_dense
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.stacking import matrices_of
from sparsefmt.torch.summary import Quantizing, summary_of
from sparsefmt.transformers.compressed_parameter import ScalesOf, StandIn
from sparsefmt.transformers.compressed_stack import StackStandIn


def settle(model: torch.nn.Module, selection: Selection) -> SparsifyResult:
    """Make each selected linear layer whose weight is a StandIn a SparseLinear, and every other StandIn dense.

    Linear layers that share a weight share the compressed one. A weight that an embedding has too becomes dense, and
    stays tied. What was loaded dense and is pruned, as `sparsify` sees it, is compressed too.

    Returns:
        which layers are sparse, and why others are not. A tensor of another kind of module that was a StandIn is named
        among the latter as well.
    """
    note_output_projections(model)
    quantizing = None if selection.quantization is None else Quantizing({}, {})
    dense: dict[str, str] = {}
    sparse: dict[str, SparseLinear | SparseStack] = {}
    for holders in holders_of_parameters(model).values():
        weight = holders[0].module._parameters[holders[0].attribute]
        if isinstance(weight, StackStandIn) and is_convolution(holders[0].module):
            # of one dimension: dense for a moment, and compressed below
            _fill(weight, holders)
            continue
        if isinstance(weight, StackStandIn) or (isinstance(weight, StandIn) and _is_of_experts(holders)):
            stack = _settle_stack(weight, holders, selection)
            if isinstance(stack, SparseStack):
                sparse[holders[0].key] = stack
                if isinstance(weight, StackStandIn) and weight.had_scales:
                    quantizing = quantizing or Quantizing({}, {})
                    quantizing.left_out[holders[0].key] = why_multiplied_out(holders[0].module)
                elif quantizing is not None and selection.quantization is not None:
                    quantizing.left_out[holders[0].key] = why_stack_not_quantized(holders[0].module)
            else:
                dense |= stack
            continue
        if not isinstance(weight, StandIn):
            continue
        reasons = why_dense(holders, selection) or _why_not_worth(weight, holders, selection)
        if reasons:
            _fill(weight, holders)
            dense |= reasons
        else:
            if quantizing is not None:
                weight = _quantized(weight, holders, selection, quantizing)
            layers = _compress(model, weight, {id(holder.module): holder for holder in holders}, selection)
            sparse |= {holder.layer: layers[id(holder.module)] for holder in holders}
    _fill_buffers(model)
    rest = sparsify_by(model, selection)
    if quantizing is not None and rest.quantizing is not None:
        quantizing.losses.update(rest.quantizing.losses)
        quantizing.left_out.update(rest.quantizing.left_out)
    dense, sparse = dict(sorted((dense | rest.dense).items())), dict(sorted((sparse | rest.sparse).items()))
    is_for_nothing = selection.rounds_activations and selection.quantization is None
    layers = [layer for layer in sparse.values() if isinstance(layer, SparseLinear)]
    if is_for_nothing and all(layer.activations is None for layer in layers):
        raise ValueError("activations='int8' is for scaled weights of int8, which no layer has: give values='int8' too")
    return SparsifyResult(sparse, dense, summary_of(model, selection, dense, quantizing), quantizing)


def _is_of_experts(holders: list[Holder]) -> bool:
    return any(projection_of(holder.module, holder.attribute) is not None for holder in holders)


def _settle_stack(
    weight: StandIn | StackStandIn, holders: list[Holder], selection: Selection
) -> SparseStack | dict[str, str]:
    """Put the weights of experts into their module, compressed, or dense, and why. So with any tensor like them."""
    projection = projection_of(holders[0].module, holders[0].attribute)
    reasons = why_dense(holders, selection)
    if not reasons and projection is not None:
        if isinstance(weight, StandIn) and weight.scales is not None:
            reasons = {holders[0].key: f"it has scales, which {what_of(holders[0].module)} cannot have"}
        else:
            matrices = _matrices(weight, projection, selection)
            reason = selection.why_not_worth_of_stack(holders[0], filling_of(matrices), trainable=False)
            if reason is None:
                return put_matrices(holders[0], matrices, weight)
            reasons = {holders[0].key: reason}
    _fill(weight, holders)
    # what is stored sparse and is not a weight of experts, such as a convolution, is named as ever
    return reasons or {name_of(holder): "it is not the weight of a linear layer" for holder in holders}


def _matrices(weight: StandIn | StackStandIn, projection: Projection, selection: Selection) -> list[SparseTensor]:
    """The matrices (out_features, in_features) of experts."""
    if projection.by_heads:
        whole = SparseTensor.from_dense(weight.dense()) if isinstance(weight, StackStandIn) else weight.compressed
        return turned(projection, [as_matrix(whole)], selection.layout)
    if isinstance(weight, StackStandIn):
        return weight.oriented(projection.swapped)
    return turned(projection, matrices_of(weight.compressed, projection.experts), selection.layout)


def _quantized(weight: StandIn, holders: list[Holder], selection: Selection, quantizing: Quantizing) -> StandIn:
    """A weight of linear layers with scales, if it had none and can have some. `quantizing` gets what that loses."""
    how = selection.quantization
    if how is None or weight.scales is not None:
        return weight
    first = holders[0].module
    is_other = is_convolution(first) or any(is_conv1d(holder.module) for holder in holders)
    reason = why_not_quantized(first) if is_other else None
    if not weight.is_floating_point():
        reason = f"its weight has dtype {weight.dtype}"
    if reason is not None:
        quantizing.left_out.update((holder.layer, reason) for holder in holders)
        return weight
    with in_tensor(holders[0].key):
        made = quantized(rows_of(weight.compressed), how)
    quantizing.losses[holders[0].layer] = made.loss
    tensor = SparseTensor._from_rows(made.rows, selection.layout, budget=weight.compressed.budget)
    scaled = StandIn(tensor, ScalesOf(torch.from_numpy(made.scale)), weight.dtype)
    scaled.requires_grad_(weight.requires_grad)
    return scaled


def _why_not_worth(weight: StandIn, holders: list[Holder], selection: Selection) -> dict[str, str]:
    is_other = is_convolution(holders[0].module)
    if weight.scales is not None:
        # however few of its elements are zero, they are of a byte
        return _named("it has scales, which convolutions cannot have", holders) if is_other else {}
    if weight.compressed.layout == "dense":
        matrix = rows_of(weight.compressed)
        filling = matrix.filling(matrix.survey())
    else:
        filling = weight.compressed.filling()
    # what transformers calls a quantized model is not trained
    reason = selection.why_not_worth_of(holders[0].module, filling, trainable=False)
    return {} if reason is None else _named(reason, holders)


def _named(reason: str, holders: list[Holder]) -> dict[str, str]:
    return {name_of(holder): reason for holder in holders}


def _fill_buffers(model: torch.nn.Module) -> None:
    """Make every buffer that is a StandIn dense, one that has several names once."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for attribute, buffer in module._buffers.items():
            if isinstance(buffer, (StandIn, StackStandIn)):
                if id(buffer) not in made:
                    made[id(buffer)] = buffer.dense()
                module._buffers[attribute] = made[id(buffer)]


def _compress(
    model: torch.nn.Module, weight: StandIn, holders: dict[int, Holder], selection: Selection
) -> dict[int, SparseLinear]:
    """Replace layers that share a weight. Returns the new ones under the keys of the old ones."""
    made: dict[bool, SparseLinear] = {}
    new_layers = {}
    for key, (name, layer, _) in holders.items():
        swapped = is_conv1d(layer)
        first = made.get(swapped)
        if first is None:
            new = made[swapped] = _layer_of(weight, name, layer, selection)
        else:
            new = empty_convolution(layer) if is_convolution(layer) else first.without_weight()
            new.share_weight(first)
            new.bias = layer._parameters.get("bias")
        new.transposed = swapped
        new.name = name
        new.weight_requires_grad = weight.requires_grad
        new.train(layer.training)
        # transformers' mark of what needs no random weights
        new._is_hf_initialized = True  # type: ignore[assignment]
        replace(model, layer, new)
        # the layer lives on until all have been replaced, its weight need not
        layer._parameters["weight"] = None
        new_layers[key] = new
    return new_layers


def _layer_of(weight: StandIn, name: str, layer: torch.nn.Module, selection: Selection) -> SparseLinear:
    bias, scales = layer._parameters.get("bias"), weight.scales
    if is_convolution(layer):
        made = empty_convolution(layer)
        made.set_weight(as_matrix(weight.compressed).to_layout(layout_for(layer, selection.layout)))
        return made
    if is_conv1d(layer):
        return SparseLinear.from_tensor(transposed(weight.without_scales(), selection.layout), bias)
    if scales is None:
        return SparseLinear.from_tensor(weight.compressed, bias)
    activations = chosen_activations(selection.activations, scales.activations)
    expect_int8(activations, weight.compressed.operand().dtype.name, f"{name}.weight")
    return SparseLinear.from_tensor(
        weight.compressed,
        bias,
        scale=scales.of_weight,
        activations=activations,
        input_scale=None if activations is None else scales.of_input,
        dtype=weight.dtype,
    )


def _fill(weight: StandIn | StackStandIn, holders: list[Holder]) -> None:
    dense = torch.nn.Parameter(weight.dense(), requires_grad=weight.requires_grad)
    dense._is_hf_initialized = True  # type: ignore[attr-defined]
    for holder in holders:
        holder.module._parameters[holder.attribute] = dense
