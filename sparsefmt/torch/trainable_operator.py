"""The product with weights whose values are trained, as operators of torch: `operator.py` with a gradient for values.

    trainable_linear(Tensor x, Tensor values, Tensor arrays, Tensor table, Tensor? bias, SymInt out_features,
                     SymInt in_features) -> Tensor
    trainable_linear_backward(Tensor gradient, Tensor arrays, Tensor table, SymInt out_features, SymInt in_features)
                              -> Tensor
    gradient_of_values(Tensor gradient, Tensor x, Tensor arrays, Tensor table, SymInt out_features, SymInt in_features,
                       SymInt count) -> Tensor

`values` are a view of the memory of `arrays` (`trainable.py`), so that what an optimizer does to them reaches the
product. They are an argument for autograd, which differentiates by them and refuses a backward pass if they have been
changed since the forward pass. `kernels/sampled.py` has both gradients, and the order in which they add.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sparsefmt.threads import num_threads
from sparsefmt.torch.operator import check_input, known_of_module, multiplied


def _product(
    x: torch.Tensor,
    values: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    """What the operator does on the CPU."""
    check_input(x, in_features)
    weights = known_of_module(arrays, table, out_features, in_features)
    return multiplied(x, weights.operand, weights.wide, bias)


def _product_backward(
    gradient: torch.Tensor, arrays: torch.Tensor, table: torch.Tensor, out_features: int, in_features: int
) -> torch.Tensor:
    """gradient @ W, for x."""
    weights = known_of_module(arrays, table, out_features, in_features)
    summed = torch.float64 if weights.wide else torch.float32
    made = weights.sampled.of_x(_rows(gradient, summed).numpy(), _threads())
    return torch.from_numpy(made).to(gradient.dtype).view(*gradient.shape[:-1], in_features)


def _gradient_of_values(
    gradient: torch.Tensor,
    x: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    out_features: int,
    in_features: int,
    count: int,
) -> torch.Tensor:
    """gradient.T @ x at the positions of the values, in their order: float32, or float64 for values of float64."""
    weights = known_of_module(arrays, table, out_features, in_features)
    summed = torch.float64 if weights.wide else torch.float32
    made = weights.sampled.of_values(_rows(x, summed).numpy(), _rows(gradient, summed).numpy(), _threads())
    return torch.from_numpy(made)


def _rows(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(tokens, features), of the dtype of the sums."""
    return tensor.detach().to(dtype).resolve_neg().reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _threads() -> int:
    return min(torch.get_num_threads(), num_threads())


def _product_fake(
    x: torch.Tensor,
    values: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    check_input(x, in_features)
    return x.new_empty((*x.shape[:-1], out_features))


def _product_backward_fake(
    gradient: torch.Tensor, arrays: torch.Tensor, table: torch.Tensor, out_features: int, in_features: int
) -> torch.Tensor:
    return gradient.new_empty((*gradient.shape[:-1], in_features))


def _gradient_of_values_fake(
    gradient: torch.Tensor,
    x: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    out_features: int,
    in_features: int,
    count: int,
) -> torch.Tensor:
    return gradient.new_empty((count,), dtype=torch.float32)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, values, arrays, table, bias, ctx.out_features, ctx.in_features = inputs
    ctx.save_for_backward(x, values, arrays, table)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """With respect to x, values and bias."""
    x, values, arrays, table = ctx.saved_tensors
    of_x, of_values, of_bias = None, None, None
    features = ctx.out_features, ctx.in_features
    if ctx.needs_input_grad[0]:
        of_x = _product_backward_op(gradient, arrays, table, *features)
    if ctx.needs_input_grad[1]:
        of_values = _gradient_of_values_op(gradient, x, arrays, table, *features, values.numel()).to(values.dtype)
    if ctx.needs_input_grad[4]:
        of_bias = gradient.reshape(math.prod(gradient.shape[:-1]), ctx.out_features).sum(0).to(ctx.bias_dtype)
    return of_x, of_values, None, None, of_bias, None, None


_library = torch.library.Library("sparsefmt", "FRAGMENT")
_library.define(
    "trainable_linear(Tensor x, Tensor values, Tensor arrays, Tensor table, Tensor? bias, SymInt out_features,"
    " SymInt in_features) -> Tensor"
)
_library.define(
    "trainable_linear_backward(Tensor gradient, Tensor arrays, Tensor table, SymInt out_features, SymInt in_features)"
    " -> Tensor"
)
_library.define(
    "gradient_of_values(Tensor gradient, Tensor x, Tensor arrays, Tensor table, SymInt out_features,"
    " SymInt in_features, SymInt count) -> Tensor"
)
_library.impl("trainable_linear", _product, "CPU")
_library.impl("trainable_linear_backward", _product_backward, "CPU")
_library.impl("gradient_of_values", _gradient_of_values, "CPU")
torch.library.register_fake("sparsefmt::trainable_linear", _product_fake, lib=_library)
torch.library.register_fake("sparsefmt::trainable_linear_backward", _product_backward_fake, lib=_library)
torch.library.register_fake("sparsefmt::gradient_of_values", _gradient_of_values_fake, lib=_library)
torch.library.register_autograd(
    "sparsefmt::trainable_linear", _gradients, setup_context=_keep_for_backward, lib=_library
)
trainable_linear_op = torch.ops.sparsefmt.trainable_linear
_product_backward_op = torch.ops.sparsefmt.trainable_linear_backward
_gradient_of_values_op = torch.ops.sparsefmt.gradient_of_values
