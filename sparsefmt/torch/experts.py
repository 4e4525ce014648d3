"""SparseExperts: a module of experts whose weights are compressed. A token is multiplied by those it is routed to.

Such a module stays the object that it was. In place of a Parameter, it has a SparseStack of that name; and its class is
a subclass of the one that it had, with a forward of its own. So it keeps everything else: biases, gate, activation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from sparsefmt.torch.attention import fit_class
from sparsefmt.torch.expert_kinds import is_multihead, kind_of
from sparsefmt.torch.grouped_layers import grouped_product
from sparsefmt.torch.relative_attention import SparseRelativeAttention
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.with_stacks import MadeOnDemand, dense_class, sparse_class, stacks_of


class SparseExperts(MadeOnDemand):
    """Base class of modules of experts with compressed weights. `sparsify` and loaders make them.

    For each expert that tokens are routed to, its tokens are one batch, and the products are those of its SparseLinear.
    Others cost nothing. Without gradients, the products of all experts are one call of the kernels, which threads
    share (`grouped_layers.py`). A projection that is not compressed stays a Parameter, and is multiplied as one.

    torch.compile runs the module outside of its graph, since which experts multiply depends on the tokens. torch.export
    cannot trace it, and says so.
    """

    why_no_graph = "which experts multiply depends on the tokens, so experts are not part of a graph"


def put_stack(module: torch.nn.Module, attribute: str, stack: SparseStack) -> None:
    """Give a module of experts, or of attention, a stack in place of a Parameter, or of another stack."""
    old, names = module._modules.get(attribute), list(module._parameters)
    if attribute in names:
        stack.followed_by = tuple(names[names.index(attribute) + 1 :])
    elif isinstance(old, SparseStack):
        stack.followed_by = old.followed_by
    module._parameters.pop(attribute, None)
    module._modules[attribute] = stack
    if is_multihead(module):
        fit_class(module)
    elif not isinstance(module, MadeOnDemand):
        kind = kind_of(module)
        assert kind is not None
        base: Any = _BASES[kind]
        original: Any = type(module)
        module.__class__ = sparse_class(base, original)


def put_parameter(module: torch.nn.Module, attribute: str, weight: torch.nn.Parameter) -> None:
    """Give a module a Parameter in place of a stack. Without stacks, it is what it was."""
    old = module._modules.pop(attribute, None)
    module._parameters[attribute] = weight
    # in the order that it had, which optimizers number parameters by
    for name in old.followed_by if isinstance(old, SparseStack) else ():
        if name in module._parameters:
            module._parameters[name] = module._parameters.pop(name)
    if is_multihead(module):
        fit_class(module)
    elif isinstance(module, MadeOnDemand) and not stacks_of(module):
        module.__class__ = dense_class(module)  # type: ignore[assignment]


class _Routing(NamedTuple):
    """Which expert multiplies which tokens.

    Attributes:
        order: of the pairs of a token and an expert, those that an expert of this module multiplies, expert by expert.
        runs: those of each expert that has any.
    """

    order: torch.Tensor
    runs: list[_Run]

    @classmethod
    def of(cls, experts: torch.Tensor, count: int) -> _Routing:
        """experts: the number of an expert for each pair; `count` or more for those that are elsewhere."""
        # by numpy, since one token takes a few microseconds, and each call of torch is one
        numbers = experts.cpu().numpy()
        runs = _runs_of(np.bincount(numbers, minlength=count)[:count].tolist())
        order = np.argsort(numbers, kind="stable")[: runs[-1].end if runs else 0]
        return cls(torch.from_numpy(order).to(experts.device), runs)


class _Run(NamedTuple):
    """Where the rows of an expert begin, and where they end, if all experts have theirs in turn."""

    expert: int
    begin: int
    end: int


def _runs_of(counts: list[int]) -> list[_Run]:
    """counts: rows of each expert. Those that have none have no run."""
    runs, begin = [], 0
    for expert, rows in enumerate(counts):
        if rows:
            runs.append(_Run(expert, begin, begin + rows))
            begin += rows
    return runs


def _interface_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What transformers' experts interface computes (integrations/moe.py), in the same order of sums."""
    pairs = top_k_index.numel()
    tokens, per_token = hidden_states.shape[0], top_k_index.shape[-1]
    experts = top_k_index.reshape(-1)
    order, runs = _Routing.of(experts, self.num_experts)
    x = hidden_states.index_select(0, order // per_token)
    has_gate, swapped = getattr(self, "has_gate", True), self.is_transposed
    name = "gate_up_proj" if has_gate else "up_proj"
    up = _multiplied(getattr(self, name), x, runs, swapped)
    if self.has_bias:
        experts = experts.index_select(0, order)
        up = up + getattr(self, f"{name}_bias")[experts]
    up = self._apply_gate(up) if has_gate else self.act_fn(up)
    down = _multiplied(self.down_proj, up, runs, swapped)
    if self.has_bias:
        down = down + self.down_proj_bias[experts]
    if getattr(self, "has_post_expert_norm", False):
        down = self.post_expert_norm(down)
    down = down * top_k_weights.reshape(-1).index_select(0, order).unsqueeze(-1)
    down = down.new_zeros(pairs, down.shape[-1]).index_copy_(0, order, down)
    return down.view(tokens, per_token, down.shape[-1]).sum(1).to(hidden_states.dtype)


def _multiplied(weights: Any, x: torch.Tensor, runs: list[_Run], swapped: bool) -> torch.Tensor:
    """x, the rows of one expert after the other, times the weights of each."""
    if isinstance(weights, SparseStack):
        layers = [weights.layer(run.expert) for run in runs]
        together = grouped_product(layers, x, [(run.begin, run.end) for run in runs])
        if together is not None:
            return together
    parts = [_product(weights[expert], x[begin:end], swapped) for expert, begin, end in runs]
    return torch.cat(parts) if parts else x.new_zeros(0, weights.shape[2 if swapped else 1])


def _product(weight: Any, x: torch.Tensor, swapped: bool) -> torch.Tensor:
    """x times the weights of one expert: a SparseLinear, or a dense matrix, (in_features, out_features) if swapped."""
    if isinstance(weight, torch.nn.Module):
        return weight(x)
    return x @ weight if swapped else torch.nn.functional.linear(x, weight)


def _llama4_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Llama4 gives every token to every expert, times 0 where it is not routed to it. Of zeros, the result is zero."""
    x = hidden_states.view(self.gate_up_proj.shape[0], -1, self.hidden_size)
    # a gradient may flow through tokens that are zero
    whole = torch.is_grad_enabled() and hidden_states.requires_grad
    routed = torch.ones(x.shape[:2], dtype=torch.bool) if whole else (x != 0).any(-1)
    runs, order = _runs_of(routed.sum(1).tolist()), routed.view(-1).nonzero().view(-1)
    x = x.reshape(-1, self.hidden_size)
    gate, up = _multiplied(self.gate_up_proj, x.index_select(0, order), runs, True).chunk(2, dim=-1)
    down = _multiplied(self.down_proj, up * self.act_fn(gate), runs, True)
    return x.new_zeros(x.shape).index_copy_(0, order, down)


def _dbrx_forward(self: Any, x: torch.Tensor, expert_w1: Any, expert_v1: Any, expert_w2: Any) -> torch.Tensor:
    """One expert of DBRX, whose weights the module around it has picked."""
    gate, up = _product(expert_w1, x, False), _product(expert_v1, x, False)
    return _product(expert_w2, self.activation_fn(gate) * up, True)


class _OfInterface(SparseExperts):
    __doc__ = SparseExperts.__doc__
    forward = _interface_forward


class _OfLlama4(SparseExperts):
    __doc__ = SparseExperts.__doc__
    forward = _llama4_forward


class _OfDbrx(SparseExperts):
    __doc__ = SparseExperts.__doc__
    forward = _dbrx_forward


_BASES = {
    "interface": _OfInterface,
    "llama4": _OfLlama4,
    "dbrx": _OfDbrx,
    "xlnet": SparseRelativeAttention,
}
