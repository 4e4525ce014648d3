"""Products that do not go through torch's dispatcher: the same bits, and only where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparsefmt.torch import SparseLinear
from sparsefmt.torch import linear as linear_module
from sparsefmt.torch.operator import linear_op


def layer(bias: bool = True) -> SparseLinear:
    torch.manual_seed(0)
    dense = torch.nn.Linear(40, 24, bias=bias)
    with torch.no_grad():
        dense.weight[torch.rand(24, 40) < 0.7] = 0
    return SparseLinear.from_linear(dense)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The x of every product that was made directly."""
    made: list[torch.Tensor] = []

    def product(x, *weights):
        made.append(x)
        return real(x, *weights)

    real = linear_module.product
    monkeypatch.setattr(linear_module, "product", product)
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (40,), (2, 3, 40), (0, 40)])
def test_the_bits_of_the_operator(bias, dtype, shape, direct):
    sparse = layer(bias)
    x = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        y = sparse(x)
    assert len(direct) == 1
    expected = linear_op(x, sparse.weight_arrays, sparse.weight_table, sparse.bias, 24, 40)
    assert y.dtype == dtype
    assert y.shape == expected.shape
    assert torch.equal(y, expected)


def test_strided_and_negated_activations(direct):
    sparse = layer()
    with torch.no_grad():
        x = torch.randn(40, 6).t()
        assert torch.equal(sparse(x), sparse(x.contiguous()))
        negated = torch.view_as_complex(torch.randn(5, 40, 2)).conj().imag
        assert negated.is_neg()
        assert torch.equal(sparse(negated), sparse(negated.resolve_neg()))
        parameter = torch.nn.Parameter(torch.randn(3, 40))
        assert not sparse(parameter).requires_grad
    assert len(direct) == 5


@contextmanager
def seen_by(mode: type) -> Iterator[list[str]]:
    names: list[str] = []

    class Watching(mode):  # type: ignore[misc]
        def seen(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

        __torch_dispatch__ = __torch_function__ = seen

    with Watching():
        yield names


@pytest.mark.parametrize("mode", [TorchDispatchMode, TorchFunctionMode])
def test_modes_see_the_operator(mode, direct):
    sparse, x = layer(), torch.randn(3, 40)
    with torch.no_grad(), seen_by(mode) as names:
        sparse(x)
    assert any("sparsefmt.linear" in name for name in names)
    assert not direct


def test_transforms_and_tracers_see_the_operator(direct):
    sparse, x = layer(), torch.randn(3, 40)
    with torch.no_grad():
        traced = torch.jit.trace(sparse, x, check_trace=False)
        assert "sparsefmt::linear" in str(traced.graph)
        exported = torch.export.export(sparse, (x,))
        assert "sparsefmt.linear" in str(exported.graph)
        compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), linear_op(x, sparse.weight_arrays, sparse.weight_table, sparse.bias, 24, 40))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.jacrev(sparse)(x[0])
    assert not direct


def test_gradients_flow_where_they_are_wanted(direct):
    sparse, x = layer(), torch.randn(3, 40)
    # the bias is a Parameter that requires them
    sparse(x).sum().backward()
    assert torch.equal(sparse.bias.grad, torch.full((24,), 3.0))
    assert not direct
    sparse.requires_grad_(False)
    assert not sparse(x).requires_grad
    assert len(direct) == 1
    wanting = x.clone().requires_grad_()
    sparse(wanting).sum().backward()
    assert wanting.grad is not None
    assert len(direct) == 1


def test_a_bias_that_is_computed_anew(direct):
    """Parametrizations take the parameter out of the module's dictionary."""
    sparse, x = layer(), torch.randn(3, 40)

    class Twice(torch.nn.Module):
        def forward(self, bias):
            return 2 * bias

    with torch.no_grad():
        expected = sparse(x) + sparse.bias
        torch.nn.utils.parametrize.register_parametrization(sparse, "bias", Twice())
        assert torch.allclose(sparse(x), expected, atol=1e-6)
    assert len(direct) == 1


def test_subclasses_see_the_operator(direct):
    class Tagged(torch.Tensor):
        pass

    sparse = layer()
    with torch.no_grad():
        y = sparse(torch.randn(3, 40).as_subclass(Tagged))
    assert type(y) is Tagged
    assert not direct


def test_errors_are_those_of_the_operator():
    sparse = layer()
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="its last dimension must be in_features, 40"):
            sparse(torch.randn(3, 41))
        with pytest.raises(RuntimeError, match="SparseLinear takes"):
            sparse(torch.ones(3, 40, dtype=torch.int32))
        with pytest.raises(RuntimeError, match="has no weights yet"):
            SparseLinear(40, 24)(torch.randn(3, 40))
