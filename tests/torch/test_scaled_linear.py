"""SparseLinear with scaled weights: elements of a byte times scales, and activations in eight bits."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch._dynamo
from helpers import pretend
from torch_helpers import same
from torch_layers import LAYOUTS, sparse_tensor

import sparsefmt
from sparsefmt import SparseTensor, UnsupportedError
from sparsefmt.torch import SparseLinear, make_dense, parameter_count, registry, tensors_of

ROWS, COLS = 60, 96
GROUPS = [1, 3]
BYTES = ["I8", "F8_E4M3"]


def elements(dtype: str = "I8", layout: str = "auto", seed: int = 0) -> SparseTensor:
    if dtype == "I8":
        made = np.random.default_rng(seed).integers(-127, 128, (ROWS, COLS)).astype(np.int8)
        made[np.random.default_rng(seed + 1).random((ROWS, COLS)) < 0.7] = 0
        return SparseTensor.from_dense(made, layout)
    return sparse_tensor(ROWS, COLS, dtype, layout, 0.7, seed)


def scales(groups: int = 1, seed: int = 0) -> torch.Tensor:
    made = torch.rand((ROWS, groups), generator=torch.Generator().manual_seed(seed)) / 100
    made[3] = 0
    return made


def scaled(stored: str = "I8", groups: int = 1, layout: str = "auto", bias: bool = True, **how) -> SparseLinear:
    given = torch.randn(ROWS) if bias else None
    return SparseLinear.from_tensor(elements(stored, layout), given, scale=scales(groups), **how)


def dense_weight(layer: SparseLinear) -> torch.Tensor:
    """The weight in float64, made in another way than the library does."""
    q = torch.from_numpy(layer.weight.tensor.todense().astype(np.float64))
    return q * layer.weight_scale.double().repeat_interleave(layer.in_features // layer.weight_scale.shape[1], 1)


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", GROUPS)
def test_equal_to_the_bit_to_linear_of_the_library(groups, layout, x_dtype, activations):
    layer = scaled(groups=groups, layout=layout, activations=activations)
    for leading in ((), (1,), (2, 3), (0,)):
        x = torch.randn(*leading, COLS).to(x_dtype)
        wide = x.float() if activations else x.to(torch.promote_types(x_dtype, torch.float32))
        y = sparsefmt.linear(
            wide.numpy(),
            elements(layout=layout),
            layer.bias.detach().numpy(),
            scale=scales(groups).numpy(),
            activations=activations,
        )
        assert same(layer(x), torch.from_numpy(y).to(x_dtype))
        # with gradients, it is the operator that computes
        assert same(layer(x.requires_grad_()), layer(x.detach()))


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("groups", GROUPS)
def test_close_to_a_dense_layer_with_the_dequantized_weight(groups, dtype):
    layer = scaled(dtype, groups)
    x = torch.randn(5, COLS)
    expected = x.double() @ dense_weight(layer).T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.nn.functional.linear(x, layer.weight, layer.bias).equal(layer(x))


def test_a_fixed_scale_of_activations_is_used():
    layer = scaled(activations="int8", input_scale=0.05)
    x = torch.randn(4, COLS)
    x[0, 0] = 100  # is clamped
    rounded = torch.round(x / 0.05).clamp(-127, 127).double() * float(layer.input_scale)
    expected = rounded @ dense_weight(layer).T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weight_is_elements_times_scales(dtype, groups):
    layer = scaled(groups=groups, dtype=dtype)
    expected = dense_weight(layer).to(torch.promote_types(dtype, torch.float32)).to(dtype)
    assert layer.weight.dtype == dtype
    assert same(layer.weight.to_dense(), expected)
    assert np.array_equal(np.asarray(layer.weight, np.float32), expected.float().numpy())
    assert float((layer.weight != 0).float().mean()) == float((expected != 0).float().mean())
    assert layer.weight.tensor.dtype == np.int8


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_are_those_of_the_float_product(x_dtype, groups, activations):
    layer = scaled(groups=groups, activations=activations)
    x = torch.randn(2, 3, COLS).to(x_dtype).requires_grad_()
    weighting = torch.randn(2, 3, ROWS).to(x_dtype)
    (layer(x) * weighting).sum().backward()
    expected = weighting.double() @ dense_weight(layer)
    # with scales of groups, the weights are dequantized in float32
    precision = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12 if groups == 1 else 1e-5}[x_dtype]
    assert x.grad.dtype == x_dtype
    torch.testing.assert_close(x.grad.double(), expected, rtol=precision, atol=10 * precision)
    torch.testing.assert_close(layer.bias.grad, weighting.float().sum((0, 1)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("groups", GROUPS)
def test_first_and_second_derivatives(groups):
    layer = scaled(groups=groups).double()
    x = torch.randn(2, COLS, dtype=torch.float64, requires_grad=True)
    if groups == 1:
        assert torch.autograd.gradcheck(layer, (x,))
        assert torch.autograd.gradgradcheck(layer, (x,))
    (first,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    weight = dense_weight(layer)
    torch.testing.assert_close(second, (2 * weight.T @ weight).sum(0).expand(2, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activations", [None, "int8"])
def test_the_operators_are_as_torch_wants_them(activations):
    layer = scaled(groups=3, activations=activations, input_scale=0.1 if activations else None)
    weights = layer.weight_arrays, layer.weight_table
    x = torch.randn(2, 3, COLS, requires_grad=True)
    rest = layer.bias, layer.weight_scale, layer.input_scale, activations, ROWS, COLS
    torch.library.opcheck(torch.ops.sparsefmt.scaled_linear.default, (x, *weights, *rest))
    gradient = torch.randn(2, 3, ROWS, requires_grad=True)
    rest = layer.weight_scale, ROWS, COLS
    torch.library.opcheck(torch.ops.sparsefmt.scaled_linear_backward.default, (gradient, *weights, *rest))
    rest = layer.weight_scale, torch.float32, ROWS, COLS
    torch.library.opcheck(torch.ops.sparsefmt.scaled_dense.default, (*weights, *rest))


@pytest.mark.parametrize("activations", [None, "int8"])
def test_compiled_and_exported(activations):
    torch._dynamo.reset()
    model = torch.nn.Sequential(scaled(activations=activations), torch.nn.ReLU()).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (2, 5):
        x = torch.randn(tokens, COLS)
        results = []
        for function in (model, compiled):
            leaf = x.clone().requires_grad_()
            y = function(leaf)
            y.sum().backward()
            results.append((y, leaf.grad))
        assert same(results[0][0], results[1][0])
        assert same(results[0][1], results[1][1])
    x = torch.randn(2, COLS)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.randn(7, COLS)
    assert same(torch.export.load(file).module()(x), model(x))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def product(x: torch.Tensor) -> torch.Tensor:
        return x @ model[0].weight.to_dense().t()

    torch.testing.assert_close(product(x), x @ model[0].weight.to_dense().t())


def test_copies_share_elements_and_scales():
    layer = scaled(activations="int8", input_scale=0.1)
    copied = copy.deepcopy(torch.nn.ModuleList([layer, layer]))
    assert copied[0] is copied[1]
    assert copied[0].weight_scale is layer.weight_scale
    assert copied[0].weight_arrays is layer.weight_arrays
    x = torch.randn(COLS)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for restored in (copied[0], pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert restored.activations == "int8"
        assert same(restored(x), layer(x))
    other = SparseLinear(COLS, ROWS)
    other.share_weight(layer)
    assert other.is_tied
    assert other.weight_scale is layer.weight_scale
    other.bias = layer.bias
    assert same(other(x), layer(x))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("how", [{}, {"activations": "int8"}, {"activations": "int8", "input_scale": 0.1}])
def test_state_dicts_have_the_scales(how, groups, assign):
    layer = scaled(groups=groups, **how)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fixed = ["input_scale"] if "input_scale" in how else []
    assert sorted(state) == sorted(["bias", "weight_arrays", "weight_table", "weight_scale", *fixed])
    empty = SparseLinear(COLS, ROWS)
    empty.set_activations(how.get("activations"))
    keys = empty.load_state_dict(state, assign=assign)
    assert not keys.missing_keys
    assert not keys.unexpected_keys
    x = torch.randn(2, COLS)
    assert same(empty(x), layer(x))
    # those of groups are laid out as kernels read them
    shared = assign and groups == 1
    assert (empty.weight_scale.data_ptr() == state["weight_scale"].data_ptr()) == shared
    # and back to weights without scales
    empty.load_state_dict(torch.nn.Linear(COLS, ROWS).state_dict())
    assert empty.weight_scale is empty.input_scale is empty.activations is None


def test_the_state_under_the_names_of_a_dense_model():
    layer = scaled()
    tensors = tensors_of(torch.nn.Sequential(layer))
    assert sorted(tensors) == ["0.bias", "0.weight", "0.weight_scale"]
    assert tensors["0.weight"].dtype == np.int8
    empty = SparseLinear(COLS, ROWS)
    empty.load_state_dict({name.removeprefix("0."): tensor for name, tensor in tensors.items()})
    x = torch.randn(2, COLS)
    assert same(empty(x), layer(x))


def test_a_state_that_is_damaged_is_named():
    state = scaled().state_dict()
    for wrong in (torch.ones(ROWS, 5), -torch.ones(ROWS, 1), torch.ones(ROWS, 1) * torch.nan, torch.ones(3, 1)):
        with pytest.raises(RuntimeError, match=r'While loading "weight": .*scale'):
            SparseLinear(COLS, ROWS).load_state_dict({**state, "weight_scale": wrong})
    with pytest.raises(RuntimeError, match="input_scale must be a positive number"):
        SparseLinear(COLS, ROWS).load_state_dict({**state, "input_scale": torch.tensor(-1.0)})


def test_other_dtypes_change_what_the_weight_is_to_code_alone():
    layer = scaled()
    arrays, scale, x = layer.weight_arrays, layer.weight_scale, torch.randn(3, COLS)
    expected = layer(x)
    for dtype in (torch.bfloat16, torch.float64, torch.float16, torch.float32):
        layer.to(dtype)
        assert layer.weight_arrays is arrays
        assert same(layer.weight_scale, scale)
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert layer.weight.to_dense().dtype == dtype
    # the bias was rounded
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)
    layer.type(torch.float64)
    assert layer.weight_scale.dtype == torch.float32


def test_dense_again():
    model = torch.nn.Sequential(scaled(groups=3, activations="int8"))
    expected = model[0].weight.to_dense()
    make_dense(model)
    assert type(model[0]) is torch.nn.Linear
    assert same(model[0].weight.detach(), expected)
    assert model[0].weight.requires_grad


def test_what_is_said_of_it():
    assert "values=int8, scale of rows, layout=" in repr(scaled())
    text = repr(scaled("F8_E4M3", 3))
    assert "values=float8_e4m3fn, scale of 3 groups a row" in text
    assert "dtype=torch.float32" in text
    assert f"of {4 * ROWS * COLS:,} bytes" in text
    assert "activations=int8, layout" in repr(scaled(activations="int8"))
    assert "activations=int8 with a fixed scale" in repr(scaled(activations="int8", input_scale=1))
    assert parameter_count(torch.nn.Sequential(scaled(bias=False))).total == ROWS * COLS


def test_scaled_weights_are_not_changed_in_place():
    layer = scaled()
    with pytest.raises(RuntimeError, match="would be rounded again"):
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="would be rounded again"):
        layer.weight.data = torch.zeros(ROWS, COLS)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"scale": torch.ones(ROWS, 5)}, "scale"),
        ({"scale": torch.ones(COLS)}, "scale"),
        ({"scale": torch.ones(ROWS, dtype=torch.float64)}, "scale"),
        ({"scale": torch.ones(ROWS, dtype=torch.int32)}, "scale"),
        ({"scale": torch.full((ROWS,), -1.0)}, "scale"),
        ({"scale": torch.full((ROWS,), torch.nan)}, "scale"),
        ({"scale": torch.full((ROWS,), torch.inf)}, "scale"),
        ({"scale": 1.0, "activations": "int4"}, "activations must be None or 'int8', not 'int4'"),
        ({"activations": "int8"}, "is for scaled weights of int8 .I8., and these are not scaled"),
        ({"scale": 1.0, "input_scale": 1.0}, 'input_scale is for activations="int8"'),
        ({"scale": 1.0, "activations": "int8", "input_scale": 0.0}, "input_scale must be a positive number, not 0.0"),
        ({"scale": 1.0, "activations": "int8", "input_scale": torch.ones(2)}, "input_scale must be a positive number"),
    ],
)
def test_what_cannot_be(how, words):
    with pytest.raises(ValueError, match=words):
        SparseLinear.from_tensor(elements(), **how)


def test_activations_in_eight_bits_are_for_int8():
    with pytest.raises(UnsupportedError, match="and these are scaled elements of F8_E4M3") as caught:
        scaled("F8_E4M3", activations="int8")
    assert caught.value.code == "activations-dtype"


@pytest.mark.parametrize("scale", [0.5, np.float32(0.5), torch.tensor(0.5), torch.full((ROWS, 1), 0.5).bfloat16()])
def test_scales_of_all_shapes_and_dtypes(scale):
    layer = SparseLinear.from_tensor(elements(), scale=scale)
    assert layer.weight_scale.dtype == torch.float32
    assert layer.weight_scale.shape == (ROWS, 1)
    assert torch.equal(layer.weight.to_dense(), 0.5 * torch.from_numpy(elements().todense()).float())


def test_layout_follows_the_scales(monkeypatch):
    """Groups of columns are multiplied faster in a bitmask, and so are eight bits by an instruction for them."""
    assert scaled(groups=1, layout="permuted").weight.tensor.layout == "permuted"
    assert scaled(groups=3, layout="permuted").weight.tensor.layout == "bitmask"
    for has_instruction, layout in ((False, "permuted"), (True, "bitmask")):
        pretend(monkeypatch, DOTS=has_instruction)
        layer = scaled(layout="permuted", activations="int8")
        assert layer.weight.tensor.layout == layout
        assert np.array_equal(layer.weight.tensor.todense(), elements().todense())
        assert torch.equal(layer.weight_scale, scales())


@pytest.mark.parametrize("activations", [None, "int8"])
def test_scales_are_not_held_a_second_time_for_products(activations):
    """They are the memory of the layer, of groups too; a state_dict and copies of the layer are multiplied as well."""
    for groups in GROUPS:
        layer = scaled(groups=groups, layout="bitmask", activations=activations)
        x = torch.ones(2, COLS)
        y = layer(x)
        weights = registry.known(layer.weight_arrays, layer.weight_table)
        [held] = weights.scales.values()
        assert held.scales.values.ctypes.data == layer.weight_scale.data_ptr()
        if groups > 1:
            assert weights.operand.grouped[2].scales is held.scales.values
        state = layer.state_dict()
        assert state["weight_scale"].is_contiguous()
        for assign in (False, True):
            again = scaled(groups=1, layout="bitmask", activations=activations)
            again.load_state_dict(state, assign=assign)
            assert torch.equal(again(x), y)
        held_anew = registry.known_scales(again.weight_scale, registry.known(again.weight_arrays, again.weight_table))
        assert held_anew.scales.values.ctypes.data == again.weight_scale.data_ptr()
        # without room behind them
        again.weight_scale = layer.weight_scale.clone()
        assert torch.equal(again(x), y)
        assert torch.equal(torch.from_numpy(held.scales.values.T.copy()), layer.weight_scale)
