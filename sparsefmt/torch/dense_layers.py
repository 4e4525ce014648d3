"""Linear layers that are not compressed: what a SparseLinear is made of, and what it becomes again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparsefmt.torch.convolution_kinds import is_dense_convolution
from sparsefmt.torch.widened import note, pass_on

if TYPE_CHECKING:
    from sparsefmt.torch.linear import SparseLinear


def dense_weight(linear: torch.nn.Module) -> tuple[torch.Tensor, bool]:
    """The weight (out_features, in_features) of a layer that can become a SparseLinear, and whether it is transposed.

    That of a convolution is a matrix with a row for each channel of the result.

    Raises:
        TypeError: the layer is neither a torch.nn.Linear, a Conv1D nor a convolution.
    """
    swapped = is_conv1d(linear)
    if is_dense_convolution(linear):
        weight = effective(linear, "weight")
        assert weight is not None
        return weight.reshape(len(weight), -1), False
    if not swapped and not isinstance(linear, torch.nn.Linear):
        raise TypeError(f"a SparseLinear can be made of a torch.nn.Linear or a Conv1D, not of {type(linear).__name__}")
    weight = effective(linear, "weight")
    assert weight is not None
    return (weight.t() if swapped else weight), swapped


def dense_layer(layer: SparseLinear, weight: torch.nn.Parameter) -> torch.nn.Module:
    """The Linear, the Conv1D or the convolution that a SparseLinear was, with its bias.

    weight: as such a layer has it.
    """
    made = layer.without_weight_dense()
    made.weight = weight
    made.bias = layer.bias  # type: ignore[assignment]
    pass_on(layer, made, ["bias"])
    if layer.weight_dtype != layer._dtype:
        note(made, "weight", layer._dtype)
    return made.train(layer.training)


def parameter_of_weight(linear: torch.nn.Module) -> torch.Tensor:
    """The tensor that an optimizer would change: `weight_orig` if torch.nn.utils.prune masks it."""
    parameter: Any = getattr(linear, "weight_orig", None)
    return linear.weight if parameter is None else parameter  # type: ignore[return-value]


def is_conv1d(module: torch.nn.Module) -> bool:
    """Whether this is the Conv1D of transformers: a linear layer whose weight is (in_features, out_features)."""
    module_type = type(module)
    return module_type.__name__ == "Conv1D" and module_type.__module__.startswith("transformers.")


def effective(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    """A tensor of a module, as torch.nn.utils.prune has masked it: pruned elements are 0.0, of either sign before."""
    original, mask = (getattr(module, name + suffix, None) for suffix in ("_orig", "_mask"))
    if original is None or mask is None:
        return getattr(module, name)
    masked = original.detach() * mask.to(original.dtype)
    return torch.where(mask == 0, torch.zeros_like(masked), masked)
