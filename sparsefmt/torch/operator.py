"""The product as an operator of torch, `torch.ops.sparsefmt.linear`, that compilers and exporters trace through.

    linear(Tensor x, Tensor arrays, Tensor table, Tensor? bias, SymInt out_features, SymInt in_features) -> Tensor
    linear_backward(Tensor gradient, Tensor arrays, Tensor table, SymInt out_features, SymInt in_features) -> Tensor
    dense(Tensor arrays, Tensor table, ScalarType dtype, SymInt out_features, SymInt in_features) -> Tensor

`arrays` and `table` are the weights, as weight_tensors.py has them: plain tensors, so that they survive whatever is
done to a module's buffers, in another process too, where `import sparsefmt.torch` makes the operators known. Weights
that were not made in this process are verified when they are first multiplied by. Nobody may write to them afterwards.

The result has the dtype of x. Sums are float32, or float64 if x or the weights are float64 or integers of 32 bits or
more; bias is added to the sums, which are rounded once.

The gradient for x is a product with the transposed weights. They are made for the first one, compressed like the
weights, and kept as long as those. Weights have no gradient.

`dense` gives the weights as a dense tensor, for code that uses them as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from sparsefmt.adapters.torch import as_torch
from sparsefmt.kernels.operand import Operand
from sparsefmt.threads import num_threads
from sparsefmt.torch.registry import Known, known

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""dtypes that x may have."""


def product(
    x: torch.Tensor,
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


def _linear_backward(
    gradient: torch.Tensor, arrays: torch.Tensor, table: torch.Tensor, out_features: int, in_features: int
) -> torch.Tensor:
    """gradient @ W, for x."""
    weights = known_of_module(arrays, table, out_features, in_features)
    return multiplied(gradient, weights.transposed, weights.wide, None)


def _dense(
    arrays: torch.Tensor, table: torch.Tensor, dtype: torch.dtype, out_features: int, in_features: int
) -> torch.Tensor:
    """The weights (out_features, in_features), bit for bit. dtype: the one that they have."""
    dense = dense_of(known_of_module(arrays, table, out_features, in_features))
    if dense.dtype != dtype:
        raise RuntimeError(f"the weights have dtype {dense.dtype}, and the module {dtype}")
    return dense


def dense_of(weights: Known) -> torch.Tensor:
    """The stored elements (rows, cols), bit for bit."""
    return as_torch(weights.tensor.todense(), weights.operand.dtype)


def multiplied(x: torch.Tensor, weights: Operand, wide: bool, bias: torch.Tensor | None) -> torch.Tensor:
    """x (..., cols) times the rows of the weights, in the dtype of x. wide: whether sums are float64 whatever x is."""
    # for few tokens, each call of torch can be seen in the time: 1 us or so
    dtype, shape = x.dtype, (*x.shape[:-1], weights.rows)
    summed = torch.float64 if wide or dtype == torch.float64 else torch.float32
    if x.requires_grad:
        x = x.detach()
    if dtype != summed:
        x = x.to(summed)
    if x.is_neg():
        x = x.resolve_neg()
    # in its final shape, since autograd lets nobody change a view in place
    y = torch.empty(shape, dtype=summed)
    x_rows, y_rows = x.numpy(), y.numpy()
    if len(shape) != 2:
        tokens = math.prod(shape[:-1])
        x_rows, y_rows = x_rows.reshape(tokens, weights.cols), y_rows.reshape(tokens, weights.rows)
    _multiply()(x_rows, weights, y_rows, thread_limit())
    if bias is not None:
        # no gradient flows here: either the operator keeps it, or nobody wants one
        y.add_(bias if bias.dtype == summed else bias.to(summed))
    return y if dtype == summed else rounded(y, dtype)


def thread_limit() -> int:
    """How many threads a product may use."""
    threads = torch.get_num_threads()
    return min(threads, num_threads()) if threads > 1 else threads


def rounded(sums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sums in another dtype, rounded once, to nearest."""
    if sums.dtype == torch.float64 and dtype in (torch.bfloat16, torch.float16):
        # torch takes float32 on the way, which would round twice: in the last of its bits what is inexact gets a one
        single = sums.float()
        exact = single.double()
        to_even = (exact != sums) & (single.view(torch.int32) & 1 == 0)
        beyond = torch.where(sums > exact, math.inf, -math.inf).float()
        sums = torch.where(to_even, torch.nextafter(single, beyond), single)
    return sums.to(dtype)


@cache
def _multiply() -> Callable[[np.ndarray, Operand, np.ndarray, int | None], object]:
    """The kernels, which take a while to import."""
    from sparsefmt.kernels.multiply import multiply

    return multiply


def check_input(x: torch.Tensor, in_features: int) -> None:
    if x.dim() < 1 or x.shape[-1] != in_features:
        raise RuntimeError(f"x has shape {tuple(x.shape)}; its last dimension must be in_features, {in_features}")
    if x.dtype not in FLOATS:
        names = ", ".join(map(str, FLOATS))
        raise RuntimeError(f"x has dtype {x.dtype}; SparseLinear takes {names}")


def known_of_module(arrays: torch.Tensor, table: torch.Tensor, out_features: int, in_features: int) -> Known:
    """The weights of a module with so many features. Raises RuntimeError if it has others, and as `known`."""
    weights = known(arrays, table)
    if (weights.operand.rows, weights.operand.cols) != (out_features, in_features):
        raise RuntimeError(
            f"the weights have shape {(weights.operand.rows, weights.operand.cols)}, and the module"
            f" {(out_features, in_features)}"
        )
    return weights


def _linear_fake(
    x: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    in_features: int,
) -> torch.Tensor:
    check_input(x, in_features)
    return x.new_empty((*x.shape[:-1], out_features))


def _linear_backward_fake(
    gradient: torch.Tensor, arrays: torch.Tensor, table: torch.Tensor, out_features: int, in_features: int
) -> torch.Tensor:
    return gradient.new_empty((*gradient.shape[:-1], in_features))


def _dense_fake(
    arrays: torch.Tensor, table: torch.Tensor, dtype: torch.dtype, out_features: int, in_features: int
) -> torch.Tensor:
    return arrays.new_empty((out_features, in_features), dtype=dtype)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, arrays, table, bias, ctx.out_features, ctx.in_features = inputs
    ctx.save_for_backward(arrays, table)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """With respect to x and bias. The weights are not trained."""
    arrays, table = ctx.saved_tensors
    of_x, of_bias = None, None
    if ctx.needs_input_grad[0]:
        of_x = _linear_backward_op(gradient, arrays, table, ctx.out_features, ctx.in_features)
    if ctx.needs_input_grad[3]:
        rows = gradient.reshape(math.prod(gradient.shape[:-1]), ctx.out_features)
        of_bias = rows.sum(0).to(ctx.bias_dtype)
    return of_x, None, None, of_bias, None, None


def _keep_for_second_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, arrays, table, ctx.out_features, ctx.in_features = inputs
    ctx.save_for_backward(arrays, table)


def _second_gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """gradient @ W is linear in the gradient: its own derivative is the product with W again."""
    arrays, table = ctx.saved_tensors
    again = linear_op(gradient, arrays, table, None, ctx.out_features, ctx.in_features)
    return again, None, None, None, None


_library = torch.library.Library("sparsefmt", "DEF")
_library.define(
    "linear(Tensor x, Tensor arrays, Tensor table, Tensor? bias, SymInt out_features, SymInt in_features) -> Tensor"
)
_library.define(
    "linear_backward(Tensor gradient, Tensor arrays, Tensor table, SymInt out_features, SymInt in_features) -> Tensor"
)
_library.define(
    "dense(Tensor arrays, Tensor table, ScalarType dtype, SymInt out_features, SymInt in_features) -> Tensor"
)
_library.impl("linear", product, "CPU")
_library.impl("linear_backward", _linear_backward, "CPU")
_library.impl("dense", _dense, "CPU")
torch.library.register_fake("sparsefmt::dense", _dense_fake, lib=_library)
torch.library.register_fake("sparsefmt::linear", _linear_fake, lib=_library)
torch.library.register_fake("sparsefmt::linear_backward", _linear_backward_fake, lib=_library)
torch.library.register_autograd("sparsefmt::linear", _gradients, setup_context=_keep_for_backward, lib=_library)
torch.library.register_autograd(
    "sparsefmt::linear_backward", _second_gradients, setup_context=_keep_for_second_backward, lib=_library
)
linear_op = torch.ops.sparsefmt.linear
dense_op = torch.ops.sparsefmt.dense
_linear_backward_op = torch.ops.sparsefmt.linear_backward
