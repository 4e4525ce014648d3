"""Summary: what became of a model's weights, in a line that people read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sparsefmt.quantizing import Loss
from sparsefmt.torch.expert_kinds import is_attention, is_relative, projection_of, projections_of
from sparsefmt.torch.layers import holders_of_parameters, is_convolution, is_linear
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.selection import MIN_SPARSITY, Selection, name_of
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.with_stacks import stacks_of

NAMED = 3
"""Names that a line has of what stays dense."""

_BLOCKS, _BLOCK = 64, 1024
"""Of the elements of a dense tensor, as many are looked at to see whether it is pruned, spread over it."""


class Quantizing(NamedTuple):
    """What became of weights that were to be quantized, or were so in their file.

    Attributes:
        losses: what rounding has lost, by name of the layer; of layers that share a weight, under one of the names.
        left_out: names of compressed layers that are not quantized, and why.
    """

    losses: dict[str, Loss]
    left_out: dict[str, str]

    def __str__(self) -> str:
        lossy = f"; {Loss.total(self.losses.values())}" if self.losses else ""
        return lossy + _named("not quantized", self.left_out)


@dataclass(frozen=True)
class Summary:
    """What became of a model's weights. Its text is a line.

    Attributes:
        linear, compressed: number of linear layers, and of those that are SparseLinear. Experts do not count here.
        pruned_share: of the elements of all pruned weights, the part that is compressed; None if no weight is pruned.
            A dense weight, of whatever kind of module, counts as pruned if 40 % of a sample of it is zero, and not all
            of it where it may be about to be trained.
        nbytes, dense_nbytes: of all parameters and buffers, and of the same if all were dense. Tied ones count once.
        surprises: names of pruned weights that stay dense although nobody asked for that, and why.
        dense: names of the other linear layers that stay dense, and why.
        scaled: how many of the compressed layers have scaled weights, by the dtype of the elements.
        quantizing: what quantizing has lost, and what was left out; None if nothing was to be quantized.
        convolutions, compressed_convolutions: the same of convolutions of one or two dimensions.
        stacks, compressed_stacks: number of Parameters of experts, and of those that are a SparseStack.
        attention, compressed_attention: the same of the Parameters with which torch.nn.MultiheadAttention projects its
            inputs, whose output projection is a linear layer, and of the projections of XLNet.
    """

    linear: int
    compressed: int
    pruned_share: float | None
    nbytes: int
    dense_nbytes: int
    surprises: dict[str, str]
    dense: dict[str, str]
    scaled: dict[str, int] = field(default_factory=dict)
    quantizing: Quantizing | None = None
    stacks: int = 0
    compressed_stacks: int = 0
    convolutions: int = 0
    compressed_convolutions: int = 0
    attention: int = 0
    compressed_attention: int = 0

    def __str__(self) -> str:
        share = "" if self.pruned_share is None else f" ({_percent(self.pruned_share)} of the pruned weights)"
        others = (
            f", {self.compressed_convolutions:,} of {self.convolutions:,} convolutions" if self.convolutions else ""
        )
        if self.attention:
            others += f", {self.compressed_attention:,} of {self.attention:,} projections of attention"
        experts = f" and {self.compressed_stacks:,} of {self.stacks:,} stacks of experts" if self.stacks else ""
        text = f"{self.compressed:,} of {self.linear:,} linear layers{others}{experts} compressed{share}, "
        text += "".join(f"{count:,} with values of {dtype} and scales, " for dtype, count in self.scaled.items())
        text += f"{_megabytes(self.nbytes)} instead of {_megabytes(self.dense_nbytes)} MB"
        text += "" if self.quantizing is None else str(self.quantizing)
        return text + _named("dense", self.surprises | self.dense)


def summary_of(
    model: torch.nn.Module, selection: Selection, reasons: dict[str, str], quantizing: Quantizing | None = None
) -> Summary:
    """The summary of a model whose layers have been replaced.

    Args:
        selection: by which they were.
        reasons: names of what stays dense, and why.
        quantizing: what became of weights that were to be quantized, if any were.

    Cost: looks at 65,536 elements of each dense weight at most.
    """
    stacks = [module for module in model.modules() if isinstance(module, SparseStack)]
    of_experts = {layer for stack in stacks for layer in stack.layers}
    layers = {layer for layer in model.modules() if is_linear(layer)} - of_experts
    convolutions = [layer for layer in model.modules() if is_convolution(layer)]
    sparse = [layer for layer in layers if isinstance(layer, SparseLinear)]
    sparse_convolutions = [layer for layer in convolutions if isinstance(layer, SparseLinear)]
    weights = {
        id(layer.weight_arrays): layer for layer in (*sparse, *sparse_convolutions, *of_experts) if layer.has_weight
    }.values()
    dense_stacks = dense_attention = 0
    attention = sum(len(stacks_of(module)) for module in model.modules() if is_attention(module))
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    nbytes = sum(tensor.nbytes for tensor in held.values())
    held_for_weights = [
        buffer
        for layer in weights
        for buffer in (layer.weight_arrays, layer.weight_table, layer.weight_scale)
        if buffer is not None
    ]
    compressed = sum(buffer.nbytes for buffer in held_for_weights)
    uncompressed = sum(layer.weight.numel() * layer.weight.dtype.itemsize for layer in weights)
    kept = sum(layer.weight.numel() for layer in weights)
    pruned, surprises = kept, {}
    for holders in holders_of_parameters(model).values():
        weight = holders[0].module._parameters[holders[0].attribute]
        assert weight is not None
        projection = projection_of(holders[0].module, holders[0].attribute)
        if projection is None and projections_of(holders[0].module) and not is_relative(holders[0].module):
            # a bias of experts or attention
            continue
        dense_attention += projection is not None and is_attention(holders[0].module)
        dense_stacks += projection is not None and not is_attention(holders[0].module)
        zeros = _share_of_zeros(weight)
        if zeros < MIN_SPARSITY or (zeros == 1 and weight.requires_grad):
            continue
        pruned += weight.numel()
        size = weight.numel() // (1 if projection is None else projection.experts)
        is_wanted = zeros >= selection.min_sparsity and size >= selection.least_size_of(holders[0].module)
        if is_wanted and all(selection.why_not_held_by_name(holder) is None for holder in holders):
            name = name_of(holders[0])
            reason = reasons.get(name) or selection.why_not_held(holders[0])
            if reason is not None:
                surprises[name] = reason
    if selection.include is not None:
        # layers that were asked for by name, however few zeros they have
        surprises |= {name: why for name, why in reasons.items() if selection.why_not_named(name) is None}
    return Summary(
        linear=len(layers),
        compressed=len(sparse),
        pruned_share=kept / pruned if pruned else None,
        nbytes=nbytes,
        dense_nbytes=nbytes - compressed + uncompressed,
        surprises=surprises,
        dense={name: reason for name, reason in reasons.items() if name not in surprises},
        scaled=Counter(str(layer.weight.tensor.dtype) for layer in sparse if layer.weight_scale is not None),
        quantizing=quantizing,
        stacks=len(stacks) - attention + dense_stacks,
        compressed_stacks=len(stacks) - attention,
        attention=attention + dense_attention,
        compressed_attention=attention,
        convolutions=len(convolutions),
        compressed_convolutions=len(sparse_convolutions),
    )


def _named(what: str, reasons: dict[str, str]) -> str:
    """Some of the names, and why."""
    named = [f"{name} ({reason})" for name, reason in reasons.items()]
    others = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    return f"; {what}: {', '.join(named[:NAMED])}{others}" if named else ""


def _share_of_zeros(weight: torch.Tensor) -> float:
    """Of a sample of the elements; 0 for what has no elements on the CPU, and for vectors."""
    if weight.dim() < 2 or not weight.numel() or not weight.is_floating_point() or weight.device.type != "cpu":
        return 0.0
    weight = weight.detach()
    if weight.is_contiguous() and weight.numel() > _BLOCKS * _BLOCK:
        flat, step = weight.view(-1), weight.numel() // _BLOCKS
        weight = torch.cat([flat[begin : begin + _BLOCK] for begin in range(0, step * _BLOCKS, step)])
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()


def _percent(share: float) -> str:
    """Rounded, but not to all or nothing."""
    percent = round(100 * share)
    if share not in (0, 1):
        percent = min(max(percent, 1), 99)
    return f"{percent} %"


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f}" if nbytes >= 1e7 else f"{nbytes / 1e6:.3g}"
