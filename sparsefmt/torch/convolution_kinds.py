"""Which modules are convolutions that can be compressed, and which of them are worth it.

A compressed convolution multiplies many tokens at once, so that its speed depends on what it takes to unfold its
activations, for each of which there are as many products as it has channels in the result.
"""

from __future__ import annotations

import torch

MIN_SIZE = 1 << 12
"""Elements that the weight of a convolution must have to be replaced by default: 64 x 64. It has as many tokens as its
result has places, so that what a call costs is little beside them."""

FEW_CHANNELS, FEW_CHANNELS_OF_POINTS = 32, 96
"""Channels of the images from which on what is multiplied is more than what is moved: for windows, and for windows of
one place."""

MANY_CHANNELS = 256
"""Channels of the images from which on a window of one place is faster at SPARSITY_OF_MANY."""

MANY_RESULTS = 384
"""Channels of the result from which on a larger window is faster at SPARSITY_OF_MANY, however few others are."""

SPARSITY_OF_MANY = 0.6

LEAST_SPARSITY = 0.7
"""Part of the weight that must be zero elsewhere. All of these are for the slower one of AVX2 and AVX-512, Zen 4
(`python -m tools.bench.convolutions`)."""


def is_dense_convolution(module: torch.nn.Module) -> bool:
    """Whether a module is a convolution of one or two dimensions, of torch's own class or a subclass."""
    return isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d))


def why_not_convolution(module: torch.nn.Conv1d | torch.nn.Conv2d) -> str | None:
    """Why a convolution cannot be compressed, whatever its weight is; None if it can."""
    kind = type(module)
    if "forward" in module.__dict__:
        return f"it is a {kind.__name__} whose forward has been replaced"
    if kind not in (torch.nn.Conv1d, torch.nn.Conv2d):
        return f"it is a {kind.__name__}, whose forward is not known to be that of torch.nn.{kind.__mro__[1].__name__}"
    if module.groups != 1:
        return f"it is a convolution in {module.groups:,} groups, which are faster dense"
    return None


def why_slower(weight_shape: tuple[int, ...], sparsity: float) -> str | None:
    """Why a convolution with a weight (out_channels, in_channels, ...) is no faster compressed; None if it is."""
    results, channels, *window = weight_shape
    is_a_point = all(length == 1 for length in window)
    least = LEAST_SPARSITY
    if channels >= MANY_CHANNELS if is_a_point else results >= MANY_RESULTS:
        least = SPARSITY_OF_MANY
    elif channels < (FEW_CHANNELS_OF_POINTS if is_a_point else FEW_CHANNELS):
        return f"it has {channels} channels and {results} in the result, and is faster dense"
    if sparsity < least:
        size = "x".join(map(str, window))
        return (
            f"{sparsity:.1%} of its weight is zero: a convolution of {channels} to {results} channels with a window of"
            f" {size} is faster dense below {least:.0%}"
        )
    return None
