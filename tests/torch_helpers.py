"""Tensors and models of torch compared to the bit, and layers that are not torch's own."""

from __future__ import annotations

import numpy as np
import torch
from helpers import weights


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal dtype, shape and bits."""
    return left.dtype == right.dtype and left.shape == right.shape and raw(left) == raw(right)


def same_state(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    """The same names, and tensors of equal bits."""
    states = left.state_dict(), right.state_dict()
    return states[0].keys() == states[1].keys() and all(same(states[0][name], states[1][name]) for name in states[0])


def conv1d(in_features: int, out_features: int) -> torch.nn.Module:
    """What transformers' own has of a layer, under its name."""
    kind = type("Conv1D", (torch.nn.Module,), {"__module__": "transformers.pytorch_utils"})
    made = kind()
    weight = weights(np.random.default_rng(0), (in_features, out_features), np.float32, 0.8)
    made.weight = torch.nn.Parameter(torch.from_numpy(weight))
    made.bias = torch.nn.Parameter(torch.randn(out_features))
    return made
