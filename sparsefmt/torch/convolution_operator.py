"""Convolution with compressed weights as an operator of torch, `torch.ops.sparsefmt.convolution`.

    convolution(Tensor x, Tensor arrays, Tensor table, Tensor? bias, SymInt out_channels, int[] window) -> Tensor
    convolution_backward(Tensor gradient, Tensor arrays, Tensor table, SymInt[] size, int[] window) -> Tensor

x is (images, in_channels, rows, columns), `arrays` and `table` are as operator.py has them, and `window` is kernel,
stride, padding and dilation, each for rows and columns. `size` is that of x. Gradients flow to x and to the bias.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsefmt.torch.operator import FLOATS, known_of_module
from sparsefmt.torch.unfolded import Window, convolved, gradient_of_images, keeps_channels_last


def convolution(
    x: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    out_channels: int,
    window: list[int],
) -> torch.Tensor:
    """What the operator does on the CPU."""
    seen = Window.of(window)
    check_images(x)
    return convolved(x, known_of_module(arrays, table, out_channels, x.shape[1] * seen.places), bias, seen)


def check_images(x: torch.Tensor) -> None:
    if x.dim() != 4:
        raise RuntimeError(f"x has shape {tuple(x.shape)}; it must be (images, channels, rows, columns)")
    if x.dtype not in FLOATS:
        names = ", ".join(map(str, FLOATS))
        raise RuntimeError(f"x has dtype {x.dtype}; a sparse convolution takes {names}")


def _backward(
    gradient: torch.Tensor, arrays: torch.Tensor, table: torch.Tensor, size: list[int], window: list[int]
) -> torch.Tensor:
    seen = Window.of(window)
    weights = known_of_module(arrays, table, gradient.shape[1], size[1] * seen.places)
    return gradient_of_images(gradient, weights, seen, tuple(size))


def _fake(
    x: torch.Tensor,
    arrays: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None,
    out_channels: int,
    window: list[int],
) -> torch.Tensor:
    check_images(x)
    seen = Window.of(window)
    made = x.new_empty((x.shape[0], out_channels, *seen.size_of_result(tuple(x.shape[2:]))))
    return made.to(memory_format=torch.channels_last) if keeps_channels_last(x, seen) else made


def _backward_fake(
    gradient: torch.Tensor, arrays: torch.Tensor, table: torch.Tensor, size: list[int], window: list[int]
) -> torch.Tensor:
    return gradient.new_empty(size)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, arrays, table, bias, _, ctx.window = inputs
    ctx.save_for_backward(arrays, table)
    ctx.size, ctx.bias_dtype = list(x.shape), None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """With respect to x and bias. The weights are not trained."""
    arrays, table = ctx.saved_tensors
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        of_x = _backward_op(gradient, arrays, table, ctx.size, ctx.window)
    if ctx.needs_input_grad[3]:
        of_bias = gradient.sum((0, 2, 3)).to(ctx.bias_dtype)
    return of_x, None, None, of_bias, None, None


def _keep_for_second_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    gradient, arrays, table, _, ctx.window = inputs
    ctx.save_for_backward(arrays, table)
    ctx.out_channels = gradient.shape[1]


def _second_gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradient is linear in the one that it is made of: its own derivative is the convolution again."""
    arrays, table = ctx.saved_tensors
    return convolution_op(gradient, arrays, table, None, ctx.out_channels, ctx.window), None, None, None, None


_library = torch.library.Library("sparsefmt", "FRAGMENT")
_library.define(
    "convolution(Tensor x, Tensor arrays, Tensor table, Tensor? bias, SymInt out_channels, int[] window) -> Tensor"
)
_library.define(
    "convolution_backward(Tensor gradient, Tensor arrays, Tensor table, SymInt[] size, int[] window) -> Tensor"
)
_library.impl("convolution", convolution, "CPU")
_library.impl("convolution_backward", _backward, "CPU")
torch.library.register_fake("sparsefmt::convolution", _fake, lib=_library)
torch.library.register_fake("sparsefmt::convolution_backward", _backward_fake, lib=_library)
torch.library.register_autograd("sparsefmt::convolution", _gradients, setup_context=_keep_for_backward, lib=_library)
torch.library.register_autograd(
    "sparsefmt::convolution_backward", _second_gradients, setup_context=_keep_for_second_backward, lib=_library
)
convolution_op = torch.ops.sparsefmt.convolution
_backward_op = torch.ops.sparsefmt.convolution_backward
