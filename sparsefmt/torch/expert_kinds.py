"""Which modules have several weights in one Parameter, and how they multiply: experts of transformers, and attention.

A mixture of experts has the weights of all its experts in one Parameter for each projection: (experts, out_features,
in_features), or (experts, in_features, out_features). Such a module is known here by what transformers says of it, so
that nothing is replaced whose forward might do something else. torch.nn.MultiheadAttention has its projections of
queries, keys and values above each other in one Parameter, or in one for each. XLNet has Parameters (d_model, n_head,
d_head), each of which is one matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Projection(NamedTuple):
    """The weights of all experts for one product; or of attention.

    Attributes:
        attribute: the name of the Parameter in its module.
        experts: how many there are; of attention, how many projections.
        swapped: whether a matrix of it is (in_features, out_features).
        by_heads: whether it is one matrix, whose columns are all dimensions of the Parameter but the first.
    """

    attribute: str
    experts: int
    swapped: bool
    by_heads: bool = False

    def matrices(self, weight: torch.Tensor) -> torch.Tensor:
        """The Parameter as (experts, out_features, in_features), a view."""
        stack = weight.reshape((1, len(weight), -1) if self.by_heads else (self.experts, -1, weight.shape[-1]))
        return stack.transpose(1, 2) if self.swapped else stack

    def as_stored(self, matrices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The inverse of `matrices`, contiguous. shape: of the Parameter."""
        return (matrices.transpose(1, 2) if self.swapped else matrices).reshape(shape).contiguous()


class OfAttention:
    """Marks what takes the place of attention with dense weights, and computes the same."""


_BY_CLASS = {"Llama4TextExperts": "llama4", "DbrxExpertGLU": "dbrx"}
"""Classes of transformers that do not keep to the interface."""

_RELATIVE = "XLNetRelativeAttention"
_TIMES_HEADS = {"q": True, "k": True, "v": True, "o": False, "r": True}
"""Its Parameters (d_model, n_head, d_head), and whether d_model is what they take."""


def projections_of(module: torch.nn.Module) -> list[Projection]:
    """The projections of a module of experts, or of attention; none for any other module."""
    kind = kind_of(module)
    if kind == "attention":
        held = module._parameters.get("in_proj_weight", module._modules.get("in_proj_weight"))
        if held is not None or hasattr(module, "in_proj_weight_orig"):
            return [Projection("in_proj_weight", 3, False)]
        return [Projection(name, 1, False) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    if kind == "xlnet":
        return [Projection(name, 1, swapped, by_heads=True) for name, swapped in _TIMES_HEADS.items()]
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
    """The projection whose Parameter a module has under a name; None if that is not such a weight."""
    return next((found for found in projections_of(module) if found.attribute == attribute), None)


def count_of_experts(model: torch.nn.Module) -> int | None:
    """How many experts each layer of a model has; None if it has none, or several numbers of them."""
    found = [projections_of(module) for module in model.modules() if not is_attention(module)]
    counts = {projection.experts for projections in found for projection in projections}
    return counts.pop() if len(counts) == 1 else None


def is_attention(module: torch.nn.Module) -> bool:
    """Whether this is attention that is known here, dense or compressed."""
    return is_multihead(module) or is_relative(module)


def is_multihead(module: torch.nn.Module) -> bool:
    """Whether this is a torch.nn.MultiheadAttention, dense or compressed. Subclasses may do something else."""
    is_known = type(module) is torch.nn.MultiheadAttention or isinstance(module, OfAttention)
    return is_known and isinstance(module, torch.nn.MultiheadAttention) and "forward" not in module.__dict__


def is_relative(module: torch.nn.Module) -> bool:
    """Whether this is the attention of XLNet, dense or compressed. Subclasses may do something else."""
    cls = type(module)
    is_known = cls.__name__ == _RELATIVE and cls.__module__.startswith("transformers.")
    is_known |= isinstance(module, OfAttention) and not isinstance(module, torch.nn.MultiheadAttention)
    return is_known and "forward" not in module.__dict__


def has_experts(module: torch.nn.Module) -> bool:
    """Whether this is a module of experts."""
    return kind_of(module) not in (None, "attention", "xlnet")


def what_of(module: torch.nn.Module) -> str:
    """What the weights are of that a module has in a stack."""
    return "projections of attention" if is_attention(module) else "experts"


def kind_of(module: torch.nn.Module) -> str | None:
    """How the experts of a module are computed; None if it has none, or is not known. Attention is a kind, too.

    "interface" is the contract that transformers calls the experts interface, and which most of its models keep to:
    `experts(hidden_states, top_k_index, top_k_weights)`, with attributes that say the rest.
    """
    if is_multihead(module):
        return "attention"
    if is_relative(module):
        return "xlnet"
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
