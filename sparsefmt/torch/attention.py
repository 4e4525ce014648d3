"""SparseMultiheadAttention: torch.nn.MultiheadAttention whose projections are compressed, and multiplied as they are.

Such a module stays the object that it was, as modules of experts do: it has a SparseStack in place of `in_proj_weight`,
one matrix for each of queries, keys and values, or three stacks of one matrix in place of `q_proj_weight` and the like.
`out_proj` becomes a SparseLinear: the dense class uses its weight without calling it, and this class calls it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.nn.functional import dropout, linear, pad, scaled_dot_product_attention
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from sparsefmt.torch.expert_kinds import OfAttention, is_multihead
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.with_stacks import WithStacks, stacks_of

_called: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
"""Output projections that are known to belong to a module that would call them, were they compressed."""


class SparseMultiheadAttention(WithStacks, torch.nn.MultiheadAttention, OfAttention):
    """A torch.nn.MultiheadAttention with compressed projections. `sparsify` and loaders make it.

    Arguments, masks, results, dropout and gradients are those of the dense class. Projections have the bits of
    `sparsefmt.linear`; one that is not compressed stays a Parameter, and is multiplied as one. torch's fast paths for
    inference, which want dense weights, are not taken, by layers around it neither. Nested tensors are refused.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """torch asks this before it takes a fast path."""
        return False

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query.is_nested or key.is_nested or value.is_nested:
            raise RuntimeError(
                "compressed attention takes no nested tensors: set use_nested_tensor = False in the TransformerEncoder"
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says what attn_mask is, and needs one: give the causal mask too")
        is_batched, first = query.dim() == 3, self.batch_first
        if not is_batched:
            query, key, value, first = query[None], key[None], value[None], True
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        q, k, v = self._projected(query, key, value)
        q, k, v = (x if first else x.transpose(0, 1) for x in (q, k, v))
        is_hint = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if is_hint else attn_mask, key_padding_mask, (len(q), q.shape[1], k.shape[1]), q.dtype)
        k, v, mask = self._lengthened(k, v, mask)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        p, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = dropout(weights, p) if p > 0 else weights
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batched else weights[0]
        else:
            attended = scaled_dot_product_attention(q, k, v, mask, p, is_hint)
        # (batch, heads, tokens, head_dim), in the order that the caller has
        attended = attended.permute((0, 2, 1, 3) if first else (2, 0, 1, 3)).flatten(2)
        y = self.out_proj(attended)
        return (y if is_batched else y[0]), weights

    def _projected(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys and values, each with its projection and bias."""
        packed: Any = self.in_proj_weight
        if packed is None:
            found: list[Any] = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
            weights = [weight[0] if isinstance(weight, SparseStack) else weight for weight in found]
        else:
            weights = list(packed) if isinstance(packed, SparseStack) else list(packed.chunk(3))
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [_product(x, weight, bias) for x, weight, bias in zip(inputs, weights, biases, strict=True)]

    def _mask(
        self,
        attn_mask: torch.Tensor | None,
        key_padding_mask: torch.Tensor | None,
        sizes: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> torch.Tensor | None:
        """What is added to scores (batch, heads, queries, keys), of a shape that broadcasts to that; None for nothing.

        sizes: batch, queries, keys.
        """
        batch, queries, keys = sizes
        parts = []
        if attn_mask is not None:
            allowed = ((queries, keys), (batch * self.num_heads, queries, keys))
            _expect_shape("attn_mask", attn_mask, *allowed)
            shape = (1, 1) if attn_mask.dim() == 2 else (batch, self.num_heads)
            parts.append(_added("attn_mask", attn_mask, dtype).view(*shape, queries, keys))
        if key_padding_mask is not None:
            _expect_shape("key_padding_mask", key_padding_mask, (batch, keys))
            parts.append(_added("key_padding_mask", key_padding_mask, dtype).view(batch, 1, 1, keys))
        return sum(parts[1:], parts[0]) if parts else None

    def _lengthened(
        self, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys and values with `bias_k`, `bias_v` and zeros behind them where the module has such, and their mask."""
        more = 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, one.expand(len(x), 1, -1)], 1) for x, one in ((k, self.bias_k), (v, self.bias_v)))
            more += 1
        if self.add_zero_attn:
            k, v = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1))
            more += 1
        return k, v, mask if mask is None or not more else pad(mask, (0, more))


def note_output_projections(model: torch.nn.Module) -> None:
    """Find the output projections that can become a SparseLinear, since the module that has them would call them."""
    others = set()
    for parent in model.modules():
        for name, child in parent._modules.items():
            if type(child) is NonDynamicallyQuantizableLinear:
                if name == "out_proj" and is_multihead(parent):
                    _called.add(child)
                else:
                    others.add(child)
    for child in others:
        _called.discard(child)


def is_output_projection(module: torch.nn.Module) -> bool:
    """Whether `note_output_projections` has found that a Linear is one, and nobody has replaced its forward."""
    return module in _called and "forward" not in module.__dict__


def fit_class(module: torch.nn.Module) -> None:
    """Make a MultiheadAttention sparse or dense, as its weights are now. Other modules stay as they are."""
    if not is_multihead(module):
        return
    assert isinstance(module, torch.nn.MultiheadAttention)
    output: torch.nn.Module = module.out_proj
    if type(output) is torch.nn.Linear:
        # the class that torch has here, which differs in nothing else
        output.__class__ = NonDynamicallyQuantizableLinear
    is_sparse = bool(stacks_of(module)) or not isinstance(output, torch.nn.Linear)
    module.__class__ = SparseMultiheadAttention if is_sparse else torch.nn.MultiheadAttention


def _product(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """x times the weights of a layer or a dense matrix, plus a bias."""
    if not isinstance(weight, torch.nn.Module):
        return linear(x, weight, bias)
    if type(weight) is SparseLinear and bias is not None and not weight._forward_hooks:
        return weight.product(x, bias)
    y = weight(x)
    return y if bias is None else y + bias


def _added(what: str, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as numbers to add: where it is True, minus infinity."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    if not mask.is_floating_point():
        raise TypeError(f"{what} has dtype {mask.dtype}: it must be bool or floating point")
    return mask


def _expect_shape(what: str, mask: torch.Tensor, *allowed: tuple[int, ...]) -> None:
    if tuple(mask.shape) not in allowed:
        raise RuntimeError(f"{what} has shape {tuple(mask.shape)}, and must have {' or '.join(map(str, allowed))}")
