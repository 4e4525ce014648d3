"""SparseExperts: a module of experts whose weights are compressed. A token is multiplied by those it is routed to.

Such a module stays the object that it was. In place of a Parameter, it has a SparseStack of that name; and its class is
a subclass of the one that it had, with a forward of its own. So it keeps everything else: biases, gate, activation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sparsefmt.torch.attention import fit_class
from sparsefmt.torch.expert_kinds import is_multihead, kind_of
from sparsefmt.torch.relative_attention import SparseRelativeAttention
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.with_stacks import MadeOnDemand, dense_class, sparse_class, stacks_of


class SparseExperts(MadeOnDemand):
    """Base class of modules of experts with compressed weights. `sparsify` and loaders make them.

    For each expert that tokens are routed to, its tokens are one batch, and the products are those of its SparseLinear.
    Others cost nothing. A projection that is not compressed stays a Parameter, and is multiplied as one.

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
        runs: (expert, where its pairs begin in this order, where they end), for experts with tokens.
    """

    order: torch.Tensor
    runs: list[tuple[int, int, int]]

    @classmethod
    def of(cls, experts: torch.Tensor, count: int) -> _Routing:
        """experts: the number of an expert for each pair; `count` or more for those that are elsewhere."""
        order = torch.argsort(experts, stable=True)
        runs, begin = [], 0
        for number, tokens in enumerate(torch.bincount(experts, minlength=count)[:count].tolist()):
            if tokens:
                runs.append((number, begin, begin + tokens))
                begin += tokens
        return cls(order[:begin], runs)


def _interface_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What transformers' experts interface computes (integrations/moe.py), in the same order of sums."""
    pairs = top_k_index.numel()
    tokens, per_token = hidden_states.shape[0], top_k_index.shape[-1]
    routing = _Routing.of(top_k_index.reshape(-1), self.num_experts)
    x = hidden_states.index_select(0, routing.order // per_token)
    has_gate = getattr(self, "has_gate", True)
    up = _multiplied(self, "gate_up_proj" if has_gate else "up_proj", x, routing)
    up = self._apply_gate(up) if has_gate else self.act_fn(up)
    down = _multiplied(self, "down_proj", up, routing)
    if getattr(self, "has_post_expert_norm", False):
        down = self.post_expert_norm(down)
    down = down * top_k_weights.reshape(-1).index_select(0, routing.order).unsqueeze(-1)
    down = down.new_zeros(pairs, down.shape[-1]).index_copy(0, routing.order, down)
    return down.view(tokens, per_token, down.shape[-1]).sum(1).to(hidden_states.dtype)


def _multiplied(self: Any, name: str, x: torch.Tensor, routing: _Routing) -> torch.Tensor:
    """x, the tokens of one expert after the other, times the weights of each, plus its bias if there is one."""
    weights, swapped = getattr(self, name), self.is_transposed
    parts = [_product(weights[expert], x[begin:end], swapped) for expert, begin, end in routing.runs]
    y = torch.cat(parts) if parts else x.new_zeros(0, weights.shape[2 if swapped else 1])
    if self.has_bias:
        counts = [end - begin for _, begin, end in routing.runs]
        numbers = torch.tensor([expert for expert, _, _ in routing.runs], dtype=torch.int64)
        y = y + getattr(self, f"{name}_bias")[numbers.repeat_interleave(torch.tensor(counts, dtype=torch.int64))]
    return y


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
    y = x.new_zeros(x.shape)
    for expert, of_expert in enumerate(routed):
        tokens = of_expert.nonzero().view(-1)
        if len(tokens):
            gate, up = _product(self.gate_up_proj[expert], x[expert].index_select(0, tokens), True).chunk(2, dim=-1)
            down = _product(self.down_proj[expert], up * self.act_fn(gate), True)
            # written in place, which autograd follows
            y[expert].index_copy_(0, tokens, down)
    return y.view(-1, self.hidden_size)


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
