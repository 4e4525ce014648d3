"""Products with scaled weights as operators of torch: `operator.py` with scales, and with activations in eight bits.

    scaled_linear(Tensor x, Tensor arrays, Tensor table, Tensor? bias, Tensor scale, Tensor? input_scale,
                  str? activations, SymInt out_features, SymInt in_features) -> Tensor
    scaled_linear_backward(Tensor gradient, Tensor arrays, Tensor table, Tensor scale, SymInt out_features,
                           SymInt in_features) -> Tensor
    scaled_dense(Tensor arrays, Tensor table, Tensor scale, ScalarType dtype, SymInt out_features, SymInt in_features)
                 -> Tensor

`scale` is float32 (rows, groups), and nobody may write to it, as to the others. SPEC.md, "Products", has the order of
what is added and multiplied. The result has the dtype of x: sums are float32, or float64 if x is, and float32 always
for `activations="int8"`.

The gradient for x is that of the float product, with the weights that q and scale stand for. For `activations="int8"`
that is an estimate, called straight-through: rounding activations has a derivative of 0 almost everywhere, from which
nothing could be learnt.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any

import torch

from sparsefmt.scales import Scaling
from sparsefmt.torch import operator
from sparsefmt.torch.operator import check_input, known_of_module
from sparsefmt.torch.registry import Known, known_scales


def scaled_product(
    x: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    activations: str | None,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    """What the operator does on the CPU."""
    check_input(x, in_features)
    weights = known_of_module(arrays, table, out_features, in_features)
    scales = known_scales(scale, weights).scales
    summed = torch.float32 if activations is not None else _summed(x, weights)
    x_rows = x.detach().to(summed).resolve_neg().numpy()
    y = torch.empty((*x.shape[:-1], out_features), dtype=summed)
    _products().linear(
        x_rows,
        weights.operand,
        out=y.numpy(),
        threads=operator.thread_limit(),
        scaling=Scaling(scales, activations is not None, None if input_scale is None else float(input_scale)),
    )
    if bias is not None:
        y.add_(bias if bias.dtype == summed else bias.to(summed))
    return y if x.dtype == summed else operator.rounded(y, x.dtype)


def dequantized(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights that q (rows, cols) and scale (rows, groups) stand for: the products in float32, rounded to `dtype`.

    In float64 where that is the dtype.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    made = q.to(wide)
    groups = made.view(*scale.shape, -1) if made.numel() else made
    if made.numel():
        groups.mul_(scale.to(wide).unsqueeze(2))
    return made.to(dtype)


def _summed(x: torch.Tensor, weights: Known) -> torch.dtype:
    return torch.float64 if weights.wide or x.dtype == torch.float64 else torch.float32


@cache
def _products() -> ModuleType:
    """The kernels, which take a while to import."""
    from sparsefmt.kernels import linear

    return linear


def _scaled_linear_backward(
    gradient: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    """gradient @ (q scaled), for x."""
    weights = known_of_module(arrays, table, out_features, in_features)
    scales = known_scales(scale, weights)
    if scale.shape[1] != 1:
        return operator.multiplied(gradient, scales.transposed, weights.wide, None)
    scaled = gradient.to(_summed(gradient, weights)) * scale[:, 0]
    return operator.multiplied(scaled, weights.transposed, weights.wide, None).to(gradient.dtype)


def _scaled_dense(
    arrays: torch.Tensor,
    table: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    """The weights (out_features, in_features) that code sees."""
    return dequantized(operator.dense_of(known_of_module(arrays, table, out_features, in_features)), scale, dtype)


def _scaled_linear_fake(
    x: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    input_scale: torch.Tensor | None,
    activations: str | None,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    check_input(x, in_features)
    return x.new_empty((*x.shape[:-1], out_features))


def _scaled_linear_backward_fake(
    gradient: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    return gradient.new_empty((*gradient.shape[:-1], in_features))


def _scaled_dense_fake(
    arrays: torch.Tensor,
    table: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    return arrays.new_empty((out_features, in_features), dtype=dtype)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, arrays, table, bias, scale, _, _, ctx.out_features, ctx.in_features = inputs
    ctx.save_for_backward(arrays, table, scale)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """With respect to x and bias. Neither weights nor scales are trained."""
    arrays, table, scale = ctx.saved_tensors
    of_x, of_bias = None, None
    if ctx.needs_input_grad[0]:
        of_x = _scaled_linear_backward_op(gradient, arrays, table, scale, ctx.out_features, ctx.in_features)
    if ctx.needs_input_grad[3]:
        rows = gradient.reshape(math.prod(gradient.shape[:-1]), ctx.out_features)
        of_bias = rows.sum(0).to(ctx.bias_dtype)
    return of_x, None, None, of_bias, None, None, None, None, None


def _keep_for_second_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, arrays, table, scale, ctx.out_features, ctx.in_features = inputs
    ctx.save_for_backward(arrays, table, scale)


def _second_gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """gradient @ W is linear in the gradient: its own derivative is the float product with W again."""
    arrays, table, scale = ctx.saved_tensors
    again = scaled_linear_op(gradient, arrays, table, None, scale, None, None, ctx.out_features, ctx.in_features)
    return again, None, None, None, None, None


_library = torch.library.Library("sparsefmt", "FRAGMENT")
_library.define(
    "scaled_linear(Tensor x, Tensor arrays, Tensor table, Tensor? bias, Tensor scale, Tensor? input_scale,"
    " str? activations, SymInt out_features, SymInt in_features) -> Tensor"
)
_library.define(
    "scaled_linear_backward(Tensor gradient, Tensor arrays, Tensor table, Tensor scale, SymInt out_features,"
    " SymInt in_features) -> Tensor"
)
_library.define(
    "scaled_dense(Tensor arrays, Tensor table, Tensor scale, ScalarType dtype, SymInt out_features,"
    " SymInt in_features) -> Tensor"
)
_library.impl("scaled_linear", scaled_product, "CPU")
_library.impl("scaled_linear_backward", _scaled_linear_backward, "CPU")
_library.impl("scaled_dense", _scaled_dense, "CPU")
torch.library.register_fake("sparsefmt::scaled_dense", _scaled_dense_fake, lib=_library)
torch.library.register_fake("sparsefmt::scaled_linear", _scaled_linear_fake, lib=_library)
torch.library.register_fake("sparsefmt::scaled_linear_backward", _scaled_linear_backward_fake, lib=_library)
torch.library.register_autograd("sparsefmt::scaled_linear", _gradients, setup_context=_keep_for_backward, lib=_library)
torch.library.register_autograd(
    "sparsefmt::scaled_linear_backward", _second_gradients, setup_context=_keep_for_second_backward, lib=_library
)
scaled_linear_op = torch.ops.sparsefmt.scaled_linear
scaled_dense_op = torch.ops.sparsefmt.scaled_dense
_scaled_linear_backward_op = torch.ops.sparsefmt.scaled_linear_backward
