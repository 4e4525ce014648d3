"""StandIn, which is the dense tensor to every operation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sparsefmt.tensor import SparseTensor
from sparsefmt.transformers.compressed_parameter import StandIn
from sparsefmt.transformers.compressed_stack import StackStandIn

pytestmark = pytest.mark.usefixtures("small_layers")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def test_stand_in_is_the_dense_tensor_to_every_operation() -> None:
    rng = np.random.default_rng(0)
    array = np.where(rng.random((40, 70)) < 0.8, 0, rng.standard_normal((40, 70))).astype(np.float32)
    tensor, stand_in = torch.from_numpy(array), StandIn(SparseTensor.from_dense(array))
    assert (stand_in.shape, stand_in.dtype, stand_in.device.type) == (tensor.shape, tensor.dtype, "cpu")
    for moved in (
        stand_in.to("cpu"),
        stand_in.detach(),
        stand_in[...],
        stand_in.clone(),
        stand_in.contiguous(),
        torch.nn.Parameter(stand_in),
        copy.copy(stand_in),
    ):
        assert isinstance(moved, StandIn)
        assert moved.compressed is stand_in.compressed
    rounded = stand_in.to(torch.bfloat16)
    assert isinstance(rounded, StandIn)
    assert bits(rounded.dense()).equal(bits(tensor.to(torch.bfloat16)))
    for operation in (
        lambda x: x.t(),
        lambda x: x[3:5],
        lambda x: x + 1,
        lambda x: torch.cat([x, x], dim=1),
        lambda x: torch.stack([x, x], dim=1),
        lambda x: x.chunk(2)[1],
        lambda x: x.reshape(-1),
        lambda x: torch.empty(40, 70).copy_(x),
        lambda x: torch.nn.functional.linear(torch.ones(2, 70), x),
    ):
        made = operation(stand_in)
        assert type(made) is torch.Tensor
        assert made.equal(operation(tensor))
    # as the experts of a layer are put together
    stack = torch.stack([stand_in, stand_in])
    assert isinstance(stack, StackStandIn)
    assert stack.dense().equal(torch.stack([tensor, tensor]))
    assert "sparsity=0.797" in repr(stand_in)
