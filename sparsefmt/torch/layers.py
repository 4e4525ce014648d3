"""The layers of a model: which can become a SparseLinear, where they are, and with whom they share their weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from sparsefmt.torch.attention import fit_class, is_output_projection
from sparsefmt.torch.convolution import SparseConv1d, SparseConv2d, SparseConvolution, layout_of_convolutions
from sparsefmt.torch.convolution_kinds import is_dense_convolution, why_not_convolution
from sparsefmt.torch.dense_layers import is_conv1d
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.products import why_not_linear


class Holder(NamedTuple):
    """A module that holds a tensor under a name."""

    layer: str
    module: torch.nn.Module
    attribute: str

    @property
    def key(self) -> str:
        """The name that the tensor has in the model."""
        return joined(self.layer, self.attribute)


def why_not_replaceable(module: torch.nn.Module) -> str | None:
    """Why a module cannot become a SparseLinear, or a compressed convolution; None if it can.

    A torch.nn.Linear, a subclass that computes the same (products.py), a Conv1D of transformers, and convolutions of
    torch can, unless they have other tensors than weight and bias, such as those that a weight norm trains, which would
    be lost. So can the output projection of a torch.nn.MultiheadAttention, once `note_output_projections` has seen it.
    """
    if not is_layer(module):
        return f"it belongs to a module of class {type(module).__name__}, not to a linear layer"
    if isinstance(module, SparseLinear):
        return f"it is a {type(module).__name__} already"
    reason = None
    if isinstance(module, torch.nn.Linear) and not is_output_projection(module):
        reason = why_not_linear(module)
    if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)):
        reason = why_not_convolution(module)
    others = sorted({*module._parameters, *module._buffers, *module._modules} - _taken_over(module))
    if reason is None and others:
        return f"it has {', '.join(others)} beside its weight and bias"
    return reason


def _taken_over(module: torch.nn.Module) -> set[str]:
    """Names of the tensors of a linear layer that a SparseLinear takes over, masks of torch.nn.utils.prune included."""
    names = {"weight", "bias"}
    for name in ("weight", "bias"):
        if name not in module._parameters:
            names |= {f"{name}_orig", f"{name}_mask"}
    return names


def modules_with_names(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """All modules of a model, one that has several names under each of them."""
    return model.named_modules(remove_duplicate=False)


def replace(model: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Put a module wherever in the model the old one is."""
    for parent in model.modules():
        for attribute, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, attribute, new)
                fit_class(parent)


def holders_of_parameters(model: torch.nn.Module) -> dict[int, list[Holder]]:
    """For each Parameter, by id, the modules that hold it, under each of their names."""
    holders: dict[int, list[Holder]] = {}
    for layer, module in modules_with_names(model):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append(Holder(layer, module, attribute))
    return holders


def expect_cpu(name: str, tensor: torch.Tensor, *also: str) -> None:
    """Refuse weights on other devices. Raises RuntimeError."""
    if tensor.device.type not in ("cpu", *also):
        raise RuntimeError(
            f"{name} is on {tensor.device}, and a SparseLinear computes on the CPU: move the model there first"
        )


def joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer of any kind."""
    is_one = isinstance(module, (torch.nn.Linear, SparseLinear)) or is_conv1d(module)
    return is_one and not isinstance(module, SparseConvolution)


def is_convolution(module: torch.nn.Module) -> bool:
    """Whether a module is a convolution of one or two dimensions, dense or compressed."""
    return isinstance(module, SparseConvolution) or is_dense_convolution(module)


def is_layer(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution."""
    return is_linear(module) or is_convolution(module)


def compressed_layer(module: torch.nn.Module, layout: str) -> SparseLinear:
    """What takes the place of a linear layer or a convolution, with its weight compressed."""
    if isinstance(module, torch.nn.Conv1d):
        return SparseConv1d.from_convolution(module, layout)
    if isinstance(module, torch.nn.Conv2d):
        return SparseConv2d.from_convolution(module, layout)
    return SparseLinear.from_linear(module, layout)


def layout_for(module: torch.nn.Module, layout: str) -> str:
    """The layout to ask for, for the weight of a layer, if a caller asks for `layout`."""
    return layout_of_convolutions(layout) if is_convolution(module) else layout
