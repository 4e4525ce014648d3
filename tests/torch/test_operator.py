"""The operator of torch: its gradients, and what compilers and exporters make of it."""

from __future__ import annotations

import io

import pytest
import torch
import torch._dynamo
import torch.nn.utils.prune
from torch_helpers import same
from torch_layers import FLOATS, LAYOUTS, dense_twin, layer_of

from sparsefmt.torch import SparseLinear
from sparsefmt.torch.operator import rounded


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_a_dense_layer(layout, dtype):
    layer = layer_of(70, 90, dtype, layout)
    twin = dense_twin(layer)
    x = torch.randn(2, 3, 90).to(FLOATS[dtype]).requires_grad_()
    x_twin = x.detach().double().requires_grad_()
    weighting = torch.randn(2, 3, 70)
    (layer(x) * weighting.to(x.dtype)).sum().backward()
    (twin(x_twin) * weighting.double()).sum().backward()
    precision = {"F32": 1e-5, "BF16": 2e-2, "F16": 3e-3, "F64": 1e-12}[dtype]
    assert x.grad.dtype == x.dtype
    torch.testing.assert_close(x.grad.double(), x_twin.grad, rtol=precision, atol=10 * precision)
    precision = max(precision, 1e-5)  # the bias is float32
    torch.testing.assert_close(layer.bias.grad.double(), twin.bias.grad, rtol=precision, atol=10 * precision)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_sums_in_double_are_rounded_once(dtype, bits):
    """Just beside the middle between two results, where float32 on the way would give the middle."""
    middle = 1 + torch.arange(1, 64, 2, dtype=torch.float64) * 2.0**-bits
    below, above = middle - 2.0**-bits, middle + 2.0**-bits
    assert torch.equal(rounded(middle - 2.0**-45, dtype).double(), below)
    assert torch.equal(rounded(middle + 2.0**-45, dtype).double(), above)
    assert torch.equal(rounded(-middle - 2.0**-45, dtype).double(), -above)
    assert torch.equal(rounded(middle, dtype), middle.to(dtype))
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e300, -1e300, 1e-300, 3.0], dtype=torch.float64)
    assert same(rounded(special, dtype), special.to(dtype))
    assert rounded(torch.tensor([torch.nan], dtype=torch.float64), dtype).isnan().all()


def test_gradients_of_several_tiles():
    layer = layer_of(2100, 1100, "BF16", bias=False)
    assert len(layer.weight.tensor.operand().tiles) > 2
    x = torch.randn(3, 1100, requires_grad=True)
    weighting = torch.randn(3, 2100)
    (layer(x) * weighting).sum().backward()
    expected = weighting.double() @ dense_twin(layer).weight
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_skip_pruned_weights_and_do_not_depend_on_the_batch():
    layer = layer_of(70, 90, bias=False)
    weight = layer.weight.to_dense()
    gradient = torch.randn(5, 70)
    gradient[0, 3] = torch.inf
    x = torch.randn(5, 90, requires_grad=True)
    layer(x).backward(gradient)
    assert torch.equal(torch.isfinite(x.grad[0]), weight[3] == 0)
    one = torch.randn(90, requires_grad=True)
    layer(one).backward(gradient[4])
    assert same(x.grad[4], one.grad)


def test_first_and_second_derivatives():
    layer = layer_of(7, 9, "F64").double()
    x = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_gradients_flow_to_what_asks_for_them_alone():
    layer = layer_of()
    x = torch.randn(3, 80)
    layer(x).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((60,), 3.0))
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    # a result may be changed in place
    y = layer(x.requires_grad_())
    torch.nn.functional.relu_(y).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", FLOATS.values())
def test_the_operator_is_as_torch_wants_it(dtype):
    layer = layer_of()
    x = torch.randn(2, 3, 80).to(dtype).requires_grad_()
    arguments = layer.weight_arrays, layer.weight_table, layer.bias, 60, 80
    torch.library.opcheck(torch.ops.sparsefmt.linear.default, (x, *arguments))
    gradient = torch.randn(2, 3, 60).to(dtype).requires_grad_()
    torch.library.opcheck(
        torch.ops.sparsefmt.linear_backward.default, (gradient, layer.weight_arrays, layer.weight_table, 60, 80)
    )


def test_compiled_as_one_graph_with_gradients():
    torch._dynamo.reset()
    model = torch.nn.Sequential(layer_of(), torch.nn.ReLU(), layer_of(80, 60, seed=1), layer_of(60, 80, seed=2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (2, 5):
        x = torch.randn(tokens, 80)
        results = []
        for function in (model, compiled):
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            y.sum().backward()
            results.append((y, leaf.grad))
        assert same(results[0][0], results[1][0])
        assert same(results[0][1], results[1][1])


def test_code_that_asks_for_the_dtype_of_the_weight_compiles():
    torch._dynamo.reset()
    layer = layer_of(dtype="BF16")

    @torch.compile(backend="eager", fullgraph=True)
    def call(x: torch.Tensor) -> torch.Tensor:
        return layer(x.to(layer.weight.dtype))

    y = call(torch.randn(2, 80))
    assert y.dtype == torch.bfloat16


def test_exported_saved_and_loaded():
    model = torch.nn.Sequential(layer_of(), torch.nn.ReLU(), layer_of(80, 60, seed=1)).eval()
    x = torch.randn(2, 80)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for tokens in (2, 5):
        x = torch.randn(tokens, 80)
        assert same(loaded(x), model(x))


def test_on_other_devices_nothing_is_multiplied():
    layer = layer_of()
    with torch._subclasses.FakeTensorMode():
        # a stand-in for a device that is not there
        x = torch.empty(2, 80, device="cuda")
        with pytest.raises(NotImplementedError, match=r"on the CPU; x is on cuda:0"):
            layer(x)
        elsewhere = SparseLinear(80, 60, device="cuda")
        with pytest.raises(NotImplementedError, match=r"its weights are on cuda:0"):
            elsewhere(torch.empty(2, 80))
