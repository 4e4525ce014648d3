"""From StandIns to SparseLinear layers, when a model has been loaded; and back to dense layers."""

from __future__ import annotations

import torch

from sparsefmt.torch.dense_layers import is_conv1d
from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import Holder, holders_of_parameters, replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.models import SparsifyResult, sparsify_by
from sparsefmt.torch.selection import Selection, name_of, why_dense
from sparsefmt.torch.summary import summary_of
from sparsefmt.transformers.compressed_parameter import StandIn


def settle(model: torch.nn.Module, selection: Selection) -> SparsifyResult:
    """Make each selected linear layer whose weight is a StandIn a SparseLinear, and every other StandIn dense.

    Linear layers that share a weight share the compressed one. A weight that an embedding has too becomes dense, and
    stays tied. What was loaded dense and is pruned, as `sparsify` sees it, is compressed too.

    Returns:
        which layers are sparse, and why others are not. A tensor of another kind of module that was a StandIn is named
        among the latter as well.
    """
    dense: dict[str, str] = {}
    sparse: dict[str, SparseLinear] = {}
    for holders in holders_of_parameters(model).values():
        weight = holders[0].module._parameters[holders[0].attribute]
        if not isinstance(weight, StandIn):
            continue
        reasons = why_dense(holders, selection) or _why_not_worth(weight, holders, selection)
        if reasons:
            _fill(weight, holders)
            dense |= reasons
        else:
            layers = _compress(model, weight, {id(holder.module): holder for holder in holders}, selection.layout)
            sparse |= {holder.layer: layers[id(holder.module)] for holder in holders}
    _fill_buffers(model)
    rest = sparsify_by(model, selection)
    dense = dict(sorted((dense | rest.dense).items()))
    return SparsifyResult(dict(sorted((sparse | rest.sparse).items())), dense, summary_of(model, selection, dense))


def _why_not_worth(weight: StandIn, holders: list[Holder], selection: Selection) -> dict[str, str]:
    # what transformers calls a quantized model is not trained
    reason = selection.why_not_worth(weight.compressed.filling(), trainable=False)
    return {} if reason is None else {name_of(holder): reason for holder in holders}


def _fill_buffers(model: torch.nn.Module) -> None:
    """Make every buffer that is a StandIn dense, one that has several names once."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for attribute, buffer in module._buffers.items():
            if isinstance(buffer, StandIn):
                if id(buffer) not in made:
                    made[id(buffer)] = buffer.dense()
                module._buffers[attribute] = made[id(buffer)]


def _compress(
    model: torch.nn.Module, weight: StandIn, holders: dict[int, Holder], layout: str
) -> dict[int, SparseLinear]:
    """Replace layers that share a weight. Returns the new ones under the keys of the old ones."""
    made: dict[bool, SparseLinear] = {}
    new_layers = {}
    for key, (name, layer, _) in holders.items():
        swapped = is_conv1d(layer)
        first = made.get(swapped)
        if first is None:
            tensor = transposed(weight.compressed, layout) if swapped else weight.compressed
            new = made[swapped] = SparseLinear.from_tensor(tensor, layer._parameters.get("bias"))
        else:
            new = SparseLinear(first.in_features, first.out_features, bias=False, device="cpu")
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


def _fill(weight: StandIn, holders: list[Holder]) -> None:
    dense = torch.nn.Parameter(weight.dense(), requires_grad=weight.requires_grad)
    dense._is_hf_initialized = True  # type: ignore[attr-defined]
    for holder in holders:
        holder.module._parameters[holder.attribute] = dense
