"""SparseRelativeAttention: XLNet's attention whose projections are compressed, and multiplied as they are.

XLNet keeps its projections in Parameters (d_model, n_head, d_head), and multiplies by them with torch.einsum. Those of
queries, keys, values and positions are matrices (in_features, out_features), that of the output is (out_features,
in_features), with heads and their channels for one dimension.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsefmt.torch.expert_kinds import OfAttention
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.with_stacks import MadeOnDemand


class SparseRelativeAttention(MadeOnDemand, OfAttention):
    """XLNet's attention with compressed projections. `sparsify` and loaders make it.

    Arguments, results, dropout and gradients are those of the dense class, whose scores and sums are computed by its
    own methods. Projections have the bits of `sparsefmt.linear`; one that is not compressed stays a Parameter, and is
    multiplied as one.
    """

    n_head: int
    d_head: int
    dropout: Any
    layer_norm: Any
    rel_attn_core: Any

    def forward(
        self,
        h: torch.Tensor,
        g: torch.Tensor | None,
        attn_mask_h: torch.Tensor | None,
        attn_mask_g: torch.Tensor | None,
        r: torch.Tensor,
        seg_mat: torch.Tensor | None,
        mems: torch.Tensor | None = None,
        target_mapping: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Any, ...]:
        """h, g: streams of contents and of queries (tokens, batch, d_model). r: (positions, batch, d_model).

        target_mapping: (targets, tokens, batch): which token each of the queries of g stands at.
        """
        has_past = mems is not None and mems.dim() > 1
        seen = torch.cat([mems, h]) if has_past and mems is not None else h
        keys = [self._by_heads("k", seen), self._by_heads("v", seen), self._by_heads("r", r.to(h.dtype))]
        found = [self._attended(self._by_heads("q", h), keys, (seg_mat, attn_mask_h, output_attentions))]
        outputs = [self.post_attention(h, found[0][0]), None]
        if g is not None:
            queries = self._by_heads("q", g)
            if target_mapping is not None:
                queries = torch.einsum("tbnd,tsb->sbnd", queries, target_mapping)
            attended, weights = self._attended(queries, keys, (seg_mat, attn_mask_g, output_attentions))
            if target_mapping is not None:
                attended = torch.einsum("sbnd,tsb->tbnd", attended, target_mapping)
            found.append((attended, weights))
            outputs[1] = self.post_attention(g, attended)
        if not output_attentions:
            return tuple(outputs)
        of_all = tuple(weights for _, weights in found)
        return (*outputs, of_all[0] if g is None else of_all)

    def post_attention(self, h: torch.Tensor, attn_vec: torch.Tensor, residual: bool = True) -> torch.Tensor:
        """The projection of what was attended to (tokens, batch, heads, d_head), and what is done behind it."""
        projected = self.dropout(_product(self.o, attn_vec.flatten(2), False))
        return self.layer_norm(projected + h if residual else projected)

    def _by_heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """x (tokens, batch, d_model) times a projection: (tokens, batch, heads, d_head)."""
        return _product(getattr(self, name), x, True).unflatten(-1, (self.n_head, self.d_head))

    def _attended(
        self, queries: torch.Tensor, keys: list[torch.Tensor], how: tuple[Any, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sums of values and their weights, by the dense class. how: segments, mask, whether weights are wanted."""
        made = self.rel_attn_core(queries, *keys, *how)
        return made if how[-1] else (made, None)


def _product(weight: Any, x: torch.Tensor, swapped: bool) -> torch.Tensor:
    """x times a projection: compressed, or a Parameter (d_model, heads, d_head), which takes d_model if swapped."""
    if isinstance(weight, SparseStack):
        return weight[0](x)
    matrix = weight.flatten(1)
    return x @ matrix if swapped else torch.nn.functional.linear(x, matrix)
