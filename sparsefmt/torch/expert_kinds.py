"""Which modules are experts, and how they multiply: what transformers keeps in tensors of three dimensions.

A mixture of experts has the weights of all its experts in one Parameter for each projection: (experts, out_features,
in_features), or (experts, in_features, out_features). Such a module is known here by what transformers says of it, so
that nothing is replaced whose forward might do something else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Projection(NamedTuple):
    """The weights of all experts for one product.

    Attributes:
        attribute: the name of the Parameter in its module.
        experts: how many there are.
        swapped: whether a matrix of it is (in_features, out_features).
    """

    attribute: str
    experts: int
    swapped: bool

    def matrices(self, weight: torch.Tensor) -> torch.Tensor:
        """The Parameter as (experts, out_features, in_features), a view."""
        stack = weight.reshape(self.experts, -1, weight.shape[-1])
        return stack.transpose(1, 2) if self.swapped else stack

    def as_stored(self, matrices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The inverse of `matrices`, contiguous. shape: of the Parameter."""
        return (matrices.transpose(1, 2) if self.swapped else matrices).reshape(shape).contiguous()


_BY_CLASS = {"Llama4TextExperts": "llama4", "DbrxExpertGLU": "dbrx"}
"""Classes of transformers that do not keep to the interface."""


def projections_of(module: torch.nn.Module) -> list[Projection]:
    """The projections of a module of experts; none for any other module."""
    kind = kind_of(module)
    if kind == "interface":
        up = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
        swapped = bool(module.is_transposed)
        return [Projection(name, _count(module), swapped) for name in (up, "down_proj")]
    if kind == "llama4":
        return [Projection(name, _count(module), True) for name in ("gate_up_proj", "down_proj")]
    if kind == "dbrx":
        count = module.moe_num_experts
        assert isinstance(count, int)
        return [Projection(name, count, name == "w2") for name in ("w1", "v1", "w2")]
    return []


def projection_of(module: torch.nn.Module, attribute: str) -> Projection | None:
    """The projection whose Parameter a module has under a name; None if that is not a weight of experts."""
    return next((found for found in projections_of(module) if found.attribute == attribute), None)


def count_of_experts(model: torch.nn.Module) -> int | None:
    """How many experts each layer of a model has; None if it has none, or several numbers of them."""
    counts = {projection.experts for module in model.modules() for projection in projections_of(module)}
    return counts.pop() if len(counts) == 1 else None


def kind_of(module: torch.nn.Module) -> str | None:
    """How the experts of a module are computed; None if it has none, or is not known.

    "interface" is the contract that transformers calls the experts interface, and which most of its models keep to:
    `experts(hidden_states, top_k_index, top_k_weights)`, with attributes that say the rest.
    """
    if {"config", "is_transposed", "has_bias", "num_experts"} <= module.__dict__.keys():
        return "interface" if not getattr(module, "has_gate", True) or hasattr(module, "_apply_gate") else None
    for cls in type(module).__mro__:
        kind = _BY_CLASS.get(cls.__name__)
        if kind is not None and cls.__module__.startswith("transformers."):
            return kind
    return None


def _count(module: torch.nn.Module) -> int:
    count = module.num_experts
    assert isinstance(count, int)
    return count
