"""The weight of a SparseLinear, used as a tensor: right results or an error, never a silent wrong one or a lost change.

And the same of SparseTensor, with numpy.
"""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch_helpers import conv1d

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.torch import SparseLinear, load_into, parameter_count, save_model, sparsify

pytestmark = pytest.mark.usefixtures("small_layers")


def dense_layer(dtype: torch.dtype = torch.float32, out_features: int = 60, in_features: int = 80) -> torch.nn.Linear:
    torch.manual_seed(0)
    layer = torch.nn.Linear(in_features, out_features).to(dtype)
    with torch.no_grad():
        layer.weight[torch.rand(layer.weight.shape) < 0.8] = 0
    return layer


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def pair(request):
    """A layer's weight, and the same compressed."""
    layer = dense_layer(request.param)
    return layer.weight.detach(), SparseLinear.from_linear(layer)


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        # NaN is where NaN is expected
        return found.dtype == expected.dtype and torch.equal(
            torch.nan_to_num(found) if found.is_floating_point() else found,
            torch.nan_to_num(expected) if expected.is_floating_point() else expected,
        )
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


VALUES: list[Callable[[Any], Any]] = [
    lambda w: w == 0,
    lambda w: w == 0,
    lambda w: w != 0,
    lambda w: w > 0.1,
    lambda w: w <= torch.zeros(80, dtype=w.dtype),
    lambda w: (w == 0).sum(),
    lambda w: (w == 0).float().mean(),
    lambda w: torch.count_nonzero(w),
    lambda w: w.count_nonzero(dim=0),
    lambda w: w.numel(),
    lambda w: w.nelement(),
    lambda w: len(w),
    lambda w: w.abs(),
    lambda w: abs(w),
    lambda w: w.sum(),
    lambda w: w.float().mean(),
    lambda w: w.norm(),
    lambda w: w.max(dim=1).values,
    lambda w: torch.isnan(w).any(),
    lambda w: w.T,
    lambda w: w.t(),
    lambda w: w.mT,
    lambda w: w[3],
    lambda w: w[2:5, ::2],
    lambda w: w.unsqueeze(-1).unsqueeze(-1),
    lambda w: w.view(-1),
    lambda w: w.reshape(80, 60),
    lambda w: w.chunk(3, dim=0),
    lambda w: w.unbind(),
    lambda w: tuple(w),
    lambda w: w.float(),
    lambda w: w.double(),
    lambda w: w.to(torch.float16),
    lambda w: w.clone(),
    lambda w: w.data.clone(),
    lambda w: w.detach().cpu().clone(),
    lambda w: -w,
    lambda w: w + 1,
    lambda w: 1 - w,
    lambda w: w * w,
    lambda w: w / 2,
    lambda w: w**2,
    lambda w: w @ torch.ones(80, 2, dtype=w.dtype),
    lambda w: torch.ones(2, 60, dtype=w.dtype) @ w,
    lambda w: torch.ones(2, 80, dtype=w.dtype) @ w.T,
    lambda w: torch.matmul(torch.ones(2, 60, dtype=w.dtype), w),
    lambda w: torch.cat([w, w]),
    lambda w: torch.cat([w.t(), torch.ones(80, 1, dtype=w.dtype)], dim=1),
    lambda w: torch.nn.functional.linear(torch.ones(2, 60, dtype=w.dtype), w.t()),
    lambda w: torch.nn.functional.embedding(torch.tensor([1, 2]), w),
    lambda w: torch.nn.functional.conv2d(torch.ones(1, 80, 2, 2, dtype=w.dtype), w[:, :, None, None]),
    lambda w: torch.einsum("oi,i->o", w, torch.ones(80, dtype=w.dtype)),
    lambda w: torch.where(w == 0, torch.ones_like(w), w),
    lambda w: torch.zeros_like(w),
    lambda w: w.new_zeros(3),
    lambda w: torch.ones(2, dtype=torch.float64).to(w),
    lambda w: torch.ones(2, dtype=torch.float64).type_as(w),
    lambda w: torch.ones(80, dtype=w.dtype).expand_as(w),
    lambda w: w.tolist()[0],
    lambda w: w.is_floating_point(),
    lambda w: w.element_size(),
    lambda w: w.stride(),
    lambda w: w.is_contiguous(),
    lambda w: w.is_cuda,
    lambda w: w.is_meta,
    lambda w: w.layout,
    lambda w: w.nbytes,
    lambda w: w.shape,
    lambda w: w.size(-1),
    lambda w: w.dtype,
    lambda w: w.device,
    lambda w: hasattr(w, "SCB"),
    lambda w: hasattr(w, "quant_state"),
    lambda w: 0.0 in w,
    lambda w: 1e9 in w,
    lambda w: np.asarray(w.float()).tolist(),
]


@pytest.mark.filterwarnings("ignore:.*needs the elements")
@pytest.mark.parametrize("number", range(len(VALUES)))
def test_values_are_those_of_the_dense_weight(pair, number):
    dense, layer = pair
    for inference in (False, True):
        with torch.inference_mode(inference):
            assert same(VALUES[number](layer.weight), VALUES[number](dense))
    assert torch.equal(layer.weight.to_dense(), dense)


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (bool, RuntimeError, "ambiguous"),
        (float, (RuntimeError, ValueError), "one element"),
        (lambda w: w.data_ptr(), TypeError, "to_dense"),
        (lambda w: w.untyped_storage(), TypeError, "to_dense"),
        (lambda w: w.register_hook(print), TypeError, "to_dense"),
        (lambda w: w.requires_grad_(), RuntimeError, "make_dense"),
        (lambda w: setattr(w, "requires_grad", True), RuntimeError, "make_dense"),
        (lambda w: setattr(w, "grad", torch.ones(60, 80)), RuntimeError, "no gradient"),
        (lambda w: setattr(w, "anything", 1), AttributeError, "anything"),
        (lambda w: w.anything, AttributeError, "anything"),
        (lambda w: torch.nn.Parameter(w), RuntimeError, "make_dense"),
        (lambda w: setattr(w, "data", torch.ones(3, 80)), ValueError, r"\(60, 80\).*\(3, 80\)"),
        (lambda w: w[0].zero_(), RuntimeError, "lost"),
        (lambda w: w.t().mul_(2), RuntimeError, "lost"),
        (lambda w: w.view(-1)[3:].t().fill_(1), RuntimeError, "lost"),
        (lambda w: operator.setitem(w.t(), 0, 1), RuntimeError, "lost"),
        (lambda w: operator.iadd(w[2:4], 1), RuntimeError, "lost"),
        (lambda w: torch.add(w[0], 1, out=w[0]), RuntimeError, "lost"),
        (lambda w: torch.nn.init.zeros_(w.t()), RuntimeError, "lost"),
        (lambda w: operator.setitem(w.numpy(), 0, 1), ValueError, "read-only"),
        (lambda w: operator.setitem(w[0].numpy(), 0, 1), ValueError, "read-only"),
        (lambda w: operator.setitem(np.asarray(w[0]), 0, 1), ValueError, "read-only"),
        (lambda w: list({w: 1}).index(torch.ones(60, 80)), RuntimeError, "ambiguous"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*needs the elements")
def test_what_would_be_wrong_or_lost_is_an_error(use, error, words):
    layer = SparseLinear.from_linear(dense_layer())
    before = layer.weight.to_dense()
    for inference in (False, True):
        with torch.inference_mode(inference), pytest.raises(error, match=words):
            use(layer.weight)
    assert torch.equal(layer.weight.to_dense(), before)


def set_data(layer: Any) -> None:
    layer.weight.data = torch.ones_like(layer.weight.data) * 3


def add_to_data(layer: Any) -> None:
    layer.weight.data += 1


def scale_weight(layer: Any) -> None:
    layer.weight *= 0.5


CHANGES: list[Callable[[Any], Any]] = [
    lambda layer: layer.weight.div_(4),
    lambda layer: layer.weight.mul_(2**3),
    lambda layer: layer.weight.zero_(),
    lambda layer: layer.weight.data.mul_(2),
    lambda layer: layer.weight.detach().add_(1),
    lambda layer: operator.setitem(layer.weight, 0, 0),
    lambda layer: operator.setitem(layer.weight.data, (slice(None), 3), 1.5),
    lambda layer: operator.setitem(layer.weight, layer.weight > 0, 0),
    lambda layer: layer.weight.copy_(torch.ones(60, 80)),
    lambda layer: layer.weight.masked_fill_(layer.weight < 0, 0),
    lambda layer: torch.mul(torch.ones(60, 80, dtype=layer.weight.dtype), 2, out=layer.weight),
    lambda layer: torch.nn.init.constant_(layer.weight, 0.5),
    lambda layer: torch.clamp_(layer.weight, -0.05, 0.05),
    set_data,
    add_to_data,
    scale_weight,
]


@pytest.mark.filterwarnings("ignore:.*needs the elements")
@pytest.mark.filterwarnings("ignore:.*not compressed any more")
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_changes_in_place_reach_the_layer(pair, number, inference):
    dense, layer = pair
    twin = torch.nn.Linear(80, 60, bias=False)
    twin.weight = torch.nn.Parameter(dense.clone(), requires_grad=False)
    copied = copy.deepcopy(layer)
    layout = layer.weight.tensor.layout
    with torch.inference_mode(inference), torch.no_grad():
        CHANGES[number](layer)
        CHANGES[number](twin)
    assert torch.equal(layer.weight.to_dense(), twin.weight)
    assert layer.weight.dtype == dense.dtype
    x = torch.randn(3, 80)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, twin.weight.float(), layer.bias.float()))
    # a layer that was pruned stays so, in its layout; copies are not touched
    assert layer.weight.tensor.layout == (layout if layer.weight.tensor.sparsity > 0.5 else "dense")
    assert torch.equal(copied.weight.to_dense(), dense)


@pytest.mark.filterwarnings("ignore:.*needs the elements")
def test_a_weight_that_layers_share_cannot_be_changed_for_one():
    model = torch.nn.Sequential(dense_layer(), dense_layer())
    model[1].weight = model[0].weight
    sparsify(model)
    before = model[0].weight.to_dense()
    for layer in model:
        with pytest.raises(RuntimeError, match=r"'[01]' is shared with other layers"):
            layer.weight.mul_(2)
    assert torch.equal(model[1].weight.to_dense(), before)


def test_a_weight_that_is_not_sparse_any_more_is_mentioned():
    layer = SparseLinear.from_linear(dense_layer())
    layer.name = "up"
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        layer.weight.data *= 2
        layer.weight.data = layer.weight.to_dense() + 1
        layer.weight.data = layer.weight.to_dense() + 1
    [text] = [str(warning.message) for warning in found if "needs the elements" not in str(warning.message)]
    assert text.startswith("the weight of SparseLinear 'up' has been changed, and is 0% zero now")
    assert "make_dense" in text


@pytest.mark.filterwarnings("ignore:.*needs the elements")
@pytest.mark.filterwarnings("ignore:.*not compressed any more")
def test_adapters_of_peft_are_merged_and_taken_out():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Sequential(dense_layer(out_features=80), torch.nn.ReLU(), dense_layer())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0", "2"])).eval()
    result = sparsify(adapted)
    assert {name.rpartition(".")[2] for name in result.sparse} == {"base_layer"}
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    x = torch.randn(3, 80)
    with torch.no_grad():
        expected = adapted(x)
        adapted.merge_adapter()
        torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-4)
        adapted.unmerge_adapter()
        torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-4)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_code_that_uses_the_weight_compiles_and_is_exported():
    class Model(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = torch.cat([self.layer.weight, self.layer.weight]).T
            return x @ self.layer.weight.T + self.layer(x) + (x @ both)[..., :60]

    for made in (dense_layer(), dense_layer(torch.bfloat16)):
        layer = SparseLinear.from_linear(made)
        x = torch.randn(3, 80, dtype=made.weight.dtype)
        expected = Model(layer)(x)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(Model(layer), backend="eager")(x), expected)
        assert torch.equal(torch.export.export(Model(layer), (x,)).module()(x), expected)
        torch.library.opcheck(
            torch.ops.sparsefmt.dense, (layer.weight_arrays, layer.weight_table, layer.weight.dtype, 60, 80)
        )

        def change(x: torch.Tensor, layer: SparseLinear = layer) -> torch.Tensor:
            return layer.weight.mul_(2) + x

        with pytest.raises(RuntimeError, match="mul_ changes the weight"):
            torch.compile(change, backend="eager")(x[0])
        assert torch.equal(layer.weight.to_dense(), made.weight)
        with pytest.raises(RuntimeError, match="shape"):
            torch.ops.sparsefmt.dense(layer.weight_arrays, layer.weight_table, layer.weight.dtype, 80, 60)
        with pytest.raises(RuntimeError, match="dtype"):
            torch.ops.sparsefmt.dense(layer.weight_arrays, layer.weight_table, torch.float64, 60, 80)


def test_gradients_flow_through_operations_with_the_weight():
    dense = dense_layer()
    layer = SparseLinear.from_linear(dense)
    x = torch.randn(3, 80, requires_grad=True)
    with pytest.warns(UserWarning, match="needs the elements"):
        ours = torch.autograd.grad((x @ layer.weight.T).square().sum(), x)[0]
    torch.testing.assert_close(ours, torch.autograd.grad((x @ dense.weight.T).square().sum(), x)[0])


def test_one_warning_for_each_layer_names_it_and_what_to_do(tmp_path):
    def model() -> torch.nn.Module:
        return torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"dt_proj": dense_layer()}), "b": dense_layer()})

    made = model()
    save_model(made, tmp_path / "model.sparsefmt")
    sparsify(made)
    loaded = model()
    load_into(loaded, tmp_path / "model.sparsefmt")
    for sparse in (made, loaded):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            # to look at weights is no reason to warn, nor is what needs no elements
            for layer in (sparse["a"]["dt_proj"], sparse["b"]):
                assert (layer.weight == 0).float().mean() > 0.7
                assert torch.zeros(3).to(layer.weight).dtype == torch.zeros_like(layer.weight).dtype
                torch.nn.functional.linear(torch.ones(80), layer.weight)
                layer.weight.to_dense()
            assert not found
            for _ in range(2):
                sparse["a"]["dt_proj"].weight @ torch.ones(80)
                torch.cat([sparse["b"].weight, sparse["b"].weight])
        texts = [str(warning.message) for warning in found]
        assert len(texts) == 2
        assert "SparseLinear 'a.dt_proj', 60 x 80" in texts[0]
        assert texts[0].startswith("__matmul__() needs")
        assert "exclude='*.dt_proj'" in texts[0]
        assert "include=" in texts[0]
        assert "SparseLinear 'b'" in texts[1]
    assert list(sparsify(model(), exclude="*.dt_proj").sparse) == ["b"]


def test_the_weight_is_one_object_while_it_is_kept_and_keeps_nothing_alive():
    layer = SparseLinear.from_linear(dense_layer())
    weight = layer.weight
    assert layer.weight is weight
    assert {weight: 1}[layer.weight] == 1
    assert weight in {weight}
    assert copy.deepcopy(layer).weight is not weight
    for again in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(again.to_dense(), weight.to_dense())
    gc.disable()
    try:
        gone = weakref.ref(layer)
        del weight, layer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:.*needs the elements")
def test_the_weight_of_what_was_a_conv1d_is_as_that_had_it():
    conv = conv1d(80, 60)
    layer = SparseLinear.from_linear(conv)
    assert layer.weight.shape == (80, 60)
    assert torch.equal(layer.weight.to_dense(), conv.weight)
    assert np.array_equal(np.asarray(layer.weight), conv.weight.detach().numpy())
    x = torch.randn(2, 80)
    assert torch.equal(x @ layer.weight, x @ conv.weight)
    assert torch.equal(torch.addmm(torch.zeros(60), x, layer.weight), torch.addmm(torch.zeros(60), x, conv.weight))
    assert torch.equal(torch.nn.functional.linear(x.T @ x, layer.weight.T), (x.T @ x) @ conv.weight)
    layer.weight.mul_(2)
    assert torch.equal(layer.weight.to_dense(), conv.weight * 2)
    torch.testing.assert_close(layer(x), x @ conv.weight * 2 + conv.bias, rtol=1e-5, atol=1e-5)


def test_a_layer_takes_its_input_by_the_name_that_linear_has():
    dense = dense_layer()
    layer = SparseLinear.from_linear(dense)
    x = torch.randn(2, 80)
    torch.testing.assert_close(layer(input=x), dense(input=x), rtol=1e-5, atol=1e-5)


def test_what_the_weight_cannot_be_set_to():
    layer = SparseLinear.from_linear(dense_layer())
    with pytest.raises(TypeError, match="set_weight"):
        layer.weight = torch.ones(60, 80)
    with pytest.raises((TypeError, KeyError)):
        layer.weight = torch.nn.Parameter(torch.ones(60, 80))
    with pytest.raises(TypeError, match="set_weight"):
        layer.weight = SparseLinear.from_linear(dense_layer()).weight


# counting


def test_parameters_are_counted_as_in_the_dense_model():
    model = torch.nn.Sequential(dense_layer(), dense_layer(), torch.nn.LayerNorm(60), dense_layer())
    model[1].weight = model[0].weight
    total = sum(parameter.numel() for parameter in model.parameters())
    nonzero = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    assert parameter_count(model) == (total, nonzero)
    model[3].bias.requires_grad_(False)
    sparsify(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == total - 2 * 60 * 80
    assert parameter_count(model) == parameter_count(copy.deepcopy(model)) == (total, nonzero)
    assert parameter_count(model).sparsity == 1 - nonzero / total
    # a layer that is there twice counts once, a copy of it is another
    model.append(model[0])
    assert parameter_count(model).total == total
    model.append(copy.deepcopy(model[3]))
    assert parameter_count(model).total == total + 60 * 80 + 60
    assert parameter_count(torch.nn.ReLU()).sparsity == 0
    for unfilled in (SparseLinear(2, 2), torch.nn.Linear(2, 2, device="meta")):
        with pytest.raises(RuntimeError):
            parameter_count(torch.nn.Sequential(unfilled))


# SparseTensor, with numpy


def arrays(dtype: Any = np.float32) -> tuple[np.ndarray, SparseTensor]:
    rng = np.random.default_rng(0)
    array = np.where(rng.random((60, 80)) < 0.8, 0, rng.standard_normal((60, 80)) * 3).astype(dtype)
    return array, SparseTensor.from_dense(array)


NUMPY: list[Callable[[Any], Any]] = [
    lambda w: w == 0,
    lambda w: w == 0,
    lambda w: np.float32(0) == w,
    lambda w: w != 0,
    lambda w: w < 1,
    lambda w: w <= 1,
    lambda w: w == np.zeros(80, w.dtype),
    lambda w: np.zeros(80, w.dtype) < w,
    lambda w: np.mean(w == 0),
    lambda w: (w == 0).sum(),
    lambda w: np.count_nonzero(w),
    lambda w: np.sum(w == 0, axis=0),
    lambda w: abs(w),
    lambda w: np.abs(w),
    lambda w: -w,
    lambda w: w * 2,
    lambda w: 1 - w,
    lambda w: np.isnan(w),
    lambda w: np.sum(w),
    lambda w: np.max(w),
    lambda w: np.nonzero(w)[0],
    lambda w: np.where(w == 0, 1, 0),
    lambda w: np.array_equal(w, w),
    lambda w: np.add.reduce(w, axis=1),
    lambda w: np.stack([w, w]),
    lambda w: np.array(list(w)),
    lambda w: [len(row) for row in w],
    lambda w: len(w),
    lambda w: 0 in w,
    lambda w: 1e9 in w,
    lambda w: np.equal(w, 0, out=np.empty((60, 80), bool)),
]


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.int8]
)
@pytest.mark.parametrize("number", range(len(NUMPY)))
def test_numpy_sees_the_dense_values(dtype, number):
    dense, tensor = arrays(dtype)
    with np.errstate(all="ignore"):
        try:
            expected = NUMPY[number](dense)
        except TypeError as error:
            # numpy has no such loop for the dtype
            with pytest.raises(type(error)):
                NUMPY[number](tensor)
            return
        found = NUMPY[number](tensor)
    assert type(found) is type(expected)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (bool, ValueError, "neither true nor false"),
        (lambda w: not w, ValueError, "nnz > 0"),
        (float, TypeError, "float"),
        (lambda w: w.sum(), AttributeError, "todense"),
        (lambda w: w.T, AttributeError, "todense"),
        (lambda w: w.anything, AttributeError, "'anything'$"),
        (lambda w: np.ones((2, 60)) @ w, TypeError, r"sparsefmt\.linear\(x, w\)"),
        (lambda w: np.matmul(w, np.ones(80)), TypeError, "w @ x"),
        (lambda w: operator.iadd(w, 1), TypeError, "cannot change"),
        (lambda w: np.add(1, 1, out=w), TypeError, "cannot change"),
        (lambda w: np.add.at(w, 0, 1), TypeError, "cannot change"),
        (lambda w: operator.setitem(w, 0, 1), TypeError, "item assignment"),
        (lambda w: [1, w].index(w), ValueError, "ambiguous"),
        (lambda w: next(iter(SparseTensor.from_dense(np.float32(3)))), TypeError, "0-d"),
    ],
)
def test_what_numpy_cannot_have_is_an_error(use, error, words):
    with pytest.raises(error, match=words):
        use(arrays()[1])


def test_tensors_are_hashed_by_identity():
    tensors = [arrays()[1] for _ in range(5)]
    assert len(set(tensors)) == 5
    by_tensor = {tensor: number for number, tensor in enumerate(tensors)}
    assert [by_tensor[tensor] for tensor in tensors] == list(range(5))
    assert weakref.WeakSet(tensors).__len__() == 5
    assert bool(SparseTensor.from_dense(np.float32(3))) is True
    assert bool(SparseTensor.from_dense(np.zeros((1, 1), np.float32))) is False


def test_many_rows_are_gone_through_some_at_a_time(monkeypatch):
    dense, tensor = arrays()
    monkeypatch.setattr("sparsefmt.tensor._POSITIONS_AT_ONCE", 300)
    monkeypatch.setattr(SparseTensor, "todense", None)
    assert all(np.array_equal(row, expected) for row, expected in zip(tensor, dense, strict=True))


def test_slices_of_files_compare_element_by_element(tmp_path):
    dense, tensor = arrays()
    sparsefmt.save_file({"w": tensor}, tmp_path / "w.sparsefmt")
    with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
        part = file.get_slice("w")
        assert np.array_equal(part == 0, dense == 0)
        assert np.array_equal(part != 0, dense != 0)
        assert np.count_nonzero(part) == np.count_nonzero(dense)
        assert len({part, file.get_slice("w")}) == 2
    with sparsefmt.safe_open(tmp_path / "w.sparsefmt", framework="np") as opened:
        part = opened.get_slice("w")
        assert np.array_equal(part == 0, dense == 0)
        assert np.array_equal(part != 0, dense != 0)
        assert len({part}) == 1
    with sparsefmt.safe_open(tmp_path / "w.sparsefmt", framework="pt") as opened:
        assert (opened.get_slice("w") == 0).sum() == np.sum(dense == 0)
