"""Products of several layers at once: what they give one by one, and only where nobody would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparsefmt import SparseTensor
from sparsefmt.torch import SparseLinear
from sparsefmt.torch.grouped_layers import grouped_product

BOUNDS = [(0, 1), (1, 4), (4, 9)]


def layers(dtype: torch.dtype = torch.float32, bias: bool = False, out_features: int = 24) -> list[SparseLinear]:
    torch.manual_seed(0)
    made = []
    for _ in BOUNDS:
        dense = torch.nn.Linear(40, out_features, bias=bias, dtype=dtype)
        with torch.no_grad():
            dense.weight[torch.rand(out_features, 40) < 0.7] = 0
        made.append(SparseLinear.from_linear(dense))
    return made


def one_by_one(given: list[Any], x: torch.Tensor) -> torch.Tensor:
    return torch.cat([layer(x[begin:end]) for layer, (begin, end) in zip(given, BOUNDS, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("of_weights", [torch.float32, torch.bfloat16, torch.float64])
def test_the_bits_of_the_layers(dtype, of_weights):
    given, x = layers(of_weights), torch.randn(9, 40).to(dtype)
    x[3, 5] = float("nan")
    with torch.inference_mode():
        y = grouped_product(given, x, BOUNDS)
        expected = one_by_one(given, x)
    assert y is not None
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_strided_and_negated_activations():
    given = layers()
    with torch.no_grad():
        for x in (torch.randn(40, 9).t(), torch.view_as_complex(torch.randn(9, 40, 2)).conj().imag):
            y = grouped_product(given, x, BOUNDS)
            assert y is not None
            assert torch.equal(y, one_by_one(given, x.contiguous()))


def replaced(given: list[Any]) -> None:
    given[1].forward = lambda x: x[:, :24]


def subclass(given: list[Any]) -> None:
    given[2].__class__ = type("Other", (SparseLinear,), {})


TO_BE_CALLED: dict[str, Callable[[list[Any]], object]] = {
    "hook": lambda given: given[1].register_forward_hook(lambda *_: None),
    "hook before": lambda given: given[1].register_forward_pre_hook(lambda *_: None),
    "hook of gradients": lambda given: given[1].register_full_backward_hook(lambda *_: None),
    "bias": lambda given: given.insert(0, layers(bias=True)[0]),
    "scales": lambda given: given[2].set_weight(
        SparseTensor.from_dense(np.eye(24, 40, dtype=np.int8)), torch.ones(24, 1)
    ),
    "dense": lambda given: given.insert(0, torch.nn.Linear(40, 24, bias=False)),
    "other shape": lambda given: given.insert(0, layers(out_features=8)[0]),
    "other sums": lambda given: given.insert(0, layers(torch.float64)[0]),
    "replaced forward": replaced,
    "subclass": subclass,
    "none": lambda given: given.clear(),
}


@pytest.mark.parametrize("how", list(TO_BE_CALLED))
def test_layers_that_have_to_be_called(how):
    given = layers()
    TO_BE_CALLED[how](given)
    with torch.no_grad():
        assert grouped_product(given[:3], torch.randn(9, 40), BOUNDS) is None


def test_calls_that_somebody_sees():
    given, x = layers(), torch.randn(9, 40)
    assert grouped_product(given, x.requires_grad_(), BOUNDS) is None
    with torch.no_grad():
        assert grouped_product(given, x, BOUNDS) is not None
        handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
        try:
            assert grouped_product(given, x, BOUNDS) is None
        finally:
            handle.remove()
        assert grouped_product(given, x.to("meta"), BOUNDS) is None


def test_a_wrong_width():
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"x has shape \(9, 41\)"):
        grouped_product(layers(), torch.randn(9, 41), BOUNDS)
