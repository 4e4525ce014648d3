"""SparseLinear against torch.nn.Linear and sparsefmt.linear, and what torch does to modules."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.utils.prune
from helpers import weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_helpers import conv1d, same
from torch_layers import FLOATS, LAYOUTS, dense_twin, layer_of, sparse_tensor

import sparsefmt
from sparsefmt import FormatError, SparseTensor, UnsupportedError
from sparsefmt.dtypes import DTYPES, as_bits
from sparsefmt.torch import SparseLinear, operator, registry


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's elements as the library's numpy dtypes, made in another way than the library does."""
    (name,) = [name for name, dtype in FLOATS.items() if dtype == tensor.dtype]
    raw = bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
    return np.frombuffer(raw, DTYPES[name].numpy).reshape(tuple(tensor.shape)).copy()


@pytest.fixture
def seen(monkeypatch):
    """What kernels were called with: (x, y, threads)."""
    calls = []
    multiply = operator._multiply()

    def spy(x, weights, y, threads):
        calls.append((x, y, threads))
        multiply(x, weights, y, threads)

    monkeypatch.setattr(operator, "_multiply", lambda: spy)
    return calls


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.sampled_from([1, 7, 8, 65]), st.sampled_from([1, 9, 64, 130])),
    leading=st.sampled_from([(), (0,), (1,), (3,), (2, 3), (2, 0, 3), (1, 1, 2, 2)]),
    dtype=st.sampled_from(["F32", "BF16", "F16", "F64", "I8"]),
    x_dtype=st.sampled_from(list(FLOATS)),
    layout=st.sampled_from(LAYOUTS),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    bias=st.booleans(),
    seed=st.integers(0, 100),
)
def test_equal_to_the_bit_to_linear_of_the_library(shape, leading, dtype, x_dtype, layout, sparsity, bias, seed):
    """And rounded to the dtype of x, where that of the library would be wider."""
    weight = sparse_tensor(*shape, dtype, layout, sparsity, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((*leading, shape[1]), generator=generator).to(FLOATS[x_dtype])
    b = torch.randn(shape[0], generator=generator) if bias else None
    y = SparseLinear.from_tensor(weight, b)(x)
    assert y.dtype == x.dtype
    assert y.shape == (*leading, shape[0])
    assert y.is_contiguous()
    # bias is added before rounding: give the library x in the dtype of the sums
    wide = np.float64 if "F64" in (dtype, x_dtype) else np.float32
    expected = sparsefmt.linear(to_numpy(x).astype(wide), weight, None if b is None else b.numpy())
    assert same(y, torch.from_numpy(expected).to(x.dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_to_a_dense_layer(layout, dtype):
    layer = layer_of(96, 200, dtype, layout)
    x = torch.randn(4, 5, 200).to(FLOATS[dtype])
    expected = dense_twin(layer)(x.double())
    precision = {"F32": 1e-5, "BF16": 2e-2, "F16": 2e-3, "F64": 1e-13}[dtype]
    torch.testing.assert_close(layer(x).double(), expected, rtol=precision, atol=10 * precision)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_batch_have_the_bits_of_single_rows(layout):
    layer = layer_of(64, 300, "BF16", layout)
    x = torch.randn(37, 300, dtype=torch.bfloat16)
    together = layer(x)
    for row in range(37):
        assert same(together[row], layer(x[row]))
    assert same(together[5:22].reshape(17, 64), layer(x[5:22]))


def test_float32_activations_and_results_are_not_copied(seen):
    layer = layer_of(bias=False)
    x = torch.randn(2, 3, 80, requires_grad=True)
    y = layer(x)
    ((kernel_x, kernel_y, _),) = seen
    assert kernel_x.ctypes.data == x.data_ptr()
    assert kernel_y.ctypes.data == y.data_ptr()


def test_threads_are_as_many_as_both_libraries_allow(seen):
    layer = layer_of()
    before = torch.get_num_threads()
    try:
        for torch_threads, ours in ((1, 8), (3, 8), (8, 2)):
            torch.set_num_threads(torch_threads)
            sparsefmt.set_num_threads(ours)
            layer(torch.randn(80))
            assert seen[-1][2] == min(torch_threads, ours)
    finally:
        torch.set_num_threads(before)
        sparsefmt.threads._num_threads = None


def test_activations_in_any_memory_order():
    layer = layer_of()
    x = torch.randn(80, 6, 4)
    expected = layer(x.permute(2, 1, 0).contiguous())
    assert same(layer(x.permute(2, 1, 0)), expected)
    assert same(layer(x[:, ::2].permute(2, 1, 0)), layer(x[:, ::2].permute(2, 1, 0).contiguous()))
    assert same(layer(torch.randn(80)[None].expand(3, 80)[:, :]), layer(torch.zeros(3, 80))) is False
    row = torch.randn(80)
    assert same(layer(row.expand(3, 80)), layer(row.repeat(3, 1)))
    negated = torch.randn(5, 80, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    assert same(layer(negated), layer(negated.resolve_neg().clone()))


def test_pruned_weights_are_skipped_whatever_they_meet():
    weight = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    for layout in ("bitmask", "permuted"):
        layer = SparseLinear.from_tensor(SparseTensor.from_dense(weight.numpy(), layout))
        y = layer(torch.tensor([[torch.inf, 1.0, torch.nan]]))
        assert y.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_layers_without_elements(shape):
    layer = SparseLinear.from_tensor(SparseTensor.from_dense(np.zeros(shape, np.float32)), torch.ones(shape[0]))
    x = torch.randn(2, shape[1], requires_grad=True)
    y = layer(x)
    assert torch.equal(y, torch.ones(2, shape[0]))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, shape[1]))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.randn(3, 79), r"x has shape \(3, 79\).*in_features, 80"),
        (torch.tensor(1.0), "its last dimension must be in_features"),
        (torch.ones(80, dtype=torch.int64), "x has dtype torch.int64"),
        (torch.ones(80, dtype=torch.complex64), "x has dtype torch.complex64"),
    ],
)
def test_activations_that_do_not_fit(x, words):
    layer = layer_of()
    with pytest.raises(RuntimeError, match=words):
        layer(x)
    with pytest.raises(RuntimeError, match=words):
        layer.to("meta")(x.to("meta"))


def test_inference_mode_no_grad_and_autocast():
    layer = layer_of()
    x = torch.randn(3, 80)
    expected = layer(x)
    assert expected.requires_grad  # the bias is trained
    with torch.no_grad():
        assert same(layer(x), expected)
    with torch.inference_mode():
        assert same(layer(torch.clone(x)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(layer(x), expected)
        # what other layers give under autocast
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_calls_from_many_threads_give_the_same_bits():
    layers = [layer_of(700, 900, seed=seed) for seed in range(4)]
    xs = [torch.randn(5, 900) for _ in range(4)]
    expected = [layer(x) for layer, x in zip(layers, xs, strict=True)]
    copies = copy.deepcopy(layers)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = list(pool.map(lambda number: copies[number % 4](xs[number % 4]), range(32)))
    assert all(same(result, expected[number % 4]) for number, result in enumerate(results))


def test_a_forked_worker_of_a_data_loader_can_multiply():
    layer = layer_of(1200, 1200)
    data = [torch.randn(1200) for _ in range(4)]
    expected = [layer(x).detach() for x in data]

    def collate(items: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return layer(torch.stack(items))

    loader = torch.utils.data.DataLoader(
        data, batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context="fork"
    )
    assert same(torch.cat(list(loader)), torch.stack(expected))


def test_a_deep_copy_shares_weights_and_nothing_else():
    layer = layer_of()
    layer.note = [1]  # type: ignore[assignment]
    model = torch.nn.ModuleList([layer, layer])
    copied = copy.deepcopy(model)
    assert copied[0] is copied[1]
    assert copied[0].weight_arrays is layer.weight_arrays
    assert copied[0].bias is not layer.bias
    assert copied[0].note == [1]
    assert copied[0].note is not layer.note
    x = torch.randn(80)
    assert same(copied[0](x), layer(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pickled_and_saved_as_a_whole(layout):
    layer = layer_of(layout=layout)
    repr(layer)  # keeps a SparseTensor, which is not to be pickled too
    x = torch.randn(80)
    data = pickle.dumps(layer)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for restored in (pickle.loads(data), torch.load(file, weights_only=False)):
        assert same(restored(x), layer(x))
        assert restored.weight.tensor.layout == layout
    assert len(data) < 1.2 * layer.weight.tensor.nbytes + 8192


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("shape", [(60, 80), (2000, 1500)])
def test_state_dicts_are_plain_tensors(shape, assign):
    layer = layer_of(*shape)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert sorted(state) == ["bias", "weight_arrays", "weight_table"]
    empty = SparseLinear(shape[1], shape[0])
    assert repr(empty).endswith("dtype=torch.float32, without weights)")
    with pytest.raises(RuntimeError, match="no weights yet"):
        empty(torch.randn(shape[1]))
    keys = empty.load_state_dict(state, assign=assign)
    assert not keys.missing_keys
    assert not keys.unexpected_keys
    x = torch.randn(2, shape[1])
    assert same(empty(x), layer(x))
    assert (empty.weight_arrays.data_ptr() == state["weight_arrays"].data_ptr()) == assign


def test_a_dense_state_dict_is_compressed():
    dense = torch.nn.Linear(80, 60, dtype=torch.float64)
    torch.nn.utils.prune.random_unstructured(dense, "weight", 0.7)
    torch.nn.utils.prune.remove(dense, "weight")
    model = torch.nn.Sequential(SparseLinear(80, 60))
    model.load_state_dict({f"0.{name}": tensor for name, tensor in dense.state_dict().items()})
    assert model[0].weight.tensor.layout == "permuted"
    assert same(model[0].weight.to_dense(), dense.weight.float())
    model.load_state_dict({f"0.{name}": tensor for name, tensor in dense.state_dict().items()}, assign=True)
    assert same(model[0].weight.to_dense(), dense.weight)


def test_a_state_dict_of_another_dtype_is_rounded():
    layer = layer_of(dtype="F32")
    half = SparseLinear(80, 60, dtype=torch.float16)
    half.load_state_dict(layer.state_dict())
    assert same(half.weight.to_dense(), layer.weight.to_dense().half())


def test_state_dicts_that_do_not_fit_are_named():
    layer = layer_of()
    state = layer.state_dict()
    model = torch.nn.Sequential(SparseLinear(80, 61))
    with pytest.raises(RuntimeError, match=r'"0.weight": size mismatch.*\[60, 80\].*\[61, 80\]'):
        model.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"weight_arrays", "weight_table"'):
        SparseLinear(80, 60).load_state_dict({"bias": state["bias"]})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\).*"other"'):
        layer.load_state_dict({**state, "other": state["bias"]})
    with pytest.raises(RuntimeError, match="layer without weights"):
        layer.load_state_dict(SparseLinear(80, 60).state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_weights_are_refused_before_they_are_used(layout):
    layer = layer_of(20, 70, layout=layout)
    x = torch.randn(70)
    expected = layer(x)
    for place in range(layer.weight_table.numel()):
        for value in (-1, 0, 1, 7, 64, 1 << 20, 1 << 62, -(1 << 62)):
            table = layer.weight_table.clone()
            table[place] = value
            damaged = {"weight_arrays": layer.weight_arrays, "weight_table": table, "bias": layer.bias}
            other = SparseLinear(70, 20)
            try:
                other.load_state_dict(damaged)
            except RuntimeError:
                continue
            assert torch.isfinite(other(x)).all()
            assert torch.equal(table, layer.weight_table) <= same(other(x), expected)
    if layout != "dense":
        arrays = layer.weight_arrays.clone()
        arrays[:] = 255
        with pytest.raises(FormatError, match="damaged"):
            torch.ops.sparsefmt.linear(x, arrays, layer.weight_table, None, 20, 70)
    with pytest.raises(FormatError, match="damaged"):
        torch.ops.sparsefmt.linear(x, layer.weight_arrays[:-100], layer.weight_table, None, 20, 70)
    with pytest.raises(FormatError, match="damaged"):
        torch.ops.sparsefmt.linear(x, layer.weight_arrays, layer.weight_table[:3].clone(), None, 20, 70)
    with pytest.raises(RuntimeError, match="contiguous"):
        torch.ops.sparsefmt.linear(x, layer.weight_arrays[:1].expand(10000), layer.weight_table, None, 20, 70)


def test_weights_that_are_gone_are_not_mistaken_for_new_ones_at_their_place():
    x = torch.randn(80)
    for seed in range(50):
        layer = layer_of(seed=seed, bias=False)
        # other storages than those that were made from the tensor
        clone = copy.deepcopy(layer)
        clone.weight_arrays = layer.weight_arrays.clone()
        assert same(clone(x), layer(x))
        torch.testing.assert_close(clone(x), dense_twin(layer)(x.double()).float(), rtol=1e-4, atol=1e-4)
        del layer, clone
    assert len(registry._known) < 20


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_dtypes_have_the_values_that_torch_rounds_to(layout, dtype, target):
    array = weights(np.random.default_rng(0), (60, 80), DTYPES[dtype].numpy, 0.8, True)
    array[0, :4] = [1e-30, -1e-30, 60000, np.nan]
    layer = SparseLinear.from_tensor(SparseTensor.from_dense(array, layout), torch.randn(60))
    before = layer.weight.to_dense()
    assert same(layer.to(target).weight.to_dense(), before.to(target))
    assert layer.weight.dtype == layer.bias.dtype == target
    assert layer.weight.tensor.layout == layout
    if layout != "dense":
        assert layer.weight.tensor.nnz == int((before.to(target) != 0).sum())


def test_what_torch_calls_conversions():
    layer = layer_of()
    x = torch.randn(80)
    expected = layer(x)
    assert same(copy.deepcopy(layer).half().weight.to_dense(), layer.weight.to_dense().half())
    assert copy.deepcopy(layer).bfloat16().weight.dtype == torch.bfloat16
    assert copy.deepcopy(layer).type(torch.float64).weight.tensor.dtype == np.float64
    assert same(copy.deepcopy(layer).to("cpu")(x), expected)
    assert SparseLinear(80, 60).half().weight.dtype == torch.float16
    shared = copy.deepcopy(layer).share_memory()
    assert shared.weight_arrays.is_shared()
    assert same(shared(x), expected)
    assert same(layer(x), expected)


def test_without_data_on_meta():
    layer = layer_of().to("meta")
    assert layer.weight.device.type == "meta"
    assert layer(torch.empty(2, 80, device="meta")).shape == (2, 60)
    assert layer.half().weight.dtype == torch.float16
    with pytest.raises(RuntimeError, match="no weights yet"):
        _ = layer.weight.tensor
    with torch.device("meta"):
        made = SparseLinear(80, 60)
    assert made(torch.empty(2, 80, device="meta")).shape == (2, 60)
    made.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="no weights yet"):
        made(torch.randn(2, 80))
    made.load_state_dict(layer_of().state_dict())
    assert made(torch.randn(2, 80)).shape == (2, 60)


def test_repr_says_what_is_held():
    layer = layer_of(600, 800, "BF16", sparsity=0.9)
    nbytes = layer.weight.tensor.nbytes
    assert repr(layer) == (
        "SparseLinear(in_features=800, out_features=600, bias=True, dtype=torch.bfloat16, layout=permuted,"
        f" sparsity={layer.weight.tensor.sparsity:.3f}, {nbytes:,} of 960,000 bytes)"
    )


def test_the_weight_has_what_code_asks_for():
    layer = layer_of(dtype="BF16")
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device) == (torch.Size((60, 80)), torch.bfloat16, torch.device("cpu"))
    assert (weight.ndim, weight.dim(), weight.size(0), weight.size(), weight.numel()) == (2, 2, 60, (60, 80), 4800)
    assert not weight.requires_grad
    assert not isinstance(weight, torch.Tensor)
    assert weight.tensor is layer.weight.tensor
    assert same(
        weight.to_dense(),
        torch.from_numpy(as_bits(weight.tensor.todense(), DTYPES["BF16"]).view(np.int16)).view(torch.bfloat16),
    )
    x = torch.randn(3, 80)
    assert same(torch.nn.functional.linear(x, weight, layer.bias), layer(x))
    # what needs the elements gets them; see test_weight.py
    ones = torch.ones(3, 60, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"matmul\(\) needs the elements"):
        assert same(torch.matmul(ones, weight), torch.matmul(ones, weight.to_dense()))


def test_from_a_linear_layer():
    linear = torch.nn.Linear(80, 60).eval()
    torch.nn.utils.prune.l1_unstructured(linear, "weight", 0.8)
    torch.nn.utils.prune.random_unstructured(linear, "bias", 0.5)
    x = torch.randn(3, 80)
    before = linear(x)
    with torch.no_grad():
        linear.weight_orig[:] *= 2  # linear.weight does not know yet
    layer = SparseLinear.from_linear(linear)
    assert not layer.training
    assert layer.weight.tensor.nnz == 960
    after = linear(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(layer(x), after, rtol=1e-5, atol=1e-5)
    torch.nn.utils.prune.remove(linear, "bias")
    assert SparseLinear.from_linear(linear).bias is linear.bias
    assert SparseLinear.from_linear(torch.nn.Linear(3, 4, bias=False)).bias is None
    for layout in LAYOUTS:
        assert SparseLinear.from_linear(linear, layout).weight.tensor.layout == layout


def test_from_a_conv1d_whose_weight_is_transposed():
    conv = conv1d(80, 60)
    x = torch.randn(3, 80)
    layer = SparseLinear.from_linear(conv)
    assert layer.transposed
    assert (layer.in_features, layer.out_features) == (80, 60)
    torch.testing.assert_close(layer(x), x @ conv.weight + conv.bias, rtol=1e-5, atol=1e-5)


def test_what_is_no_linear_layer():
    with pytest.raises(TypeError, match=r"not of Conv2d: .*SparseConv2d\.from_convolution"):
        SparseLinear.from_linear(torch.nn.Conv2d(2, 2, 2))
    with pytest.raises(TypeError, match="not of Embedding"):
        SparseLinear.from_linear(torch.nn.Embedding(2, 2))
    with pytest.raises(NotImplementedError, match="'weight'"):
        SparseLinear.from_linear(torch.nn.Linear(3, 4, device="meta"))
    with pytest.raises(ValueError, match=r"2 dimensions.*\(2, 3, 4\)"):
        SparseLinear.from_tensor(SparseTensor.from_dense(np.ones((2, 3, 4), np.float32)))
    with pytest.raises(ValueError, match=r"bias has shape \(3,\).*2 rows"):
        SparseLinear.from_tensor(SparseTensor.from_dense(np.ones((2, 3), np.float32)), torch.ones(3))
    with pytest.raises(UnsupportedError, match="C64"):
        SparseLinear.from_tensor(SparseTensor.from_dense(np.ones((2, 3), np.complex64)))
    with pytest.raises(ValueError, match=r"\(2, 3\).*needs \(3, 2\)"):
        SparseLinear(2, 3).set_weight(SparseTensor.from_dense(np.ones((2, 3), np.float32)))
